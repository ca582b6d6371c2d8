"""Solvers: counts against closed forms, plain loops, counters of our own and the theory of GMRES."""

import math

import numpy as np
import pytest
import torch

from dyneq.dynamics.roots import find_root
from dyneq.dynamics.solvers import anderson_passage, euler_passage, root_passage
from dyneq.systems import analytic
from dyneq.systems.adapters import from_ode

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Tallied(analytic.LinearFlow):
    """A linear flow that keeps its own tally of evaluations."""

    calls = 0

    def rhs(self, z):
        type(self).calls += 1
        return super().rhs(z) + 1.0


def stable(n, seed=0, samples=3):
    """Return matrices whose eigenvalues lie around -1, away from 0."""
    noise = torch.randn(samples, n, n, generator=seeded(seed), dtype=F64)
    return -torch.eye(n, dtype=F64) + 0.4 * noise / n**0.5


# --- Euler ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.05, 0.3, 1.2, 1.9])
def test_euler_needs_the_steps_of_the_closed_form(eps):
    """z' = -(z - 1): the residual after n steps is abs(d (1 - eps)^n)/abs(1 + d (1 - eps)^n)."""
    start = torch.tensor([[1.5], [3.7], [1.001]], dtype=F64)
    system = from_ode(lambda z: 1.0 - z, start, eps=eps)
    targets = (1e-2, 1e-5)
    found = euler_passage(system, targets, 2000)
    for j, target in enumerate(targets):
        for i, d in enumerate((start[:, 0] - 1).tolist()):
            n = 0
            while abs(d * (1 - eps) ** n) > target * abs(1 + d * (1 - eps) ** n):
                n += 1
            assert int(found.evaluations[j, i]) == n + 1
    assert found.outcome == ["reached"] * 3
    # and to within one step it is the logarithm of the ratio
    rate = -math.log(abs(1 - eps))
    expected = torch.log(start[:, 0] - 1) / rate - math.log(1e-5) / rate
    assert (found.evaluations[1] - 1 - expected.ceil()).abs().max() <= 1


@pytest.mark.parametrize("eps", [0.1, 0.4])
def test_first_passages_of_a_block_equal_a_plain_loop(build, eps):
    system = build(samples=4, gain=1.5).with_eps(eps)
    targets, budget = (1e-1, 1e-3, 1e-6), 300
    found = euler_passage(system, targets, budget)
    z, table = system.initial_state().detach(), []
    with torch.no_grad():
        for _ in range(budget):
            f = system.force(z)
            table.append(f.flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1))
            z = z + eps * f
    residuals = torch.stack(table)
    for j, target in enumerate(targets):
        for i in range(4):
            within = (residuals[:, i] <= target).nonzero().flatten()
            if len(within):
                assert int(found.evaluations[j, i]) == int(within[0]) + 1
            else:
                assert torch.isnan(found.evaluations[j, i])
    for i in range(4):
        if (
            found.outcome[i] != "reached"
        ):  # products of fewer samples round differently, which a decay of 300 steps keeps
            assert float(found.best[i]) == pytest.approx(float(residuals[:, i].min()), rel=1e-6)
            assert float(found.last[i]) == pytest.approx(float(residuals[-1, i]), rel=1e-6)
            gain = math.log10(residuals[: budget // 2, i].min() / residuals[:, i].min())
            assert float(found.gain[i]) == pytest.approx(gain, abs=1e-8)


def test_samples_left_out_on_the_way_change_nothing():
    rates = torch.tensor([1.0, 0.02, 0.5], dtype=F64)
    matrix = -rates[:, None, None]
    system = analytic.LinearFlow(matrix, torch.ones(3, 1, dtype=F64), eps=0.5)
    together = euler_passage(system, (1e-6,), 3000)
    for i in range(3):
        alone = euler_passage(system.select(torch.tensor([i])), (1e-6,), 3000)
        assert together.evaluations[0, i] == alone.evaluations[0, 0]
    assert together.spent[0] < together.spent[1]


# --- Anderson -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 6])
def test_anderson_with_enough_memory_ends_like_gmres(n):
    """Walker and Ni (2011): iterate k + 1 is a step of size eps from the k-th of GMRES, whose n-th is exact."""
    matrix = stable(n)
    system = Tallied(matrix, torch.randn(3, n, generator=seeded(1), dtype=F64), eps=0.5)
    found = anderson_passage(system, n, (1e-6,), 100)
    # evaluation 1 is at the start, so iterate n + 1 is seen at evaluation n + 2
    assert (found.evaluations <= n + 2).all()
    z0 = system.initial_state()
    for i in range(3):
        a, r = matrix[i].numpy(), (matrix[i] @ z0[i] + 1.0).numpy()
        krylov = np.stack([np.linalg.matrix_power(a, k + 1) @ r for k in range(n)], axis=1)
        root = np.linalg.norm(np.linalg.solve(a, np.ones(n)))
        for k in range(n):
            # residual of the k-th iterate of GMRES, by least squares over the Krylov space
            rk = r if k == 0 else r - krylov[:, :k] @ np.linalg.lstsq(krylov[:, :k], r, rcond=None)[0]
            after = np.linalg.norm(rk + 0.5 * a @ rk)
            if after / root > 1e-4:  # above it, no earlier evaluation can have met the target
                assert float(found.evaluations[0, i]) > k + 2


def test_anderson_counts_are_the_calls_of_the_system():
    Tallied.calls = 0
    system = Tallied(stable(12, samples=2), torch.randn(2, 12, generator=seeded(2), dtype=F64), eps=0.5)
    found = anderson_passage(system, 3, (1e-2, 1e-8), 200)
    assert (found.spent == Tallied.calls).all()
    assert found.evaluations[1].max() == Tallied.calls  # it stops as soon as the slowest is there
    assert (found.evaluations[0] <= found.evaluations[1]).all()
    Tallied.calls = 0
    again = euler_passage(system, (1e-2,), 50)
    assert again.spent.max() == Tallied.calls


# --- the root finder ------------------------------------------------------------------------------------------------


class Ledger:
    """Counts the calls that reach a block itself."""

    def __init__(self, monkeypatch, system):
        self.whole = 0.0
        self.token = 0.0
        block, samples = type(system.block), len(system.x)
        force, token_force = block.force, block.token_force

        def counted_force(this, z, x, context=None):
            self.whole += len(z) / samples
            return force(this, z, x, context)

        def counted_token_force(this, token, context, x):
            of = token_force(this, token, context, x)

            def counted(z_t):
                # columns of a Jacobian come as one call with a batch of tangents
                tangent = torch.autograd.forward_ad.unpack_dual(z_t).tangent
                self.token += (1 if tangent is None else z_t.shape[1]) * len(z_t) / samples
                return of(z_t)

            return counted

        monkeypatch.setattr(block, "force", counted_force)
        monkeypatch.setattr(block, "token_force", counted_token_force)


def test_root_finder_counts_what_reaches_the_block(build, monkeypatch):
    system = build(samples=3, tokens=5, gain=1.5)
    ledger = Ledger(monkeypatch, system)
    found = root_passage(system, (1e-2, 1e-8), 1000, depth=50, generator=seeded())
    assert found.outcome == ["reached"] * 3
    assert float(found.spent.mean()) == pytest.approx(ledger.whole + ledger.token / 5, rel=1e-12)
    assert (found.evaluations == found.spent).all()
    assert found.spent.min() > 50
    assert (found.best <= 1e-11).all()


def test_root_finder_of_a_system_without_tokens_counts_products():
    system = Tallied(stable(5, samples=2), torch.ones(2, 5, dtype=F64), eps=0.2)
    found = root_passage(system, (1e-8,), 100, depth=10, generator=seeded())
    # 10 steps and their end, Newton's forces, and Jacobians of 5 products each
    assert (found.spent >= 11 + 2 + 5).all()
    assert ((found.spent - 11) <= 40).all()
    whole = find_root(system, depth=10)
    torch.testing.assert_close(found.best, whole.residual)
