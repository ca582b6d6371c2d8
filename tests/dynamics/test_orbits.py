"""Periodic orbits against analytic periods, published digits and SciPy's integrator; honest error bars; bad input."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dyneq.dynamics.orbits import OrbitStatus, follow_orbit, map_orbit, shoot
from dyneq.dynamics.roots import find_root
from dyneq.dynamics.stepping import Stepper
from dyneq.dynamics.subsystem import TokenSystem
from dyneq.errors import DyneqError, UsageError
from dyneq.systems.analytic import FlipFlow, Henon, LinearFlow, Logistic, Lorenz, StuartLandau, VanDerPol
from dyneq.systems.analytic.base import AnalyticFlow

PERIOD = {1.0: 6.663286859323, 5.0: 11.612230667720}


def at(*z, dtype=torch.float64):
    return torch.tensor([z], dtype=dtype)


def numpy_force(system):
    shape = system.initial_state().shape

    @torch.no_grad()
    def force(_, y):
        return system.force(torch.from_numpy(y).view(shape)).flatten().numpy()

    return force


def return_time(system, orbit, settle):
    """The period by DOP853: time between crossings of the plane through z across the flow, after some periods."""
    force = numpy_force(system)
    z = orbit.z.flatten().numpy()
    options = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-11}
    y = solve_ivp(force, (0, settle * orbit.period), z, **options).y[:, -1] if settle else z
    normal = force(0, y)

    def crossing(_, at):
        return normal @ (at - y)

    crossing.direction = 1
    times = solve_ivp(force, (0, 1.2 * orbit.period), y, events=crossing, **options).t_events[0]
    return times[times > 0.1 * orbit.period][0]


def cycling_token(build):
    """The only token of a small block that starts a cycle, its predecessor at its root, relaxed onto the cycle."""
    block = build(seed=2, samples=6, tokens=3, gain=3.0).select(torch.tensor([4]))
    token = TokenSystem(block, find_root(block).z, [0], [1])
    stepper, z = Stepper(token, "rk4", 0.05), token.initial_state()
    for _ in range(600):
        z = stepper.advance(z)
    return token, z


@pytest.mark.parametrize("mu", [1.0, 5.0])
def test_van_der_pol_converges_at_fourth_order_within_its_error_bar(mu):
    system = VanDerPol(mu, at(2.0, 0.0))
    levels = (256, 512, 1024) if mu == 1 else (1024, 2048, 4096)
    found = [shoot(system, system.initial_state(), 0.98 * PERIOD[mu], steps=n) for n in levels]
    errors = [abs(o.period - PERIOD[mu]) for o in found]
    for orbit, error in zip(found, errors, strict=True):
        assert orbit.status is OrbitStatus.CONVERGED
        assert error <= orbit.period_error + 1e-12
        assert orbit.period_error <= 2 * error + 1e-12
        assert orbit.closure < 1e-10
    slope = np.polyfit(np.log(levels), np.log(errors), 1)[0]
    assert slope == pytest.approx(-4, abs=0.1)


def test_amplitude_of_van_der_pol_is_the_published_one():
    system = VanDerPol(1.0, at(2.0, 0.0))
    coarse, fine = (float(shoot(system, at(2.0, 0.0), 6.6, steps=n).half_range[0, 0]) for n in (512, 1024))
    # fourth order: what is left is a fifteenth of the last change
    assert abs(fine - 2.008619860875) <= abs(fine - coarse) / 10


def test_steps_are_doubled_until_the_tolerance_holds():
    system = VanDerPol(1.0, at(2.0, 0.0))
    orbit = shoot(system, at(2.0, 0.0), 6.0, tol=1e-8)
    assert orbit.status is OrbitStatus.CONVERGED
    assert abs(orbit.period - PERIOD[1.0]) <= orbit.period_error <= 1e-8 * orbit.period
    coarse = shoot(system, at(2.0, 0.0), 6.0, tol=1e-8, max_steps=256)
    assert coarse.status is OrbitStatus.COARSE
    assert coarse.status.good
    assert abs(coarse.period - PERIOD[1.0]) <= coarse.period_error


@pytest.mark.parametrize("parts", [2, 3])
def test_a_multiple_of_the_period_is_divided(parts):
    system = VanDerPol(1.0, at(2.0, 0.0))
    orbit = shoot(system, at(2.0, 0.0), parts * 6.65, tol=1e-6)
    assert abs(orbit.period - PERIOD[1.0]) <= orbit.period_error


@pytest.mark.parametrize(("r", "c", "start"), [(0.5, 1.0, (0.8, 0.1)), (-0.5, -1.0, (0.7, 0.05))])
def test_stuart_landau_stable_and_unstable(r, c, start):
    system = StuartLandau(r, 2.0, c, 0.3, at(*start))
    orbit = shoot(system, system.initial_state(), 3.5)
    assert orbit.status is OrbitStatus.CONVERGED
    assert abs(orbit.period - system.period) <= orbit.period_error
    # the circle has constant speed, so that its mean square radius is its radius, and both components reach it
    assert orbit.amplitude == pytest.approx(system.cycle_radius, rel=1e-8)
    assert orbit.half_range.tolist()[0] == pytest.approx([system.cycle_radius] * 2, rel=1e-8)
    assert orbit.slowness == pytest.approx(1.0, abs=1e-6)
    assert orbit.points.norm(dim=1).tolist() == pytest.approx([system.cycle_radius] * len(orbit.points), rel=1e-8)


def test_a_cycling_token_agrees_with_dop853(build):
    token, z = cycling_token(build)
    orbit = shoot(token, z, 3.5)
    assert orbit.status is OrbitStatus.CONVERGED
    assert orbit.distance < 0.05
    # a return within rtol of the integrator, which its events add to
    assert abs(return_time(token, orbit, 2) - orbit.period) <= orbit.period_error + 1e-10 * orbit.period


@pytest.mark.slow
@pytest.mark.parametrize("sample", [0, 16])
def test_the_packaged_cycles_agree_with_dop853(sample):
    from dyneq import open_checkpoint

    block = open_checkpoint("after").bind(batch=24).select(torch.tensor([sample]))
    token = TokenSystem(block, find_root(block).z, [0], [13])
    stepper, z = Stepper(token, "rk4", 0.04), token.initial_state()
    for _ in range(2500):
        z = stepper.advance(z)
    orbit = shoot(token, z, 2.5)
    assert orbit.status is OrbitStatus.CONVERGED
    assert abs(return_time(token, orbit, 5) - orbit.period) <= orbit.period_error + 1e-8 * orbit.period


def test_a_force_that_cannot_be_batched_gives_the_same_orbit():
    class Stubborn(StuartLandau):
        def rhs(self, z):
            assert z.shape == (1, 2)
            assert float(z.detach().abs().sum()) >= 0  # data-dependent: torch.vmap refuses
            return super().rhs(z)

    plain, stubborn = StuartLandau(z0=at(0.8, 0.0)), Stubborn(z0=at(0.8, 0.0))
    expected, orbit = (shoot(s, s.initial_state(), 3.0, steps=64) for s in (plain, stubborn))
    assert orbit.period == pytest.approx(expected.period, rel=1e-13)


def test_single_precision_says_what_it_reaches():
    system = VanDerPol(1.0, at(2.0, 0.0, dtype=torch.float32))
    orbit = shoot(system, system.initial_state(), 6.6, tol=1e-4)
    assert orbit.status.good
    assert abs(orbit.period - PERIOD[1.0]) <= orbit.period_error
    assert orbit.z.dtype == torch.float32


def test_what_is_no_orbit_is_called_so():
    spiral = StuartLandau(-0.1, 2.0, 1.0, z0=at(0.5, 0.0))
    assert not shoot(spiral, spiral.initial_state(), 3.1).status.good
    growing = FlipFlow(z0=at(30.0))
    assert shoot(growing, growing.initial_state(), 10.0).status is OrbitStatus.DIVERGED
    large = LinearFlow(-torch.eye(300, dtype=torch.float64), torch.ones(1, 300, dtype=torch.float64))
    assert shoot(large, large.initial_state(), 1.0).status is OrbitStatus.SIZE
    assert map_orbit(large, large.initial_state(), 2).status is OrbitStatus.SIZE
    resting = shoot(VanDerPol(1.0, at(0.0, 0.0)), at(0.0, 0.0), 6.0)
    assert resting.status is OrbitStatus.FIXED_POINT
    assert math.isnan(resting.closure)


def test_bad_input_is_refused_in_words():
    four = VanDerPol()
    with pytest.raises(DyneqError, match="one sample"):
        shoot(four, four.initial_state(), 6.6)
    one = VanDerPol(1.0, at(2.0, 0.0))
    with pytest.raises(DyneqError, match="not finite"):
        shoot(one, at(math.nan, 0.0), 6.6)
    with pytest.raises(UsageError, match="positive"):
        shoot(one, at(2.0, 0.0), -1.0)
    with pytest.raises(UsageError, match="at least 1 step"):
        shoot(one, at(2.0, 0.0), 6.6, steps=0)
    with pytest.raises(UsageError, match="map_orbit"):
        shoot(Logistic(3.2, at(0.5)), at(0.5), 2.0)
    with pytest.raises(UsageError, match="whole number"):
        map_orbit(Logistic(3.2, at(0.5)), at(0.5), 0)
    with pytest.raises(UsageError, match="followed"):
        follow_orbit(one, at(2.0, 0.0), 2.0, 3, scheme="euler")


@pytest.mark.parametrize("asked", [2, 4, 6])
def test_the_logistic_orbit_of_period_two_whatever_multiple_is_asked(asked):
    r = 3.2
    orbit = map_orbit(Logistic(r, at(0.5)), at(0.5), asked)
    assert orbit.status is OrbitStatus.CONVERGED
    assert orbit.period == 2
    root = math.sqrt((r - 3) * (r + 1))
    expected = [(r + 1 - root) / (2 * r), (r + 1 + root) / (2 * r)]
    assert sorted(orbit.points.flatten().tolist()) == pytest.approx(expected, abs=1e-14)
    assert orbit.amplitude == pytest.approx(root / (2 * r), rel=1e-13)


def test_a_fixed_point_of_a_map_is_no_orbit():
    assert map_orbit(Logistic(2.5, at(0.5)), at(0.5), 3).status is OrbitStatus.FIXED_POINT


def test_the_euler_map_of_a_flow_has_an_orbit_of_its_own():
    system = FlipFlow(z0=at(1.3))
    orbit = map_orbit(system, system.initial_state(), 2)
    assert orbit.period == 2
    assert float(orbit.z.abs()) == pytest.approx(system.orbit_amplitude, rel=1e-13)


def test_henon_orbit_of_period_two():
    a, b = 1.4, 0.3
    # x_1 + x_2 = (1 - b)/a and x_1 x_2 = ((1 - b)^2 - a)/a^2, from the difference and the sum of the two equations
    x = np.roots([1, -(1 - b) / a, ((1 - b) ** 2 - a) / a**2])
    orbit = map_orbit(Henon(a, b, at(1.0, -0.1)), at(1.0, -0.1), 2)
    assert orbit.status is OrbitStatus.CONVERGED
    assert sorted(orbit.points[:, 0].tolist()) == pytest.approx(sorted(x), abs=1e-13)


def test_following_measures_and_does_not_move():
    system = StuartLandau(0.5, 2.0, 1.0, 0.3, at(0.8, 0.0))
    on = at(system.cycle_radius, 0.0)
    orbit = follow_orbit(system, on, system.period, 512)
    assert orbit.status is OrbitStatus.CONVERGED
    assert orbit.amplitude == pytest.approx(system.cycle_radius, rel=1e-8)
    late = follow_orbit(system, on, system.period + 0.01, 512)
    assert late.status is OrbitStatus.STAGNATED
    # the end lies speed * 0.01 ahead on the circle, up to its curvature
    assert late.period_error == pytest.approx(0.01, rel=1e-3)
    assert torch.equal(late.z, on)
    assert follow_orbit(system, at(0.0, 0.0), 1.0, 8).status is OrbitStatus.FIXED_POINT
    assert follow_orbit(FlipFlow(z0=at(30.0)), at(30.0), 10.0, 8).status is OrbitStatus.DIVERGED


def test_the_shortest_unstable_orbit_of_lorenz():
    # Viswanath, Nonlinearity 16 (2003) 1035, the orbit AB; perturbations grow by 4.7 each time around
    orbit = shoot(Lorenz(z0=at(-13.76, -19.58, 27.0)), at(-13.76, -19.58, 27.0), 1.55, tol=1e-8)
    assert orbit.status is OrbitStatus.CONVERGED
    assert abs(orbit.period - 1.5586522107162) <= orbit.period_error


def test_newton_finds_the_cycle_from_inside_and_outside():
    class Slow(AnalyticFlow):
        """A radius drawn to 1 at rate 0.02 and a turn of rate 1: relaxing onto it would take hundreds of time units."""

        def __init__(self, z0):
            super().__init__(2, z0, 0.1)

        def rhs(self, z):
            x, y = z.unbind(-1)
            pull = 0.01 * (1 - x * x - y * y)
            return torch.stack([pull * x - y, pull * y + x], dim=-1)

    for radius in (0.7, 1.4):
        orbit = shoot(Slow(at(radius, 0.0)), at(radius, 0.0), 6.2)
        assert abs(orbit.period - 2 * math.pi) <= orbit.period_error
        assert orbit.distance == pytest.approx(abs(radius - 1), abs=1e-3)
