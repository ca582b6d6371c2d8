"""Relaxations at equal time, growth of displacements, and the critical step bracketed, against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from dyneq.dynamics.displaced import displacement_growth
from dyneq.dynamics.eps_sweep import run_eps, steps_at, sweep_eps
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.observed_step import observe_steps
from dyneq.dynamics.roots import find_root
from dyneq.dynamics.status import Status
from dyneq.dynamics.step_bracket import bracket_step, h_of_rate
from dyneq.errors import UsageError
from dyneq.systems import analytic
from dyneq.systems.adapters import from_map, from_ode

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def planted(mu, seed=0, skew=0.5):
    """Return a real non-normal matrix with the eigenvalues ``mu`` (pairs by their upper member)."""
    blocks = [np.array([[m.real, m.imag], [-m.imag, m.real]]) if np.imag(m) else np.array([[m.real]]) for m in mu]
    n = sum(len(b) for b in blocks)
    matrix, at = np.zeros((n, n)), 0
    for b in blocks:
        matrix[at : at + len(b), at : at + len(b)] = b
        at += len(b)
    generator = np.random.default_rng(seed)
    change = np.linalg.qr(generator.normal(size=(n, n)))[0] + skew * np.triu(generator.normal(size=(n, n)), 1) / n**0.5
    return torch.as_tensor(change @ matrix @ np.linalg.inv(change))


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.05, 0.3, 1.5])
def test_run_ends_at_equal_time_with_the_closed_form(eps):
    """z' = -(z - 1): z_n = 1 + (z_0 - 1)(1 - eps)^n, residual abs(z - 1)/z."""
    system = from_ode(lambda z: 1.0 - z, torch.tensor([[2.5], [1.5]], dtype=F64), eps=eps)
    run = run_eps(system, 10.0)
    assert run.steps == round(10.0 / eps)
    assert run.time == run.steps * eps
    assert abs(run.time - 10.0) <= eps / 2 + 1e-12
    away = torch.tensor([1.5, 0.5], dtype=F64) * (1 - eps) ** run.steps
    expected = away.abs() / (1 + away)
    torch.testing.assert_close(run.residuals.force, expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(run.residuals.step, eps * expected, rtol=1e-12, atol=1e-15)
    for row, n in zip(run.history, run.history_steps, strict=True):
        at = torch.tensor([1.5, 0.5], dtype=F64) * (1 - eps) ** n
        torch.testing.assert_close(row, at.abs() / (1 + at), rtol=1e-12, atol=1e-15)


def test_first_passage_quarters_and_mean_equal_a_plain_loop(build):
    system = build(samples=3, gain=1.5)
    run = run_eps(system, 40.0, tol=1e-3)
    z, residuals, states = system.initial_state().detach(), [], []
    with torch.no_grad():
        for _ in range(run.steps + 1):
            f = system.force(z)
            residuals.append(f.flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1))
            states.append(z)
            z = z + system.eps * f
    table, n = torch.stack(residuals), run.steps
    for i in range(3):
        within = (table[:, i] <= 1e-3).nonzero().flatten()
        assert run.first_within[i] == (int(within[0]) if len(within) else -1)
    torch.testing.assert_close(run.quarters[:, 0], table[n // 2 : 3 * n // 4].amax(0))
    torch.testing.assert_close(run.quarters[:, 1], table[3 * n // 4 :].amax(0))
    torch.testing.assert_close(run.mean, torch.stack(states[n // 2 : n]).mean(0))
    assert run.forces == n + 1
    assert len(run.history) <= 121


def test_history_is_bounded_and_tail_rate_is_the_rate():
    system = from_ode(lambda z: -0.2 * (z - 1), torch.full((1, 1), 1.001, dtype=F64), eps=0.01)
    run = run_eps(system, 60.0)
    assert len(run.history) <= 121
    # the largest residuals of two quarters are a quarter of the time apart; abs(z) moves by 1e-3
    assert float(run.tail_rate) == pytest.approx(-math.log(1 - 0.002) / 0.01, rel=1e-3)


def test_overflow_of_one_sample_leaves_the_others():
    system = analytic.FlipFlow(z0=torch.tensor([[0.5], [20.0]], dtype=F64), eps=0.05)
    runs = sweep_eps(system, [0.01, 0.05], 20.0)
    for run in runs:
        assert run.status == [Status.CONVERGED, Status.DIVERGED]


def test_a_step_that_vanishes_is_absorbed_and_costs_nothing():
    system = from_ode(lambda z: 1.0 - z, torch.full((1, 1), 3.0, dtype=F64))
    tiny, usual = sweep_eps(system, [1e-18, 0.5], 40.0)
    assert tiny.status == [Status.ABSORBED]
    assert tiny.forces <= 2
    assert usual.status == [Status.CONVERGED]
    with pytest.raises(UsageError, match="raise eps"):
        sweep_eps(system, [1e-9, 0.5], 40.0)


def test_maps_have_no_eps():
    with pytest.raises(UsageError, match="map"):
        sweep_eps(from_map(lambda z: z / 2, torch.ones(1, 1, dtype=F64)), [0.1], 10.0)


def test_a_step_longer_than_the_horizon_is_one_step():
    assert steps_at(0.1, 0.5) == 1


# --- growth of displacements ----------------------------------------------------------------------------------------

SPECTRA = {
    "pair leads": [-0.3 + 2.5j, -1.0, -2.0 + 1.0j],
    "slow real, fast pair": [-0.05, -0.4 + 3.0j, -2.0],
    "stiff real": [-0.5 + 0.2j, -18.0, -6.0],
    "unstable pair": [0.1 + 1.0j, -1.0, -1.5],
    "slow rotation": [-0.1 + 0.03j, -0.7, -0.9 + 0.4j],
    "two pairs alike": [-0.30 + 2.5j, -0.31 + 2.4j, -1.0],
}


@pytest.mark.parametrize("eps", [0.02, 0.1, 0.25])
@pytest.mark.parametrize("name", SPECTRA)
def test_growth_of_planted_spectra(name, eps):
    mu = np.array(SPECTRA[name])
    system = analytic.LinearFlow(planted(mu)[None].repeat(2, 1, 1))
    # the root is 0 and sizes are relative to a thousandth of the start
    root = torch.zeros_like(system.initial_state())
    growth = displacement_growth(system, root, torch.full((2,), eps), 80.0, generator=seeded())
    expected = math.log(np.abs(1 + eps * mu).max())
    assert (growth.low <= expected).all()
    assert (growth.high >= expected).all()
    # the bounds are close enough to tell the sign
    assert (torch.sign(growth.low) == math.copysign(1, expected)).all()
    assert (torch.sign(growth.high) == math.copysign(1, expected)).all()
    assert (growth.rate - expected).abs().max() <= 0.1 * abs(expected)


def test_every_sample_has_its_own_step():
    system = analytic.LinearFlow(planted([-0.3 + 2.5j, -1.0])[None].repeat(3, 1, 1))
    eps = torch.tensor([0.01, 0.09, 0.4], dtype=F64)
    growth = displacement_growth(system, torch.zeros(3, 3, dtype=F64), eps, 80.0, generator=seeded())
    expected = (1 + eps * (-0.3 + 2.5j)).abs().log()
    torch.testing.assert_close(growth.rate[:, 0], expected, rtol=1e-3, atol=0.0)
    assert ((growth.low[:, 0] <= expected) & (expected <= growth.high[:, 0])).all()


@pytest.mark.parametrize("seed", range(6))
def test_growth_of_tokens_is_that_of_their_blocks(build, seed):
    system = build(seed=seed, samples=2, gain=1.5)
    roots = find_root(system)
    assert roots.found.all()
    mu = torch.linalg.eigvals(Linearization(system, roots.z).token_blocks())
    for eps in (0.1, 0.6):
        growth = displacement_growth(system, roots.z, torch.full((2,), eps), 80.0, generator=seeded(seed))
        expected = (1 + eps * mu).abs().amax(2).log()
        assert ((growth.low <= expected) & (expected <= growth.high)).all()
        # one number a sample: that of its fastest token, and of the dense whole
        whole = torch.linalg.eigvals(Linearization(system, roots.z).dense())
        radius = (1 + eps * whole).abs().amax(1).log()
        assert ((growth.low.amax(1) <= radius + 1e-6) & (radius - 1e-6 <= growth.high.amax(1))).all()


def test_curvature_does_not_bias_the_growth():
    """A root with strong curvature: z' = -z + z^2 - 5 z^3 has J = -1 at 0."""
    system = from_ode(lambda z: -z + z**2 - 5 * z**3, torch.full((1, 1), 0.4, dtype=F64))
    growth = displacement_growth(system, torch.zeros(1, 1, dtype=F64), torch.tensor([0.1]), 80.0, generator=seeded())
    assert float(growth.rate) == pytest.approx(math.log(0.9), abs=1e-7)
    assert float(growth.low) <= math.log(0.9) <= float(growth.high)


def test_multiplier_zero_and_defective_blocks():
    gone = analytic.LinearFlow(-10 * torch.eye(3, dtype=F64), torch.ones(1, 3, dtype=F64))
    growth = displacement_growth(gone, torch.zeros(1, 3, dtype=F64), torch.tensor([0.1]), 10.0, generator=seeded())
    assert float(growth.high.max()) < -15  # all of it within rounding
    defective = analytic.Jordan(size=4, decay=-1.0, coupling=1.0, z0=torch.ones(1, 4, dtype=F64))
    growth = displacement_growth(defective, torch.zeros(1, 4, dtype=F64), torch.tensor([0.1]), 80.0, generator=seeded())
    assert float(growth.low) <= math.log(0.9) <= float(growth.high)


def test_single_precision_knows_its_error():
    system = analytic.LinearFlow(planted([-0.3 + 2.5j, -1.0]).float())
    system._z0 = system._z0.float()
    root = torch.zeros_like(system.initial_state())
    growth = displacement_growth(system, root, torch.full((4,), 0.2), 80.0, generator=seeded())
    expected = math.log(abs(1 + 0.2 * (-0.3 + 2.5j)))
    assert (growth.low <= expected).all()
    assert (growth.high >= expected).all()
    assert (growth.low > 0).all()


# --- the bracket ----------------------------------------------------------------------------------------------------


def h_of(mu, eps):
    return (2 * mu.real + eps[:, None] * np.abs(mu) ** 2).max(1)


@pytest.mark.parametrize("seed", range(40))
def test_bracket_holds_the_critical_step_of_any_spectrum(seed):
    generator = np.random.default_rng(seed)
    mu = -generator.exponential(1.0, 6) + 1j * generator.normal(0, 3, 6)
    critical = (-2 * mu.real / np.abs(mu) ** 2).min()
    eps = np.sort(critical * np.exp(generator.normal(0, 0.7, generator.integers(1, 6))))
    h = h_of(mu, eps)
    for error in (0.0, 0.05, 0.3):
        off = error * np.abs(h) * generator.uniform(-1, 1, len(h))  # measured values, with honest bars
        found = bracket_step(eps, h + off - error * np.abs(h), h + off + error * np.abs(h))
        assert found.low <= critical * (1 + 1e-9)
        assert critical * (1 - 1e-9) <= found.high
        assert not found.flow_unstable


def test_bracket_closes_in():
    mu = np.array([-0.1 + 0.5j, -0.6 + 3.0j, -9.0])
    critical = (-2 * mu.real / np.abs(mu) ** 2).min()
    eps = np.array([0.05, 0.5])
    for _ in range(6):
        h = h_of(mu, eps)
        found = bracket_step(eps, h - 1e-9, h + 1e-9)
        if (step := found.next_step()) is None:
            break
        eps = np.append(eps, step)
    assert found.closed
    assert found.narrow
    assert found.low <= critical <= found.high
    assert len(eps) <= 6


def test_unstable_flow_is_seen_from_two_steps():
    mu = np.array([0.05 + 2.0j, -1.0])
    eps = np.array([0.05, 0.1])
    found = bracket_step(eps, h_of(mu, eps), h_of(mu, eps))
    assert found.flow_unstable
    assert found.next_step() is None
    stable = np.array([-0.05 + 2.0j, -1.0])  # unstable at both steps, but its flow is not
    found = bracket_step(eps, h_of(stable, eps), h_of(stable, eps))
    assert not found.flow_unstable
    assert found.high == pytest.approx(0.1 / (0.05**2 + 4), rel=1e-9)


def test_nothing_measured_says_nothing():
    found = bracket_step(np.array([0.1]), np.array([-np.inf]), np.array([np.inf]))
    assert (found.low, found.high) == (0.0, np.inf)
    assert not found.known
    assert found.next_step() is None
    assert h_of_rate(np.array([np.inf]), np.array([0.1]))[0] == np.inf


# --- the critical step as observed ----------------------------------------------------------------------------------


def observed(system, root, eps, **options):
    options = {"horizon": 80.0, "rounds": 4, "generator": seeded(), **options}
    return observe_steps(system, root, eps, options.pop("horizon"), **options)


@pytest.mark.parametrize(("a", "b"), [(-0.1, 1.0), (-0.4, 0.3), (-0.02, 0.5)])
def test_observed_step_of_the_hopf_normal_form(a, b):
    system = analytic.HopfNormalForm(a, b, eps=0.1)
    root = torch.zeros_like(system.initial_state())
    found = observed(system, root, [0.05, 0.5, 2.0, 5.0])
    for bracket in found.brackets:
        assert bracket.low <= system.critical_step <= bracket.high
        assert bracket.narrow


def test_observed_step_of_a_flip():
    system = analytic.FlipFlow()
    found = observed(system, torch.zeros_like(system.initial_state()), [0.05, 0.1, 0.2])
    for bracket in found.brackets:
        assert bracket.low <= system.critical_step <= bracket.high
        assert bracket.narrow


def test_critical_step_below_all_steps_given_is_found():
    system = analytic.FlipFlow(rate=-2000.0, eps=1e-4)
    found = observed(system, torch.zeros_like(system.initial_state()), [0.05, 0.1])
    for bracket in found.brackets:
        assert bracket.low <= 1e-3 <= bracket.high
        assert bracket.narrow


def test_an_unstable_flow_has_none():
    system = analytic.StuartLandau(r=0.1)
    found = observed(system, torch.zeros_like(system.initial_state()), [0.05, 0.1, 0.5])
    assert all(b.flow_unstable for b in found.brackets)
    assert (found.low > 0).all()


@pytest.mark.parametrize("seed", [0])
def test_whole_relaxation_leaves_above_and_returns_below(build, seed):
    """The step observed token by token is that of the plain relaxation of the whole, by a plain loop."""
    system = build(seed=seed, samples=2, gain=1.5)
    roots = find_root(system)
    found = observed(system, roots.z, [0.1, 0.5, 1.0, 2.0])
    with torch.no_grad():
        for i, bracket in enumerate(found.brackets):
            assert bracket.closed
            part, root = system.select(torch.tensor([i])), roots.z[i : i + 1]
            sizes = {}
            for factor in (0.97, 1.03):
                push = torch.randn(root.shape, generator=seeded(1), dtype=F64)
                z = root + 1e-7 * push
                track = []
                for _ in range(1200):
                    z = z + factor * 0.5 * (bracket.low + bracket.high) * part.force(z)
                    track.append(float((z - root).norm()))
                sizes[factor] = track
            assert sizes[0.97][-1] < 1e-3 * max(sizes[0.97][:100])
            assert sizes[1.03][-1] > 1e3 * sizes[1.03][0]


def test_planted_matrix_helper_plants():
    matrix = planted([-0.3 + 2.5j, -1.0]).numpy()
    values = np.linalg.eigvals(matrix)
    assert np.abs(np.sort_complex(values) - np.sort_complex(np.array([-1.0, -0.3 + 2.5j, -0.3 - 2.5j]))).max() < 1e-12
    assert np.abs(np.linalg.eigvals(expm(matrix))).max() == pytest.approx(math.exp(-0.3))
