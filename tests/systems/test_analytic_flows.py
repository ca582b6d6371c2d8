"""Oscillators and Euler-made oscillations: stated facts against SciPy's integrator, root finder and eigenvalues."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from dyneq.errors import DyneqError
from dyneq.systems import analytic

EPS = np.finfo(np.float64).eps


def numpy_rhs(system):
    return lambda t, z: system.rhs(torch.from_numpy(np.asarray(z)).unsqueeze(0))[0].numpy()


def jacobian(system, z) -> np.ndarray:
    return torch.func.jacrev(lambda y: system.rhs(y[None])[0])(torch.as_tensor(z, dtype=torch.float64)).numpy()


def upward(t, z):
    return z[1]


upward.direction = 1.0


def limit_cycle(system, divergence, start, settle, cycle, tolerance=1e-12):
    """Period, extreme of the first component and integral of the divergence over one period, by SciPy's DOP853."""
    rhs = numpy_rhs(system)
    for z in system.initial_state().numpy():
        assert divergence(z) == pytest.approx(np.trace(jacobian(system, z)), abs=100 * EPS)
    options = {"method": "DOP853", "rtol": tolerance, "atol": tolerance}
    settled = solve_ivp(rhs, (0, settle), start, **options).y[:, -1]

    def extended(t, z):
        return np.append(rhs(t, z[:2]), divergence(z))

    run = solve_ivp(extended, (0, 2.1 * cycle), np.append(settled, 0.0), events=upward, **options)
    crossings, states = run.t_events[0], run.y_events[0]
    return crossings[-1] - crossings[-2], abs(states[-1][0]), states[-1][2] - states[-2][2]


@pytest.mark.parametrize(("r", "nu", "c", "d"), [(0.5, 2.0, 1.0, 0.0), (0.3, 1.0, 2.0, 1.5), (0.5, 1.0, 1.0, 3.0)])
def test_stuart_landau_cycle(r, nu, c, d):
    system = analytic.StuartLandau(r, nu, c, d)
    # the distance to the cycle shrinks by exp(-2 r t), here by exp(-30)
    period, radius, divergence = limit_cycle(
        system,
        lambda z: 2 * r - 4 * c * (z[0] ** 2 + z[1] ** 2),
        [system.cycle_radius * 1.1, 0.0],
        15 / r,
        system.period,
    )
    # the integrator's local error 1e-12 accumulates over some hundred steps
    assert period == pytest.approx(system.period, rel=1e-9)
    assert radius == pytest.approx(system.cycle_radius, rel=1e-9)
    # Liouville: the product of the multipliers is exp of the divergence's integral over a period
    one, other = system.floquet_multipliers
    assert one == 1
    assert math.log(other) == pytest.approx(divergence, rel=1e-9)
    at_origin = np.linalg.eigvals(jacobian(system, [0.0, 0.0]))
    assert max(min(abs(m - e) for e in at_origin) for m in system.eigenvalues) < 20 * EPS
    with pytest.raises(DyneqError, match="has no cycle"):
        _ = analytic.StuartLandau(-0.1).period


@pytest.mark.parametrize(
    ("mu", "period", "amplitude", "log_multiplier"),
    [(1.0, 6.663286859323, 2.008619860875, -7.0589328088), (5.0, 11.612230667720, None, -85.4520185)],
)
def test_van_der_pol_cycle_is_that_of_the_reference_page(mu, period, amplitude, log_multiplier):
    system = analytic.VanDerPol(mu)
    measured, at_crossing, divergence = limit_cycle(
        system, lambda z: mu * (1 - z[0] ** 2), [2.0, 0.0], 3.2 * period, period, tolerance=1e-13
    )
    # one period contracts by at least 1e-3, so three settle to 1e-9; then crossings are good to some 1e-11
    assert measured == pytest.approx(period, rel=1e-9)
    assert divergence == pytest.approx(log_multiplier, rel=2e-8)
    if amplitude is not None:
        assert at_crossing == pytest.approx(amplitude, rel=1e-9)
    z = system.initial_state()
    traces = [np.trace(jacobian(system, row)) for row in z]
    np.testing.assert_allclose(system.divergence(z).numpy(), traces, rtol=0, atol=50 * EPS * mu)
    assert np.trace(jacobian(system, [0.0, 0.0])) == mu  # Hopf of the origin at mu = 0


def cubic_coefficient(system, root) -> tuple[float, complex]:
    """Frequency and c1 at a Hopf point with <q,q> = <p,q> = 1 (Kuznetsov 2004, section 3.5), by derivative tensors."""
    root = torch.as_tensor(root, dtype=torch.float64)
    values, vectors = np.linalg.eig(jacobian(system, root))
    q = vectors[:, np.argmax(values.imag)]
    omega = values.imag.max()
    values_t, vectors_t = np.linalg.eig(jacobian(system, root).T)
    p = vectors_t[:, np.argmin(values_t.imag)]
    p = p / np.conj(np.vdot(p, q))
    assert np.vdot(q, q) == pytest.approx(1)
    assert np.vdot(p, q) == pytest.approx(1)

    def field(y):
        return system.rhs(y[None])[0]

    second = torch.func.hessian(field)(root).numpy()
    third = torch.func.jacrev(torch.func.hessian(field))(root).numpy()

    def b(u, v):
        return np.vdot(p, np.einsum("ijk,j,k->i", second, u, v))

    g20, g11, g02 = b(q, q), b(q, q.conj()), b(q.conj(), q.conj())
    g21 = np.vdot(p, np.einsum("ijkl,j,k,l->i", third, q, q, q.conj()))
    c1 = 1j / (2 * omega) * (g20 * g11 - 2 * abs(g11) ** 2 - abs(g02) ** 2 / 3) + g21 / 2
    return omega, c1


@pytest.mark.parametrize("a", [0.5, 1.0, 2.0])
def test_brusselator_hopf(a):
    system = analytic.Brusselator(a, 1 + a * a)
    assert system.hopf_b == system.b
    assert np.abs(numpy_rhs(system)(0, system.root)).max() < 20 * EPS * a
    values = np.linalg.eigvals(jacobian(system, system.root))
    assert np.abs(values.real).max() < 20 * EPS * (1 + a * a)
    omega, c1 = cubic_coefficient(system, system.root)
    assert omega == pytest.approx(system.hopf_frequency, rel=100 * EPS)
    assert c1.real == pytest.approx(system.hopf_cubic, rel=1e-12)
    default = analytic.Brusselator(a)
    assert np.linalg.eigvals(jacobian(default, default.root)).real.max() == pytest.approx(0.05, rel=1e-12)


def test_fitzhugh_nagumo_hopf():
    """The currents where the trace at the root vanishes, found by SciPy's bracketing root finder alone."""

    def root(current):
        v = brentq(lambda v: v - v**3 / 3 - (v + 0.7) / 0.8 + current, -3, 3, xtol=1e-15)
        return v, (v + 0.7) / 0.8

    def trace(current):
        return np.trace(jacobian(analytic.FitzHughNagumo(current), root(current)))

    currents = brentq(trace, 0.1, 0.7, xtol=1e-14), brentq(trace, 1.1, 1.7, xtol=1e-14)
    system = analytic.FitzHughNagumo()
    assert system.hopf_currents == pytest.approx(currents, abs=1e-12)
    assert system.hopf_currents == pytest.approx((0.3312813375, 1.4187186625), abs=5e-11)
    assert system.hopf_frequency == pytest.approx(0.2755068057, abs=5e-11)
    for current in system.hopf_currents:
        critical = analytic.FitzHughNagumo(current)
        omega, c1 = cubic_coefficient(critical, root(current))
        assert omega == pytest.approx(system.hopf_frequency, rel=1e-12)
        assert c1.real > 0  # subcritical


def full(value):
    return torch.full((4,), value, dtype=torch.float64)


def euler(system, z, steps):
    for _ in range(steps):
        z = z + system.eps * system.force(z)
    return z


@pytest.mark.parametrize(("a", "b", "c", "eps"), [(-0.1, 1.0, 1.0, 0.5), (-0.2, 1.5, 0.5, 0.4), (0.3, 1.0, 2.0, 0.2)])
def test_euler_circle_of_the_normal_form(a, b, c, eps):
    system = analytic.HopfNormalForm(a, b, c, eps=eps)
    assert abs(system.radial_multiplier) < 1
    # the distance to the circle shrinks by that multiplier a step
    settled = euler(system, system.initial_state(), math.ceil(45 / -math.log(abs(system.radial_multiplier))))
    torch.testing.assert_close(settled.norm(dim=1), full(system.circle_radius), rtol=1e-13, atol=0)
    after = euler(system, settled, 1)
    w, w_next = (torch.complex(y[:, 0], y[:, 1]) for y in (settled, after))
    torch.testing.assert_close((w_next / w).angle(), full(system.rotation), rtol=1e-12, atol=0)
    shift = settled * (1 + 1e-5)
    grown = (euler(system, shift, 1).norm(dim=1) - after.norm(dim=1)) / (1e-5 * system.circle_radius)
    # a one-sided difference: its error is 1e-5 times a curvature of order 1
    torch.testing.assert_close(grown, full(system.radial_multiplier), rtol=0, atol=1e-4)


def test_euler_circle_reference_values():
    system = analytic.HopfNormalForm()
    assert system.circle_radius == pytest.approx(0.409816, abs=5e-7)
    assert system.rotation == pytest.approx(0.523599, abs=5e-7)
    assert system.rotation == pytest.approx(math.pi / 6, rel=4 * EPS)
    assert abs(system.radial_multiplier) < 1  # a stable spurious cycle
    assert system.r < 0  # of a stable flow


@pytest.mark.parametrize(("a", "b"), [(-0.1, 1.0), (-1.0, 0.3), (-0.01, 2.0)])
def test_critical_step_is_where_the_modulus_is_one(a, b):
    system = analytic.HopfNormalForm(a, b)
    multipliers = np.linalg.eigvals(np.eye(2) + system.critical_step * jacobian(system, [0.0, 0.0]))
    np.testing.assert_allclose(np.abs(multipliers), 1.0, rtol=0, atol=20 * EPS)
    assert analytic.HopfNormalForm(0.1, 1.0).critical_step == 0
    with pytest.raises(DyneqError, match="has no circle"):
        _ = system.with_eps(0.99 * system.critical_step).circle_radius
    assert analytic.HopfNormalForm(-0.1, 1.0).with_eps(0.2).circle_radius > 0  # just above 0.19802
    with pytest.raises(DyneqError, match=r"abs\(eps b\) < 1"):
        _ = system.with_eps(1.5 / b).rotation


@pytest.mark.parametrize(("rate", "eps"), [(-22.0, 0.1), (-5.0, 0.45), (-2.4, 1.0)])
def test_flip_orbit(rate, eps):
    system = analytic.FlipFlow(rate, eps=eps)
    assert 1 + system.critical_step * jacobian(system, [0.0])[0, 0] == pytest.approx(-1, abs=4 * EPS)
    assert eps > system.critical_step
    settled = euler(system, system.initial_state(), 200)
    after = euler(system, settled, 1)
    amplitude = torch.full((4, 1), system.orbit_amplitude, dtype=torch.float64)
    torch.testing.assert_close(settled.abs(), amplitude, rtol=1e-13, atol=0)
    torch.testing.assert_close(after, -settled, rtol=1e-13, atol=0)
    factors = [1 + eps * jacobian(system, y)[0, 0] for y in (settled[0], after[0])]
    assert math.prod(factors) == pytest.approx(system.orbit_multiplier, rel=1e-11)
    assert system.orbit_multiplier < 1
    with pytest.raises(DyneqError, match="no orbit of period 2"):
        _ = system.with_eps(0.99 * system.critical_step).orbit_amplitude


def test_a_step_size_of_zero_is_refused():
    for kind in (analytic.Lorenz, analytic.FlipFlow, analytic.Shear):
        with pytest.raises(DyneqError, match="must be positive"):
            kind(eps=0.0)
