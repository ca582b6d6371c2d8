"""The monotone blocks: their bounds at any weights and after optimiser steps, and what follows from them."""

import numpy as np
import pytest
import torch
from kinds import bind, check_parts, check_products, dense, random_block, random_state, train
from pydantic import ValidationError

from dyneq.gradients import registry
from dyneq.systems.checkpoint import block_of_kind
from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint

KINDS = ["mono", "nemon"]


def matrix(block):
    return block.recurrent.matrix().detach().numpy()


def check_monotone(block, m):
    a = np.eye(8) - matrix(block)
    assert np.linalg.eigvalsh((a + a.T) / 2).min() >= m - 1e-13 * np.linalg.norm(a, 2)


def check_measure(block, gamma):
    w = matrix(block)
    off = np.abs(w).sum(1) - np.abs(np.diag(w))
    assert (np.diag(w) + off).max() <= gamma + 1e-13 * np.abs(w).sum(1).max()


@pytest.mark.parametrize("m", [0.05, 1.0, 3.0])
def test_monotonicity_holds_at_any_weights_and_after_optimiser_steps(m):
    block = random_block("mono", monotonicity=m)
    check_monotone(block, m)
    before = matrix(block)
    train(block, steps=3, lr=0.5)
    check_monotone(block, m)
    assert np.abs(matrix(block) - before).max() > 0.1
    assert np.abs(matrix(block) - matrix(block).T).max() > 0.1


@pytest.mark.parametrize("gamma", [-1.0, 0.0, 0.9])
def test_the_matrix_measure_holds_at_any_weights_and_after_optimiser_steps(gamma):
    block = random_block("nemon", measure=gamma)
    check_measure(block, gamma)
    before = matrix(block)
    train(block, steps=3, lr=0.5)
    check_measure(block, gamma)
    assert np.abs(matrix(block) - before).max() > 0.1


def test_every_matrix_of_small_enough_measure_is_reached():
    generator = np.random.default_rng(0)
    wanted = generator.normal(size=(8, 8))
    wanted[np.diag_indices(8)] = -np.abs(wanted).sum(1)
    block = random_block("nemon", measure=0.9)
    t = wanted.copy()
    off = np.abs(wanted).sum(1) - np.abs(np.diag(wanted))
    t[np.diag_indices(8)] = (np.diag(wanted) + off - 0.9) / 2  # T_ii - |T_ii| = 2 T_ii where it is negative
    with torch.no_grad():
        block.recurrent.t.copy_(torch.from_numpy(t))
    np.testing.assert_allclose(matrix(block), wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_the_force_its_products_and_parts(kind):
    bound = bind(random_block(kind, attention_bias=True))
    check_products(bound)
    check_parts(bound)
    block, z = bound.block, random_state(bound)
    with torch.no_grad():
        tokens = bound.tokens
        x = block.tok.weight[tokens] + block.pos.weight[:5]
        u = x + block.attn(block.ln(x)) + block.recurrent.bias
        torch.testing.assert_close(bound.initial_state(), u, rtol=0, atol=1e-14)
        expected = np.maximum(z.numpy() @ matrix(block).T + u.numpy(), 0) - z.numpy()
        torch.testing.assert_close(bound.force(z), torch.from_numpy(expected), rtol=0, atol=1e-13)
        torch.testing.assert_close(bound.branches(z)["recurrent"] - z, bound.force(z), rtol=0, atol=0)
        scaled = bound.scaled("antisymmetric", 0.0).block.recurrent.matrix().numpy()
        np.testing.assert_allclose(scaled, (matrix(block) + matrix(block).T) / 2, rtol=0, atol=1e-14)


def test_the_drive_is_causal():
    """What earlier tokens are given does not change with later ones, and does change with earlier ones."""
    block = random_block("mono")
    text = torch.randint(11, (1, 5), generator=torch.Generator().manual_seed(0))
    changed = text.clone()
    changed[0, 3] = (text[0, 3] + 1) % 11
    one, two = block.embed(text), block.embed(changed)
    assert torch.equal(one[:, :3], two[:, :3])
    assert not torch.equal(one[:, 4], two[:, 4])


@pytest.mark.parametrize("kind", KINDS)
def test_no_state_is_unstable(kind):
    """The abscissa is at most -min(m, 1), resp. gamma - 1, wherever it is asked."""
    for seed in range(5):
        block = random_block(kind, seed=seed, **({"monotonicity": 0.3} if kind == "mono" else {"measure": 0.7}))
        bound = bind(block)
        for at in range(5):
            j = dense(bound.force, 3 * random_state(bound, seed=at))
            # rounding of eigenvalues is magnified by their condition, which stays below 1e3 here
            assert torch.linalg.eigvals(j).real.max() <= -0.3 + 1e-11


def solved(bound):
    """The root of z = relu(W z + u) of a sample's token, from the linear complementarity problem by enumeration."""
    w, u = matrix(bound.block), bound.initial_state()[0, 0].detach().numpy()
    found = []
    for code in range(2 ** len(u)):
        active = np.array([code >> i & 1 for i in range(len(u))], dtype=bool)
        z = np.zeros(len(u))
        z[active] = np.linalg.solve(np.eye(active.sum()) - w[np.ix_(active, active)], u[active])
        if (z >= 0).all() and ((w @ z + u)[~active] <= 0).all():
            found.append(z)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_one_root_and_the_guaranteed_step_finds_it_from_everywhere(kind):
    block = random_block(kind, **({"monotonicity": 0.5} if kind == "mono" else {}))
    bound = bind(block)
    (root,) = solved(bound)
    step = block.guaranteed_step()
    assert 0 < step <= 1
    z = 20 * random_state(bound)
    with torch.no_grad():
        for _ in range(int(60 / step / (0.5 if kind == "mono" else 0.1))):
            z = z + step * bound.force(z)
    np.testing.assert_allclose(z[0, 0].numpy(), root, rtol=0, atol=1e-9)


def test_euler_of_the_monotone_flow_lowers_its_lyapunov_function():
    """V of the module's note, for the largest guaranteed step, from far and near, at several weights."""
    for seed in range(3):
        block = random_block("mono", seed=seed, monotonicity=0.2)
        bound = bind(block)
        w, m = torch.from_numpy(matrix(block)), 0.2
        u = bound.initial_state().detach()
        step = block.guaranteed_step()
        norm = float(torch.linalg.matrix_norm(w, 2))
        assert step == pytest.approx(2 * m / (5 * (norm**2 + 2 * m)), rel=1e-13)
        a = 2 * m / norm**2
        root = torch.zeros_like(u)
        near = block.local_step() / 2
        for _ in range(4000):
            root = root + near * (torch.relu(root @ w.T + u) - root)
        assert float((torch.relu(root @ w.T + u) - root).norm()) < 1e-11
        rest = root @ w.T + u

        def lyapunov(p, rest=rest, a=a):
            integral = 0.5 * torch.relu(p).square() - 0.5 * torch.relu(rest).square() - torch.relu(rest) * (p - rest)
            return a / 2 * (p - rest).square().sum(-1) + integral.sum(-1)

        for scale in (0.1, 1.0, 30.0):
            p = rest + scale * random_state(bound, seed=seed)
            after = (1 - step) * p + step * (torch.relu(p) @ w.T + u)
            assert (lyapunov(after) < lyapunov(p)).all()


def test_the_local_step_leaves_no_state_unstable():
    for seed in range(5):
        block = random_block("mono", seed=seed, monotonicity=0.2)
        bound, step = bind(block), 0.999 * block.local_step()
        for at in range(5):
            multipliers = 1 + step * torch.linalg.eigvals(dense(bound.force, 3 * random_state(bound, seed=at)))
            assert multipliers.abs().max() < 1


@pytest.mark.parametrize("gamma", [-0.5, 0.8])
def test_euler_of_the_non_euclidean_block_contracts_the_maximum_norm(gamma):
    for seed in range(5):
        block = random_block("nemon", seed=seed, measure=gamma)
        train(block, steps=1, lr=0.3)
        bound, step = bind(block), block.guaranteed_step()
        with torch.no_grad():
            one, two = (5 * random_state(bound, seed=s) for s in (seed, seed + 50))
            after = (one + step * bound.force(one) - two - step * bound.force(two)).abs().amax(-1)
            factor = 1 - step * (1 - max(gamma, 0))
            assert (after <= (factor + 1e-13) * (one - two).abs().amax(-1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_equilibrium_gradients_agree_with_unrolling(kind):
    bound = bind(random_block(kind, resinit=0.3, **({"monotonicity": 1.0} if kind == "mono" else {"measure": 0.0})))
    assert set(bound.parameter_groups()) == {"attn", "ffn", "ln", "emb", "head"}
    assert all(bound.parameter_groups().values())
    specs = ("bptt200", "adjoint:t1=200,steps=200", "aep:t1=200,t2=200,beta=1e-5")
    flat = []
    for spec in specs:
        gradient = registry.parse(spec).gradient(bound)
        flat.append(torch.cat([p.flatten() for m in gradient.parameters.values() for p in m.values()]))
    # rounding over beta, and 0.9^200 = 7e-10 of the flow; a piecewise linear force has no error of order beta
    for other in flat[1:]:
        torch.testing.assert_close(other, flat[0], rtol=0, atol=1e-6 * float(flat[0].norm()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_it_is_read_back(kind, tmp_path, checkpoint):
    checkpoint.block = random_block(kind, vocabulary=len(checkpoint.vocabulary)).float()
    save_checkpoint(tmp_path / "a.pt", checkpoint)
    loaded = load_checkpoint(tmp_path / "a.pt").block
    assert loaded.config == checkpoint.block.config
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), checkpoint.block.parameters(), strict=True))


def test_bounds_that_guarantee_nothing_are_refused():
    sizes = {"vocabulary": 3, "channels": 4, "heads": 2, "tokens": 2}
    with pytest.raises(ValidationError, match="greater than 0"):
        block_of_kind("mono").Config(**sizes, monotonicity=0.0)
    with pytest.raises(ValidationError, match="less than 1"):
        block_of_kind("nemon").Config(**sizes, measure=1.0)
