"""Linear systems, chaotic maps and random products: stated facts against NumPy, SciPy, mpmath and orbit identities."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.optimize import minimize_scalar

from dyneq.errors import DyneqError
from dyneq.systems import analytic
from dyneq.systems.protocol import System
from dyneq.systems.validate import check_system

EPS = np.finfo(np.float64).eps
FACTORIES = sorted(n for n in analytic.__all__ if n.islower() and not n.startswith("gaussian"))


def dense(system: System, z: torch.Tensor) -> np.ndarray:
    """The Jacobians [sample, n, n] of the force."""
    full = torch.func.jacrev(system.force)(z)
    return torch.stack([full[i, :, i] for i in range(len(z))]).numpy()


@pytest.mark.parametrize("name", FACTORIES)
def test_every_system_has_both_derivatives_and_independent_samples(name):
    system = getattr(analytic, name)()
    z = system.initial_state()
    check_system(system)
    generator = torch.Generator().manual_seed(3)
    v, w = (torch.randn(z.shape, generator=generator, dtype=z.dtype) for _ in range(2))
    matvec, rmatvec = system.linearize(z)
    # a central difference is exact to eps/h for the quadratic and to h^2 |v|^3 for the cubic ones (tent: no kink near)
    h = EPS ** (1 / 3)
    size = float(system.force(z).abs().max() + z.abs().max()) * float(v.abs().max()) ** 3
    torch.testing.assert_close(
        matvec(v), (system.force(z + h * v) - system.force(z - h * v)) / (2 * h), rtol=0, atol=10 * h * h * max(1, size)
    )
    scale = float(v.norm() * w.norm() * np.abs(dense(system, z)).sum(-1).max())
    torch.testing.assert_close((w * matvec(v)).sum(), (rmatvec(w) * v).sum(), rtol=0, atol=10 * EPS * scale)
    picked = torch.tensor([2, 0, 2])
    part = system.select(picked)
    assert torch.equal(part.initial_state(), z[picked])
    torch.testing.assert_close(part.force(z[picked]), system.force(z)[picked], rtol=10 * EPS, atol=10 * EPS * size)
    assert (part.eps, part.time, part.name) == (system.eps, system.time, system.name)
    with pytest.raises(DyneqError, match="does not declare one"):
        system.force(z, z)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_start_of_another_shape_is_refused(name):
    factory = getattr(analytic, name)
    n = factory().initial_state().shape[1]
    for bad in (torch.zeros(n), torch.zeros(3, n + 1), torch.zeros(0, n), torch.zeros(3, n, dtype=torch.int64)):
        with pytest.raises(DyneqError, match="the start of"):
            factory(z0=bad)
    single = factory(z0=torch.ones(2, n, dtype=torch.float32))
    if not isinstance(single, analytic.LinearFlow | analytic.LinearMap | analytic.GradientFlow):
        assert single.force(single.initial_state()).dtype == torch.float32


@pytest.mark.parametrize("kind", [analytic.LinearFlow, analytic.LinearMap])
def test_linear_systems_with_a_matrix_for_each_sample(kind):
    generator = torch.Generator().manual_seed(1)
    matrices = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    system = kind(matrices)
    z = system.initial_state()
    shift = 0 if kind is analytic.LinearFlow else 1
    expected = np.einsum("bij,bj->bi", matrices.numpy() - shift * np.eye(4), z.numpy())
    np.testing.assert_allclose(system.force(z).numpy(), expected, rtol=0, atol=50 * EPS)
    assert np.array_equal(dense(system, z), matrices.numpy() - shift * np.eye(4))
    part = system.select(torch.tensor([2, 0]))
    np.testing.assert_allclose(part.force(z[[2, 0]]).numpy(), expected[[2, 0]], rtol=0, atol=50 * EPS)
    shared = kind(matrices[1], z)
    np.testing.assert_allclose(shared.select(torch.tensor([1])).force(z[1:2]).numpy(), expected[1:2], atol=50 * EPS)
    with pytest.raises(DyneqError, match=r"\[n, n\]"):
        kind(matrices[:, :3])
    with pytest.raises(DyneqError, match="3 matrices were given for 2 samples"):
        kind(matrices, z[:2])


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.2, math.pi / 2, math.pi])
def test_rotation_has_its_radius_at_every_angle(angle):
    system = analytic.RotationMap(angle)
    multipliers = np.linalg.eigvals(np.eye(2) + dense(system, system.initial_state())[0])
    # a normal matrix: eigenvalues are as exact as the matrix, except that equal ones of [[a, 0], [0, a]] are exact
    np.testing.assert_allclose(np.abs(multipliers), system.spectral_radius, rtol=0, atol=20 * EPS)
    assert max(min(abs(m - e) for e in multipliers) for m in system.multipliers) < 20 * EPS
    rayleigh = np.mean(
        [z @ (system.matrix.numpy() @ z) / (z @ z) for z in np.random.default_rng(0).normal(size=(9, 2))]
    )
    assert rayleigh == pytest.approx(0.99 * math.cos(angle), abs=20 * EPS)  # what trap 2 reads


@pytest.mark.parametrize("k", [2.5, 3.0, 10.0, 40.0])
def test_shear_growth(k):
    system = analytic.Shear(k)
    a = system.matrix.numpy()
    assert np.linalg.eigvalsh((a + a.T) / 2)[-1] == pytest.approx(system.numerical_abscissa, abs=10 * EPS * k)

    # maxima: the value is exact to rounding where the argument is off by sqrt(eps), about 1e-8
    grown = minimize_scalar(
        lambda t: -np.linalg.norm(expm(a * t), 2), bounds=(0, 3), method="bounded", options={"xatol": 1e-9}
    )
    assert -grown.fun == pytest.approx(system.largest_growth, rel=1e-13)
    assert grown.x == pytest.approx(system.largest_growth_time, abs=1e-6)
    kreiss = minimize_scalar(
        lambda s: -s * np.linalg.norm(np.linalg.inv(s * np.eye(2) - a), 2), bounds=(1e-3, 30), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    assert -kreiss.fun == pytest.approx(system.kreiss_constant, rel=1e-12)
    assert 1 <= system.kreiss_constant <= system.largest_growth <= 2 * math.e * system.kreiss_constant  # Kreiss, n = 2


def test_shear_reference_values():
    system = analytic.Shear(10.0)
    assert system.numerical_abscissa == 4
    assert system.kreiss_constant == pytest.approx(2.6, abs=1e-15)
    assert system.largest_growth == pytest.approx(3.715955228, abs=5e-10)
    assert system.largest_growth_time == pytest.approx(0.979796, abs=5e-7)
    with pytest.raises(DyneqError, match="coupling of at least 2"):
        _ = analytic.Shear(1.0).kreiss_constant


@pytest.mark.parametrize(("size", "coupling"), [(2, 1.0), (5, -3.0), (8, 10.0)])
def test_jordan_numerical_abscissa(size, coupling):
    system = analytic.Jordan(size, -1.0, coupling)
    a = system.matrix.numpy()
    assert np.linalg.eigvalsh((a + a.T) / 2)[-1] == pytest.approx(
        system.numerical_abscissa, abs=50 * EPS * abs(coupling)
    )
    assert np.array_equal(np.diag(a), np.full(size, -1.0))
    assert np.linalg.matrix_rank(a + np.eye(size)) == size - 1  # one eigenvector only


def test_grcar_is_the_matrix_of_the_reference_values():
    a = analytic.Grcar(32).matrix.numpy()
    assert np.array_equal(a[4], [0] * 3 + [-1, 1, 1, 1, 1] + [0] * 24)
    assert np.linalg.eigvalsh((a + a.T) / 2)[-1] == pytest.approx(2.9459949997, abs=5e-11)
    shifted = analytic.Grcar(6, 2, -3.0).matrix.numpy()
    assert np.array_equal(shifted, analytic.Grcar(6, 2).matrix.numpy() - 3 * np.eye(6))


@pytest.mark.slow
def test_grcar_abscissa_in_many_digits():
    with mpmath.workdps(60):  # condition numbers near 1e8 eat the digits of float64
        values = mpmath.eig(mpmath.matrix(analytic.Grcar(32).matrix.tolist()), left=False, right=False)
        assert float(max(mpmath.re(v) for v in values)) == pytest.approx(1.6574333511, abs=5e-11)


def test_gradient_flow_descends_its_potential():
    system = analytic.GradientFlow()
    z = system.initial_state().requires_grad_()
    (slope,) = torch.autograd.grad(system.potential(z).sum(), z)
    z = z.detach()
    torch.testing.assert_close(system.force(z), -slope, rtol=0, atol=50 * EPS)
    jacobian = dense(system, z)
    np.testing.assert_allclose(jacobian, jacobian.swapaxes(1, 2), rtol=0, atol=10 * EPS)
    assert np.linalg.eigvalsh(jacobian).max() < 0
    # Euler descends while eps is below 2 over the largest curvature, about 7 in this region
    for _ in range(100):
        after = z + system.eps * system.force(z)
        assert torch.all(system.potential(after) < system.potential(z))
        z = after
    with pytest.raises(DyneqError, match="symmetric"):
        analytic.GradientFlow(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))


def derivative(system, z):
    return 1 + system.linearize(z)[0](torch.ones_like(z))


@pytest.mark.parametrize("r", [0.5, 1.5, 2.5, 2.9, 3.1, 3.2, 3.4])
def test_logistic_exponent_on_its_attractor(r):
    system = analytic.Logistic(r)
    z = system.initial_state()
    for _ in range(5000):  # the slowest here contracts by 0.9 a step
        z = system.step(z)
    logs = []
    for _ in range(2):
        logs.append(derivative(system, z).abs().log())
        z = system.step(z)
    torch.testing.assert_close(
        torch.stack(logs).mean(0), torch.full((4, 1), system.lyapunov_exponent, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_logistic_exponent_at_four_telescopes():
    """abs f'(x) = 2 g(f(x))/g(x) with g = sqrt(x (1 - x)), so n steps add n ln 2 and a boundary term, exactly."""
    system = analytic.Logistic(4.0)
    z = start = system.initial_state()
    total, smallest = torch.zeros_like(z), torch.ones_like(z)
    for _ in range(200):
        slope = derivative(system, z).abs()
        smallest = torch.minimum(smallest, slope)
        total += slope.log()
        z = system.step(z)
    boundary = ((z * (1 - z)).log() - (start * (1 - start)).log()) / 2
    # one step's identity errs by the rounding of x over the smallest slope and distance to the ends met on the way
    bound = float(200 * 10 * EPS / smallest.min() ** 2)
    torch.testing.assert_close(total, 200 * system.lyapunov_exponent + boundary, rtol=0, atol=bound)
    assert bound < 1e-4
    assert system.lyapunov_exponent == math.log(2)


def test_logistic_reference_values_and_limits():
    assert analytic.Logistic(3.2).lyapunov_exponent == pytest.approx(-0.9162907319, abs=5e-11)
    assert analytic.Logistic(2.0).lyapunov_exponent == -math.inf
    assert analytic.Logistic(3.0).lyapunov_exponent == 0
    for r in (3.5, 4.1, -1.0):
        with pytest.raises(DyneqError, match="known in closed form"):
            _ = analytic.Logistic(r).lyapunov_exponent


def test_tent_has_one_slope_everywhere():
    special = torch.tensor([[0.0], [0.25], [0.5], [0.75], [1.0]], dtype=torch.float64)
    system = analytic.Tent(z0=special)
    assert derivative(system, special).flatten().tolist() == [2, 2, -2, -2, -2]
    assert system.step(special).flatten().tolist() == [0, 0.5, 1, 0.5, 0]
    assert system.lyapunov_exponent == math.log(2)
    z = analytic.Tent().initial_state()
    for _ in range(60):
        z = system.step(z)
    assert not z.any()  # the documented collapse of slope 2 in binary arithmetic


@pytest.mark.parametrize(("a", "b"), [(1.4, 0.3), (0.2, -0.5), (1.0, 1.0)])
def test_henon_determinant_and_fixed_points(a, b):
    system = analytic.Henon(a, b)
    z = system.initial_state()
    np.testing.assert_allclose(np.linalg.det(np.eye(2) + dense(system, z)), -b, rtol=0, atol=10 * EPS)
    assert system.exponent_sum == math.log(abs(b))
    points = torch.tensor(system.fixed_points, dtype=torch.float64)
    assert system.force(points).abs().max() < 20 * EPS * points.abs().max() ** 2
    expected = np.sort(np.roots([a, 1 - b, -1]).real)[::-1]
    np.testing.assert_allclose(points[:, 0].numpy(), expected, rtol=0, atol=20 * EPS * np.abs(expected).max())
    if (a, b) == (1.4, 0.3):
        assert system.exponent_sum == pytest.approx(-1.2039728043, abs=5e-11)
    with pytest.raises(DyneqError, match="no pair of fixed points"):
        _ = analytic.Henon(-2.0, 0.3).fixed_points


def test_lorenz_divergence_roots_and_hopf():
    system = analytic.Lorenz()
    z = system.initial_state()
    np.testing.assert_allclose(
        np.trace(dense(system, z), axis1=1, axis2=2), system.exponent_sum, rtol=0, atol=100 * EPS
    )
    assert system.exponent_sum == pytest.approx(-13.6666667, abs=5e-8)
    for rho in (0.5, 5.0, 28.0):
        other = analytic.Lorenz(rho=rho)
        roots = torch.tensor(other.roots, dtype=torch.float64)
        assert len(roots) == (1 if rho <= 1 else 3)
        assert other.force(roots).abs().max() < 100 * EPS * rho
    critical = analytic.Lorenz(rho=system.hopf_rho)
    assert critical.hopf_rho == pytest.approx(470 / 19, rel=4 * EPS)  # 10 (10 + 8/3 + 3)/(10 - 8/3 - 1)
    pair = np.linalg.eigvals(dense(critical, torch.tensor(critical.roots, dtype=torch.float64))[1])
    pair = pair[np.abs(pair.imag) > 1]
    assert len(pair) == 2
    assert np.abs(pair.real).max() < 1e-12
    assert analytic.Lorenz(sigma=2.0).hopf_rho == math.inf


def test_gaussian_products_have_the_stated_exponents():
    """Sums of the first k increments are independent over steps with known variance: five standard deviations."""
    size, gain, steps = 5, 1.3, 4000
    factors = analytic.gaussian_matrices(steps, size, gain, samples=2, seed=11).numpy()
    q, total = np.broadcast_to(np.eye(size), (2, size, size)), np.zeros((2, size))
    for factor in factors:
        q, r = np.linalg.qr(factor @ q)
        total += np.log(np.abs(np.diagonal(r, axis1=1, axis2=2)))
    expected = analytic.gaussian_exponents(size, gain).numpy()
    errors = analytic.gaussian_exponent_errors(size, steps).numpy()
    allowed = 5 * np.sqrt(np.cumsum(errors**2))
    assert np.all(np.abs(np.cumsum(total / steps, axis=1) - np.cumsum(expected)) < allowed)
    assert analytic.gaussian_exponents(20, 1.3)[0].item() == pytest.approx(0.236948, abs=5e-7)
    again = analytic.gaussian_matrices(steps, size, gain, samples=2, seed=11).numpy()
    assert np.array_equal(again, factors)
    # mean square of N(0, g^2/n): relative error sqrt(2/count)
    count = factors.size
    assert (factors**2).mean() == pytest.approx(gain**2 / size, rel=5 * math.sqrt(2 / count))
