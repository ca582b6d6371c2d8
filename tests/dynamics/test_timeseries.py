"""Decay laws, real-valued periods, stationary amplitudes and the 0-1 test, against series with known answers."""

import math

import numpy as np
import pytest
import torch

from dyneq.dynamics.chaos import oscillation_time, zero_one
from dyneq.dynamics.decay import DecayKind, classify_decay
from dyneq.dynamics.harmonics import fit_periodic
from dyneq.dynamics.monitor import observe
from dyneq.dynamics.period import measure_oscillation
from dyneq.systems import analytic
from dyneq.systems.adapters import from_ode

F64 = torch.float64
STEP = np.arange(16.0, 6001, 16)


def classify(values, **options):
    return classify_decay(STEP, values, **{"tol": 1e-6, "rounding": 2.2e-16, **options})


def decay_of(system, steps, sample=0):
    past = observe(system, system.initial_state(), steps).history
    high = past.residual_max[:, sample].numpy()
    return classify_decay((past.start + past.count).numpy(), high, tol=1e-6, rounding=2.2e-16)


# --- decay ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0005, 0.002, 0.01])
def test_an_exponential_has_its_rate(rate):
    found = classify(3 * np.exp(-rate * STEP))
    assert found.kind is DecayKind.EXPONENTIAL
    assert abs(found.rate - rate) <= 3 * found.rate_error + 1e-12
    assert found.falling
    assert found.settled == (3 * math.exp(-rate * 5400) <= 1e-6)


def test_an_exponential_says_how_many_steps_are_left():
    found = classify(3 * np.exp(-0.001 * STEP))
    tail = 3 * math.exp(-0.001 * STEP[STEP >= 5400][0])
    assert found.steps_to(1e-6, 6000) == pytest.approx(math.log(tail / 1e-6) / 0.001, rel=1e-6)


@pytest.mark.parametrize("wave", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_rate_of_an_oscillating_envelope_is_within_its_error(wave, seed):
    rng = np.random.default_rng(seed)
    n = np.arange(6000)
    series = np.exp(-0.002 * n) * (1 + wave * np.cos(2 * np.pi * n / rng.uniform(20, 60) + rng.uniform(0, 6)))
    found = classify(np.maximum.reduceat(series, np.arange(0, 6000, 16))[: len(STEP)])
    assert found.kind is DecayKind.EXPONENTIAL
    assert abs(found.rate - 0.002) <= 3 * found.rate_error
    assert found.rate_error < 1e-4


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("offset", [1.0, 30.0])
def test_a_power_law_has_its_exponent(power, offset):
    found = classify((STEP + offset) ** -power)
    assert found.kind is DecayKind.POWER_LAW
    assert found.exponent == pytest.approx(power, abs=3 * found.exponent_error + 1e-6)


@pytest.mark.parametrize(
    ("force", "power"), [(lambda z: -(z**3), 1.0), (lambda z: -((z - 1) ** 2), 2.0)], ids=["cubic", "fold"]
)
def test_marginal_roots_decay_as_powers(force, power):
    """z' = -z^3: z ~ (2 t)^-1/2, norm(F)/norm(z) = z^2 ~ t^-1. z' = -y^2: y ~ 1/t, the force ~ t^-2.

    Euler's step adds a term ln(t)/t to both (its modified equation), which is ln(600)/600 = 1e-2 at the end.
    """
    found = decay_of(from_ode(force, torch.tensor([[2.0]], dtype=F64), eps=0.1), 6000)
    assert found.kind is DecayKind.POWER_LAW
    assert found.exponent == pytest.approx(power, abs=1e-2 * power)


@pytest.mark.parametrize(("a", "b", "eps"), [(-0.3, 2.4, 0.0975), (-0.05, 1.0, 0.02), (-0.2, 0.2, 0.05)])
def test_a_spiral_decays_at_the_rate_of_its_multiplier(a, b, eps):
    matrix = torch.tensor([[a, -b], [b, a]], dtype=F64)
    system = from_ode(lambda z: (z - 1) @ matrix.mT, torch.tensor([[1.2, 1.1]], dtype=F64), eps=eps)
    found = decay_of(system, 6000)
    exact = -math.log(abs(1 + eps * complex(a, b)))
    assert found.kind is DecayKind.EXPONENTIAL
    # norm(z) itself moves by a tenth at first, which is in the error
    assert abs(found.rate - exact) <= 3 * found.rate_error


def test_several_modes_are_no_power_law():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rates = rng.uniform(0.0003, 0.02, 6)
        found = classify((rng.uniform(0.1, 1, 6)[:, None] * np.exp(-rates[:, None] * STEP)).sum(0))
        assert found.kind is not DecayKind.POWER_LAW
        assert found.kind is not DecayKind.PLATEAU
        assert found.rate >= rates.min() * 0.9


def test_a_plateau_has_its_level_also_where_it_is_come_down_to():
    flat = classify(np.full_like(STEP, 0.02))
    assert flat.kind is DecayKind.PLATEAU
    assert flat.level == pytest.approx(0.02)
    assert not flat.falling
    down = classify(1e-3 + np.exp(-0.004 * STEP))
    assert down.kind is DecayKind.PLATEAU
    assert down.level == pytest.approx(1e-3, rel=1e-2)


def test_growth_and_floors():
    assert classify(1e-4 * np.exp(0.001 * STEP)).kind is DecayKind.GROWTH
    rng = np.random.default_rng(0)
    floor = classify(3e-16 * (1 + rng.random(len(STEP))))
    assert floor.kind is DecayKind.CONVERGED
    assert floor.settled
    down = classify(np.exp(-0.02 * STEP) + 3e-16 * (1 + rng.random(len(STEP))))
    assert down.settled
    assert down.kind is DecayKind.EXPONENTIAL
    assert down.rate == pytest.approx(0.02, rel=1e-2)


def test_what_falls_by_less_than_a_decade_is_given_no_law():
    found = classify(np.exp(-0.0001 * STEP))
    assert found.kind is DecayKind.UNDETERMINED
    assert found.falling
    assert math.isnan(found.steps_to(1e-6, 6000))
    assert "too few" in classify_decay(STEP[:5], STEP[:5], tol=1e-6, rounding=2e-16).reason


def test_a_ghost_is_a_plateau_or_undetermined_but_no_exponential():
    """z' = r + (z - 2)^2 slows down for pi/sqrt(r) and then escapes: no law may be named over it but the way in."""
    for r, steps in ((1e-3, 900), (1e-4, 2500), (1e-4, 1500), (1e-5, 6000)):
        found = decay_of(from_ode(lambda z, r=r: r + (z - 2) ** 2, torch.tensor([[1.0]], dtype=F64)), steps)
        assert found.kind not in (DecayKind.EXPONENTIAL, DecayKind.CONVERGED)


# --- period --------------------------------------------------------------------------------------------------------


def projections(signal, seed=0):
    """Return a signal [row, dim] on 8 random unit vectors."""
    rng = np.random.default_rng(seed)
    d = rng.standard_normal((signal.shape[1], 8))
    return signal @ (d / np.linalg.norm(d, axis=0))


@pytest.mark.parametrize("period", [2.7182818, 5.61, 12.3456789, 62.8, 333.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_irrational_periods_to_many_digits(period, seed):
    n = np.arange(4096)
    a = 2 * np.pi * n / period
    x = np.stack([np.cos(a), np.sin(a) + 0.2 * np.cos(2 * a), np.exp(np.sin(a))], 1)
    found = measure_oscillation(projections(x, seed))
    assert found.period == pytest.approx(period, rel=1e-9)
    assert abs(found.period - period) <= 5 * found.period_error + 1e-12 * period
    assert found.misfit < 1e-6
    assert found.stationary
    assert found.lock == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_error_bar_of_a_noisy_period_holds(seed):
    rng = np.random.default_rng(seed)
    n = np.arange(4096)
    x = np.stack([np.cos(2 * np.pi * n / 31.7), np.sin(2 * np.pi * n / 31.7)], 1)
    found = measure_oscillation(projections(x + 0.1 * rng.standard_normal(x.shape), seed))
    assert abs(found.period - 31.7) <= 4 * found.period_error
    assert 1e-6 < found.period_error < 0.01


def test_the_period_is_the_fundamental_one_where_a_harmonic_is_stronger():
    a = 2 * np.pi * np.arange(4096) / 80.3
    x = np.stack([np.cos(2 * a) + 0.2 * np.cos(a), np.sin(2 * a)], 1)
    assert measure_oscillation(x).period == pytest.approx(80.3, rel=1e-7)


@pytest.mark.parametrize("lock", [2, 3, 5, 12])
def test_orbits_that_close_are_exact(lock):
    orbit = np.random.default_rng(lock).standard_normal((lock, 3))
    found = measure_oscillation(projections(np.tile(orbit, (400, 1))[:1000]))
    assert found.period == found.lock == lock
    assert found.period_error == 0
    assert found.recurrence < 1e-12


@pytest.mark.parametrize("eps", [0.3, 0.4, 0.9])
def test_the_circle_of_an_euler_map_turns_by_the_angle_of_theory(eps):
    """2 pi/asin(eps b) steps; the circle's radius too, REFERENCE.md."""
    system = analytic.HopfNormalForm(-0.1 if eps < 0.5 else -0.3, eps=eps)
    one = system.select(torch.tensor([0]))
    settled = observe(one, one.initial_state(), 3000).z
    record = observe(one, settled, 2000, window=2000)
    found = measure_oscillation(record.projections[:, 0].numpy())
    assert found.period == pytest.approx(2 * math.pi / system.rotation, rel=1e-10)
    # the mean over a number of turns that is not whole is off by about a radius over their number
    assert float(record.spread[0]) == pytest.approx(system.circle_radius, rel=(found.periods) ** -2 * 10)


def test_rows_at_a_distance_give_the_same_period():
    a = 2 * np.pi * np.arange(12000) / 412.7
    x = np.stack([np.cos(a) ** 3, np.sin(a)], 1)
    assert measure_oscillation(x[::5], 5).period == pytest.approx(412.7, rel=1e-8)


@pytest.mark.parametrize("rate", [1e-6, 1e-5, 1e-4, 1e-3])
def test_a_decaying_spiral_is_not_stationary(rate):
    """Trap 14: an autocorrelation sees it as periodic."""
    n = np.arange(6000)
    a = 2 * np.pi * n / 24.7
    x = np.exp(-rate * n)[:, None] * np.stack([np.cos(a), np.sin(a)], 1)
    found = measure_oscillation(projections(x))
    assert found.period == pytest.approx(24.7, rel=1e-3)
    assert not found.stationary
    assert found.fading
    assert found.trend == pytest.approx(-6000 * rate, rel=0.02)


def test_fewer_than_ten_periods_are_never_stationary():
    a = 2 * np.pi * np.arange(900) / 100.3
    found = measure_oscillation(np.stack([np.cos(a), np.sin(a)], 1))
    assert found.period == pytest.approx(100.3, rel=1e-6)
    assert found.periods == pytest.approx(899 / 100.3)
    assert not found.stationary


def test_constants_drifts_and_short_records_have_no_period():
    assert math.isnan(measure_oscillation(np.ones((100, 3))).period)
    assert math.isnan(measure_oscillation(np.random.default_rng(0).standard_normal((10, 3))).period)
    drift = measure_oscillation(np.linspace(0, 1, 2000)[:, None])
    assert drift.drift > 1
    assert not drift.stationary
    tiny = measure_oscillation(1e-16 * np.random.default_rng(0).standard_normal((500, 2)), noise=1e-16)
    assert math.isnan(tiny.period)
    assert fit_periodic(np.zeros((100, 2))) is None


def test_a_torus_is_stationary_but_not_periodic():
    n = np.arange(6000)
    a, b = 2 * np.pi * n / 24.7, 2 * np.pi * n / (24.7 * math.sqrt(2))
    found = measure_oscillation(projections(np.stack([np.cos(a), np.sin(a), 0.5 * np.cos(b), 0.5 * np.sin(b)], 1)))
    assert found.period == pytest.approx(24.7, rel=1e-3)
    # the second frequency holds 0.2 of the variance
    assert found.misfit == pytest.approx(math.sqrt(0.2), abs=0.2)
    assert found.stationary


# --- 0-1 test ------------------------------------------------------------------------------------------------------


def k_of(x, **options):
    return zero_one(x, generator=torch.Generator().manual_seed(1), **options)


def orbit(step, z, n, skip=100):
    out = []
    for i in range(n + skip):
        z = step(z)
        if i >= skip:
            out.append(z)
    return np.array(out)


@pytest.mark.parametrize("start", [0.2, 0.37, 0.71])
def test_chaos_reads_one(start):
    found = k_of(orbit(lambda z: 4 * z * (1 - z), start, 1500))
    assert found.k > 0.98
    assert found.chaotic
    assert not found.regular
    assert k_of(orbit(lambda z: 1.9 * min(z, 1 - z), start, 1500)).chaotic


@pytest.mark.parametrize("r", [3.2, 3.5, 3.83])
def test_periodic_orbits_read_nought(r):
    found = k_of(orbit(lambda z: r * z * (1 - z), 0.3, 1500, 2000))
    assert abs(found.k) < 0.1
    assert found.regular


@pytest.mark.parametrize("period", [3.7, 12.345, 2.2])
def test_quasiperiodic_signals_read_nought(period):
    n = np.arange(1500)
    assert k_of(np.cos(2 * np.pi * n / period) + 0.4 * np.cos(2 * np.pi * n / (period * math.sqrt(3)))).regular


def test_a_dense_flow_is_thinned_out_and_read_right():
    """The Lorenz equations sampled at every step would read regular; at four samples an oscillation they read chaos."""
    one = analytic.Lorenz(eps=0.01).select(torch.tensor([0]))
    settled = observe(one, one.initial_state(), 1000).z
    record = observe(one, settled, 16000, window=8000, every=2, projections=2)
    x = record.projections[:, 0, 0].numpy()
    assert k_of(x).chaotic
    assert k_of(x).stride > 1
    assert k_of(x, stride=1).k < 0.6


def test_short_and_constant_signals_say_nothing():
    assert math.isnan(k_of(np.ones(2000)).k)
    assert math.isnan(k_of(np.random.default_rng(0).standard_normal(100)).k)
    assert not k_of(np.ones(2000)).chaotic
    assert not k_of(np.ones(2000)).regular
    assert oscillation_time(np.ones(10)) == math.inf
    n = np.arange(5000)
    assert oscillation_time(np.sin(2 * np.pi * n / 50)) == pytest.approx(50, rel=1e-2)
