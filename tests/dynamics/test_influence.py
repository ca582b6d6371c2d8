"""Responses of roots to forces on single tokens, against dense algebra and against roots of the perturbed problem."""

import math

import numpy as np
import pytest
import torch

from dyneq.dynamics.influence import (
    Undeclared,
    by_token,
    from_token,
    influence,
    response_solver,
    token_coupling,
    unit_vectors,
)
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.relax import relax
from dyneq.dynamics.roots import find_root
from dyneq.errors import UsageError
from dyneq.systems import analytic
from dyneq.systems.adapters import from_map, from_ode
from dyneq.systems.block import BoundBlock

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def dense_jacobian(system, z):
    """The whole Jacobian [sample, n, n] by torch's own reverse mode, one sample at a time."""
    n = z[0].numel()
    rows = []
    for i in range(len(z)):
        one = system.select(torch.tensor([i]))
        rows.append(torch.func.jacrev(lambda y, one=one: one.force(y))(z[i : i + 1]).reshape(n, n))
    return torch.stack(rows).detach()


def shifted(system, delta):
    """The same block with its input x displaced: a constant force delta on it."""
    copy = BoundBlock(system.block, system.tokens, system.targets, system.eps)
    copy.x = (system.x + delta).detach()
    return copy


@pytest.fixture
def rooted(build):
    system = build(seed=1, gain=1.5)
    roots = find_root(system, depth=200)
    assert roots.found.all()
    return system, roots.z


def test_substitution_is_the_dense_solve(rooted):
    system, z = rooted
    linearization = Linearization(system, z)
    solver = response_solver(linearization, seeded())
    delta = torch.randn(z.shape, generator=seeded(3), dtype=F64)
    matrix = dense_jacobian(system, z).numpy()
    expected = np.linalg.solve(matrix, -delta.flatten(1).numpy()[..., None])[..., 0]
    # rounding of a solve with this matrix: its condition number times the machine precision, and 10 for its sums
    allowed = 10 * np.linalg.cond(matrix).max() * np.finfo(float).eps
    gap = np.linalg.norm(solver.solve(delta).flatten(1).numpy() - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert solver.method == "token"
    assert gap.max() < allowed < 1e-9
    blocks = linearization.token_blocks().numpy()
    norm = np.linalg.norm
    np.testing.assert_allclose(
        solver.condition.numpy(), norm(blocks, axis=(2, 3)) * norm(np.linalg.inv(blocks), axis=(2, 3)), rtol=1e-9
    )


def test_non_causal_systems_are_solved_whole_densely_or_by_krylov(rooted, monkeypatch):
    system, z = rooted
    delta = torch.randn(z.shape, generator=seeded(4), dtype=F64)
    expected = response_solver(Linearization(system, z), seeded()).solve(delta)
    dense = response_solver(Linearization(Undeclared(system), z), seeded())
    assert dense.method == "dense"
    torch.testing.assert_close(dense.solve(delta), expected, rtol=1e-9, atol=1e-10)
    monkeypatch.setattr("dyneq.dynamics.influence.DENSE_LIMIT", 3)
    krylov = response_solver(Linearization(Undeclared(system), z), seeded())
    assert krylov.method == "krylov"
    assert krylov.condition.isnan().all()
    torch.testing.assert_close(krylov.solve(delta), expected, rtol=1e-7, atol=1e-7)


def test_response_is_the_derivative_of_the_root_with_second_order_differences(rooted):
    """Roots of the problem with x shifted by +-h delta on one token, solved by Newton: the error falls as h^2."""
    system, z = rooted
    delta = torch.zeros_like(z)
    delta[:, 1] = unit_vectors((3, 8), seeded(5), z)
    dz = response_solver(Linearization(system, z), seeded()).solve(delta)
    errors = []
    for h in (2e-3, 1e-3, 5e-4):
        moved = [find_root(shifted(system, sign * h * delta), depth=200) for sign in (1, -1)]
        assert all(m.found.all() for m in moved)
        errors.append(float(torch.linalg.vector_norm((moved[0].z - moved[1].z) / (2 * h) - dz)))
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(slopes, 2, atol=0.1)
    assert errors[-1] < 1e-3 * float(torch.linalg.vector_norm(dz))


def test_the_relaxation_itself_moves_by_the_response(build):
    system = build(seed=2, gain=0.7)
    z = find_root(system, depth=300).z
    delta = torch.zeros_like(z)
    delta[:, 0] = unit_vectors((3, 8), seeded(6), z)
    dz = response_solver(Linearization(system, z), seeded()).solve(delta)
    errors = []
    for h in (2e-3, 1e-3):
        relaxed = [relax(shifted(system, sign * h * delta), 3000, start=z, tol=1e-13) for sign in (1, -1)]
        assert all(r.converged.all() for r in relaxed)
        errors.append(float(torch.linalg.vector_norm((relaxed[0].z - relaxed[1].z) / (2 * h) - dz)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


def test_earlier_tokens_feel_nothing_and_the_own_response_has_its_bounds(rooted):
    system, z = rooted
    found = influence(system, z, [0, 2, 4], 6, generator=seeded())
    assert found.response.shape == (3, 3, 6, 5)
    for i, source in enumerate((0, 2, 4)):
        assert (found.response[:, i, :, :source] == 0).all()
        assert (found.response[:, i, :, source] > 0).all()
    assert (found.response[:, :, :, 4][:, :2] > 0).all(), "attention passes it on"
    # 1/norm(A) <= norm(A^{-1} d) <= norm(A^{-1}) for a unit vector d
    singular = np.linalg.svd(Linearization(system, z).token_blocks().numpy(), compute_uv=False)
    own = np.stack([found.response[:, i, :, s].numpy() for i, s in enumerate((0, 2, 4))], axis=1)
    largest, smallest = (singular[:, [0, 2, 4], i][..., None] for i in (0, -1))
    assert (own >= (1 - 1e-9) / largest).all()
    assert (own <= (1 + 1e-9) / smallest).all()
    assert (found.residual < 1e-11).all()
    assert found.products > 0


def test_mean_square_response_is_the_frobenius_norm_over_the_channels(rooted):
    system, z = rooted
    inverse = np.linalg.inv(dense_jacobian(system, z).numpy()).reshape(3, 5, 8, 5, 8)
    expected = (inverse[:, :, :, 1] ** 2).sum((2, 3)) / 8
    count = 400
    squares = influence(system, z, [1], count, generator=seeded()).response[:, 0].square().numpy()
    bar = squares.std(1, ddof=1) / math.sqrt(count)
    assert (np.abs(squares.mean(1) - expected)[:, 1:] < 5 * bar[:, 1:]).all()


def test_singular_roots_are_left_out_from_that_token_on():
    """F_0 = -z_0, F_1 = z_0 - 0 z_1: token 1 has no definite answer, token 0 has; token 2 follows token 1."""

    def force(z):
        a, b, c = z.unbind(1)
        return torch.stack([-a, a * a, b - 2 * c], dim=1)

    system = from_ode(force, torch.zeros(1, 3, 2, dtype=F64), token_axis=1, causal=True)
    found = influence(system, torch.zeros(1, 3, 2, dtype=F64), [0], 2, generator=seeded())
    torch.testing.assert_close(found.response[0, 0, :, 0], torch.ones(2, dtype=F64))
    assert found.response[0, 0, :, 1:].isnan().all()
    assert torch.isinf(found.condition[0, 1])


def test_linear_response_without_tokens_is_the_inverse():
    matrix = torch.tensor([[-1.0, 3.0], [0.0, -2.0]], dtype=F64)
    system = analytic.LinearFlow(matrix)
    found = influence(system, torch.zeros(4, 2, dtype=F64), [0], 3, generator=seeded(9))
    generator = seeded(9)
    for k in range(3):
        delta = unit_vectors((4, 2), generator, matrix).numpy()
        expected = np.linalg.norm(np.linalg.solve(matrix.numpy(), delta.T), axis=0)
        np.testing.assert_allclose(found.response[:, 0, k, 0], expected, rtol=1e-13)
    with pytest.raises(UsageError, match="tokens 0 to 0, but 3"):
        influence(system, torch.zeros(4, 2, dtype=F64), [3], 1, generator=seeded())


@pytest.mark.parametrize("options", [{}, {"attention": "fused"}, {"qk_norm": True}])
def test_causal_blocks_leak_exactly_nothing(build, options):
    system = build(**options)
    z = system.initial_state().detach()
    coupling = token_coupling(system, z, generator=seeded())
    assert (coupling.leak == 0).all()
    above = torch.ones(5, 5, dtype=torch.bool).triu(1)
    assert (coupling.norm[:, above] == 0).all()
    assert (coupling.norm[:, ~above] > 0).all()


def test_coupling_is_the_norm_of_the_rows_of_the_dense_blocks(build):
    system = build(samples=2)
    z = system.initial_state().detach()
    generator = seeded(7)
    coupling = token_coupling(system, z, generator=seeded(7)).norm
    blocks = dense_jacobian(system, z).view(2, 5, 8, 5, 8)
    for t in range(5):
        w = unit_vectors((2, 8), generator, z)
        expected = torch.einsum("bc,bcsd->bsd", w, blocks[:, t]).norm(dim=-1)
        torch.testing.assert_close(coupling[:, t], expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("declared", [False, True])
def test_a_leak_is_measured_whatever_is_declared(declared):
    """F_t = -z_t + 0.3 z_{t+1}: every token hears its successor, at 0.3 of its own strength."""

    def force(z):
        return -z + 0.3 * torch.cat([z[:, 1:], torch.zeros_like(z[:, :1])], dim=1)

    system = from_ode(force, torch.ones(2, 4, 3, dtype=F64), token_axis=1, causal=declared)
    leak = token_coupling(system, torch.ones(2, 4, 3, dtype=F64), generator=seeded()).leak
    torch.testing.assert_close(leak, torch.full((2,), 0.3, dtype=F64))


def test_other_layouts_are_taken_by_token():
    state = torch.randn(2, 3, 4, 5, generator=seeded(), dtype=F64)
    system = from_map(lambda z: z / 2, state, token_axis=2)
    tokens = by_token(system, state)
    assert tokens.shape == (2, 4, 15)
    assert torch.equal(tokens[1, 3].view(3, 5), state[1, :, 3])
    assert torch.equal(from_token(system, tokens, state), state)
    # J = -1/2 exactly, so a force of norm 1 moves its token by 2 and no other
    found = influence(system, torch.zeros_like(state), [1], 2, generator=seeded()).response
    torch.testing.assert_close(found[:, 0, :, 1], torch.full((2, 2), 2.0, dtype=F64))
    assert (found[..., [0, 2, 3]] == 0).all()
