"""Roots followed through a parameter, where they end, and where they lose their stability."""

import math

import numpy as np
import pytest
import torch

import dyneq
from dyneq.dynamics.block_newton import SubstitutionDirection
from dyneq.dynamics.continuation import follow_root
from dyneq.dynamics.crossing import Kind, locate_crossing
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.newton import columns_by_jvp
from dyneq.dynamics.normal_form import Criticality
from dyneq.dynamics.root_pairs import root_pairs
from dyneq.dynamics.roots import find_root
from dyneq.dynamics.stepping import Stepper
from dyneq.dynamics.subsystem import TokenSystem
from dyneq.errors import UsageError
from dyneq.systems import analytic
from dyneq.systems.adapters import from_map, from_ode

F64 = torch.float64


def crossing_between(family, branch, k, sample=0):
    ends = {float(branch.alphas[j]): branch.z[j, sample : sample + 1] for j in (k, k + 1)}
    return locate_crossing(family, sample, ends)


@pytest.mark.parametrize("a", [0.5, 1.0, 2.0])
def test_brusselator_family(a):
    z0 = torch.tensor([[a, 1.0], [a, 1.5]], dtype=F64)

    def family(b):
        return analytic.Brusselator(a, b, z0)

    grid = [0.4, 0.9, 1.5 + a * a, 2.2 + a * a]
    branch = follow_root(family, grid, torch.tensor([[a, 0.9 / a]], dtype=F64).expand(2, 2).clone(), anchor=1)
    assert branch.found.all()
    assert not branch.losses
    expected = torch.tensor([[a, b / a] for b in grid], dtype=F64)
    torch.testing.assert_close(branch.z, expected[:, None].expand(4, 2, 2), rtol=0, atol=1e-12)
    found = crossing_between(family, branch, 1, sample=1)
    system = family(1.0)
    assert found.kind is Kind.HOPF
    assert (found.sample, found.token) == (1, -1)
    assert abs(found.alpha - system.hopf_b) <= found.alpha_error < 1e-8
    assert abs(found.frequency - system.hopf_frequency) <= found.frequency_error + 1e-15 < 1e-8
    assert abs(found.normal_form.c1.real - system.hopf_cubic) <= found.coefficient_error < 1e-7
    assert found.criticality is Criticality.SUPERCRITICAL
    # trace/2 = (B - 1 - A^2)/2: the margin rises by 1/2 per unit of B; the secant's error is of the order of its width
    assert found.slope == pytest.approx(0.5, abs=1e-3)


def test_fitzhugh_nagumo_family_has_both_hopf_points():
    z0 = torch.tensor([[-1.0, -0.5]], dtype=F64)

    def family(current):
        return analytic.FitzHughNagumo(current, z0=z0)

    branch = follow_root(family, [0.0, 0.8, 1.8], z0)
    for k, expected in enumerate((0.3312813375, 1.4187186625)):
        found = crossing_between(family, branch, k)
        assert abs(found.alpha - family(0.0).hopf_currents[k]) <= found.alpha_error < 1e-8
        assert found.alpha == pytest.approx(expected, abs=1e-10)
        assert found.frequency == pytest.approx(0.2755068057, abs=1e-10)
        assert found.kind is Kind.HOPF
        assert found.criticality is Criticality.SUBCRITICAL


def test_branch_that_ends_in_a_fold_says_so():
    """r + z^2: the root -sqrt(-r) meets +sqrt(-r) at r = 0, and the square of its eigenvalue is -4 r."""
    start = torch.tensor([[-1.0]], dtype=F64)

    def first(r):
        return from_ode(lambda z: r + z * z, start, eps=0.01)

    branch = follow_root(first, [-1.0, -0.3, 0.1, 0.5], start)
    assert branch.found[:, 0].tolist() == [True, True, False, False]
    assert torch.isnan(branch.z[2:]).all()
    (loss,) = branch.losses
    assert abs(loss.fold) <= loss.error <= 0.4 / 2**14
    assert loss.alpha < 0 <= loss.beyond + loss.error
    torch.testing.assert_close(branch.z[:2, 0, 0], -torch.tensor([1.0, 0.3], dtype=F64).sqrt(), rtol=0, atol=1e-12)


def test_only_the_sample_whose_branch_ends_is_lost():
    shift = torch.tensor([0.0, 2.0, 0.25], dtype=F64)

    class Folds(analytic.AnalyticFlow):
        def __init__(self, r, rows=(0, 1, 2)):
            super().__init__(1, torch.full((len(rows), 1), -1.0, dtype=F64), 0.01)
            self.r, self.rows = r, list(rows)

        def rhs(self, z):
            return self.r - shift[self.rows][:, None] + z * z

        def select(self, samples):
            return Folds(self.r, [self.rows[i] for i in samples.tolist()])

    branch = follow_root(Folds, [-1.0, -0.5, 0.2, 1.0], torch.full((3, 1), -1.0, dtype=F64))
    assert branch.found.T.tolist() == [[True, True, False, False], [True] * 4, [True, True, True, False]]
    folds = {loss.sample: loss.fold for loss in branch.losses}
    assert set(folds) == {0, 2}
    assert all(abs(folds[s] - float(shift[s])) <= next(x.error for x in branch.losses if x.sample == s) for s in folds)
    assert float(branch.z[3, 1, 0]) == pytest.approx(-1.0, abs=1e-12)


def test_a_branch_is_not_left_for_another_across_a_fold():
    """z - z^3 + r: the lower root folds at r = 2/(3 sqrt 3), where only the far upper one is left."""
    start = torch.tensor([[-1.0]], dtype=F64)
    branch = follow_root(lambda r: from_ode(lambda z: z - z**3 + r, start, eps=0.01), [0.0, 0.3, 0.6], start)
    assert branch.found[:, 0].tolist() == [True, True, False]
    assert abs(branch.losses[0].fold - 2 / (3 * math.sqrt(3))) <= branch.losses[0].error


def test_real_eigenvalue_crossing_on_a_branch_that_goes_on():
    """r y - y^3 (pitchfork) and r y - y^2 (transcritical), seen from the root y = 0, with y = z - wander sin r."""
    for power, wander in ((3, 0.0), (2, 0.0), (3, 0.7), (2, 0.7)):
        start = torch.full((1, 1), wander * math.sin(-0.3), dtype=F64)

        def family(r, power=power, wander=wander):
            y = wander * math.sin(r)
            return from_ode(lambda z: r * (z - y) - (z - y) ** power, torch.ones(1, 1, dtype=F64), eps=0.01)

        branch = follow_root(family, [-0.3, 0.45], start)
        found = crossing_between(family, branch, 0)
        assert found is not None
        assert found.kind is Kind.REAL
        assert abs(found.alpha) <= found.alpha_error < 2e-3
        assert not found.normal_form.known
        assert "none" in found.normal_form.reason
        assert found.criticality is Criticality.UNDETERMINED


def test_kinds_of_a_map():
    angle = 0.7
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=F64)
    start = torch.zeros(1, 2, dtype=F64)
    cases = ((turn, Kind.NEIMARK_SACKER, angle), (-torch.eye(2, dtype=F64), Kind.FLIP, math.pi))
    for matrix, kind, frequency in cases:

        def family(r, matrix=matrix):
            return from_map(lambda z: r * z @ matrix.T - z**3, start + 0.1)

        branch = follow_root(family, [0.7, 1.2], start)
        found = crossing_between(family, branch, 0)
        assert found.kind is kind
        assert abs(found.alpha - 1) <= found.alpha_error < 1e-8
        assert found.frequency == pytest.approx(frequency, abs=1e-9)
        assert not found.normal_form.known
        assert math.isnan(found.coefficient_error)


def test_wrong_grids_and_brackets_are_errors_in_words():
    start = torch.full((1, 1), -1.0, dtype=F64)

    def family(r):
        return from_ode(lambda z: r * z, start)

    for grid in ([], [1.0, 0.5], [0.0, math.nan], [1.0, 1.0]):
        with pytest.raises(UsageError, match="increasing finite values"):
            follow_root(family, grid, start)
    with pytest.raises(UsageError, match="index 0 to 1"):
        follow_root(family, [0.0, 1.0], start, anchor=2)
    zero = torch.zeros(1, 1, dtype=F64)
    with pytest.raises(UsageError, match="opposite signs"):
        locate_crossing(family, 0, {-2.0: zero, -1.0: zero})
    with pytest.raises(UsageError, match="two values"):
        locate_crossing(family, 0, {-2.0: zero})


def test_directions_of_a_block_solve_its_whole_jacobian(build):
    system = build(gain=2.0)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 5, 8, generator=generator, dtype=F64)
    f = torch.randn(3, 40, generator=generator, dtype=F64)
    direction = SubstitutionDirection(system)
    direction.refresh(z.flatten(1))
    exact = torch.linalg.solve(columns_by_jvp(lambda y: system.force(y.view_as(z)).flatten(1))(z.flatten(1)), -f)
    found = direction.solve(f)
    # sweeps end where a step is a hundredth of the direction; Newton's method repeats them
    assert float((found - exact).detach().norm() / exact.detach().norm()) < 0.05
    torch.testing.assert_close(direction.verify(f), found)


def test_block_roots_agree_with_substitution_and_pairs_with_dense_algebra(build):
    system = build(gain=0.8)
    roots = find_root(system)
    assert bool(roots.found.all())
    grid = [0.0, 0.3, 0.7, 1.0]
    branch = follow_root(lambda a: system.scaled("attention", a), grid, roots.z, anchor=3)
    lost = {loss.sample for loss in branch.losses}
    assert len(lost) < 3
    assert set(np.nonzero(~branch.found.all(0))[0].tolist()) == lost
    assert np.nanmax(branch.residual) < 1e-12
    torch.testing.assert_close(branch.z[3], roots.z, rtol=0, atol=1e-10)
    for k, alpha in enumerate(grid):
        there = torch.as_tensor(branch.found[k]).nonzero().flatten()
        part, z = system.scaled("attention", alpha).select(there), branch.z[k, there]
        assert float(part.force(z).detach().norm()) < 1e-11
        pairs = root_pairs(part, z, generator=torch.Generator().manual_seed(0))
        mu = torch.linalg.eigvals(Linearization(part, z).token_blocks())
        for s in range(len(there)):
            t = int(pairs.token[s])
            assert pairs.margin[s] == pytest.approx(float(mu[s].real.max()), abs=1e-9)
            nearest = (mu[s, t] - complex(pairs.mu[s])).abs().min()
            assert float(nearest) <= pairs.error[s] + 1e-12
            assert pairs.error[s] < 1e-8


@pytest.fixture(scope="module")
def after():
    """Sample 16 of the packaged checkpoint that does not settle, its root, and the family of its attention."""
    system = dyneq.open_checkpoint("after").bind(batch=24).select(torch.tensor([16]))
    return system, find_root(system)


def located(after):
    system, roots = after

    def family(alpha):
        return system.scaled("attention", alpha)

    branch = follow_root(family, [0.8, 1.0], roots.z, anchor=1)
    return family, branch, crossing_between(family, branch, 0)


def test_attention_of_a_checkpoint_has_a_critical_strength(after):
    """Against eigenvalues of the token block, by LAPACK on an autograd Jacobian, just beside the critical value."""
    family, branch, found = located(after)
    first = root_pairs(family(1.0), branch.z[1], generator=torch.Generator().manual_seed(0))
    assert complex(first.mu[0]) == pytest.approx(0.178 + 2.939j, abs=2e-3)
    assert first.token[0] == found.token == 13
    assert found.kind is Kind.HOPF
    assert 0.8 < found.alpha < 1.0
    assert found.alpha_error < 1e-8

    def rightmost(alpha, z):
        one = TokenSystem(family(alpha), z, [0], [13])
        return np.linalg.eigvals(columns_by_jvp(one.force)(z[:, 13])[0].detach().numpy())

    mu = rightmost(found.alpha, found.z)
    lead = mu[mu.imag > 0][mu.real[mu.imag > 0].argmax()]
    assert abs(lead.real) < 1e-9
    assert lead.imag == pytest.approx(found.frequency, abs=1e-9)
    # all other tokens are stable there
    blocks = Linearization(family(found.alpha), found.z).token_blocks()[0]
    others = torch.linalg.eigvals(torch.cat([blocks[:13], blocks[14:]])).real.max()
    assert float(others) < -1e-3
    assert abs(found.normal_form.c1.real) > 100 * found.coefficient_error


@pytest.mark.slow
def test_amplitude_beyond_the_critical_value_is_what_the_coefficient_says(after):
    """abs(z)^2 = -Re mu/Re c1: the cycle of token 13 simulated at three distances, with the error of the next order.

    The relative deviation of amplitude^2 / prediction is linear in the distance, so it halves with it.
    """
    family, _, found = located(after)
    assert found.criticality is Criticality.SUPERCRITICAL
    c1, deviations = found.normal_form.c1.real, []
    for distance in (1.6e-2, 8e-3, 4e-3):
        alpha = found.alpha + distance
        near = follow_root(family, [found.alpha, alpha], found.z)
        z = near.z[1]
        token = TokenSystem(family(alpha), z, [0], [13])
        matrix = columns_by_jvp(token.force)(z[:, 13])[0].detach().numpy()
        values, right = np.linalg.eig(matrix)
        at = np.argmin(np.abs(values - 1j * found.frequency))
        rate, q = values[at].real, right[:, at] / np.linalg.norm(right[:, at])
        left = np.linalg.eig(matrix.T)
        p = left[1][:, np.argmin(np.abs(left[0] - values[at]))]
        p = p / (p @ q)  # p^T q = 1
        predicted = math.sqrt(-rate / c1)
        # 0.7 of the predicted amplitude to begin with, and long enough for exp(-2 rate t) to be small
        y = z[:, 13] + torch.as_tensor(2 * (0.7 * predicted * q).real)[None]
        stepper = Stepper(token, "rk4", 0.05)
        for _ in range(int(5 / rate / 0.05)):
            y = stepper.advance(y)
        amplitude = []
        for _ in range(int(20 * math.pi / found.frequency / 0.05)):
            y = stepper.advance(y)
            amplitude.append(abs(p @ (y - z[:, 13])[0].numpy()))
        deviations.append(np.mean(amplitude) ** 2 / predicted**2 - 1)
    assert abs(deviations[2]) < 0.01
    assert deviations[1] / deviations[0] == pytest.approx(0.5, abs=0.15)
    assert deviations[2] / deviations[1] == pytest.approx(0.5, abs=0.15)
