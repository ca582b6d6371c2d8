"""Floquet multipliers against closed forms, published logarithms, SciPy's integrator and each other."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from dyneq.dynamics.floquet import floquet
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.monodromy import MatrixChain, StepChain, monodromy
from dyneq.dynamics.orbits import follow_orbit, map_orbit, shoot
from dyneq.dynamics.roots import find_root
from dyneq.dynamics.stepping import Stepper
from dyneq.dynamics.subsystem import TokenSystem
from dyneq.errors import DyneqError, UsageError
from dyneq.systems.analytic import FlipFlow, Henon, HopfNormalForm, LinearFlow, Logistic, StuartLandau, VanDerPol
from dyneq.systems.analytic.base import AnalyticFlow

LOG_MULTIPLIER = {1.0: -7.0589328088, 5.0: -85.4520185}
#: Half a unit of the last digit published.
DIGITS = {1.0: 5e-11, 5.0: 5e-8}
PERIOD = {1.0: 6.6633, 5.0: 11.6122}


def at(*z):
    return torch.tensor([z], dtype=torch.float64)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


class Turning(AnalyticFlow):
    """A Stuart-Landau cycle and linear spirals u' = (-a + i b) u beside it, mixed by a fixed matrix.

    Multipliers are 1, exp(-2 r T) and exp((-a +- i b) T): coordinates do not matter.
    """

    def __init__(self, rates, r=0.5):
        self.core, self.rates = StuartLandau(r, 2.0, 1.0, 0.3), rates
        blocks = [[[r, -2.0], [2.0, r]], *([[-a, -b], [b, -a]] for a, b in rates)]
        dim = 2 * len(blocks)
        generator = torch.Generator().manual_seed(1)
        mix = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
        mix = mix @ torch.diag(torch.linspace(1.0, 3.0, dim, dtype=torch.float64))
        inverse = torch.linalg.inv(mix)
        self.linear = mix @ torch.block_diag(*torch.tensor(blocks, dtype=torch.float64)) @ inverse
        self.inner, self.outer = inverse[:2], mix[:, :2] @ torch.tensor([[1.0, -0.3], [0.3, 1.0]], dtype=torch.float64)
        super().__init__(dim, self.core.cycle_radius * mix[:, :1].T.contiguous(), 0.1)

    def rhs(self, z):
        w = z @ self.inner.T
        return z @ self.linear.T - (w * w).sum(-1, keepdim=True) * (w @ self.outer.T)

    def multipliers(self):
        period = self.core.period
        logs = [0, -2 * self.core.r * period]
        logs += [complex(-a, s * b) * period for a, b in self.rates for s in (1, -1)]
        return sorted(logs, key=lambda x: -np.real(x))


@pytest.fixture(scope="module")
def cycling():
    """A small block of which token 0 settles and token 1 starts a cycle: the block, its root, a state on the cycle."""
    from tests.dynamics.conftest import build

    block = build(seed=2, samples=6, tokens=3, gain=3.0).select(torch.tensor([4]))
    stepper, z = Stepper(block, "rk4", 0.1), block.initial_state().detach()
    for _ in range(300):
        z = stepper.advance(z)
    return block, find_root(block).z, z


@pytest.mark.parametrize("mu", [1.0, 5.0])
def test_van_der_pol_in_logarithms_at_fourth_order_within_error_bars(mu, generator):
    system = VanDerPol(mu, at(2.0, 0.0))
    levels, errors, flow = (256, 512, 1024) if mu == 1 else (512, 1024, 2048), [], []
    for steps in levels:
        orbit = shoot(system, system.initial_state(), PERIOD[mu], steps=steps)
        found = floquet(system, orbit, generator=generator)
        errors.append(abs(found.log_modulus[1] - LOG_MULTIPLIER[mu]))
        flow.append(found.flow_error)
        assert errors[-1] <= found.log_error[1] + DIGITS[mu]
        assert found.log_error[1] <= 100 * errors[-1] + DIGITS[mu]
        assert found.trivial == 0
        assert found.trivial_error < 1e-10
        assert found.stable is True
    slope = np.polyfit(np.log(levels), np.log(errors), 1)[0]
    assert slope == pytest.approx(-4, abs=0.25)
    assert np.polyfit(np.log(levels), np.log(flow), 1)[0] == pytest.approx(-4, abs=0.25)


@pytest.mark.parametrize(("r", "c", "stable"), [(0.5, 1.0, True), (-0.5, -1.0, False)])
def test_stuart_landau(r, c, stable, generator):
    system = StuartLandau(r, 2.0, c, 0.3, at(0.7, 0.05))
    orbit = shoot(system, system.initial_state(), 3.4)
    found = floquet(system, orbit, generator=generator)
    expected = sorted([0.0, -2 * r * system.period], reverse=True)
    assert (np.abs(found.log_modulus - expected) <= found.log_error).all()
    assert found.multipliers == pytest.approx(np.exp(expected), rel=1e-7)
    assert found.stable is stable
    assert (found.residual < 1e-12 * abs(found.multipliers).max()).all()


def test_complex_pairs_keep_their_phase_down_to_the_smallest(generator):
    # a period of 3.4 shrinks the last pair by exp(-68), far below what the product as a matrix resolves
    system = Turning([(0.3, 1.1), (4.0, 0.7), (20.0, 1.3)])
    orbit = shoot(system, system.initial_state(), 3.4, tol=1e-8)
    found = floquet(system, orbit, count=8, generator=generator)
    logs = system.multipliers()
    assert len(found.multipliers) == 8
    assert (np.abs(found.log_modulus - np.real(logs)) <= found.log_error).all()
    phases = found.multipliers / np.abs(found.multipliers)
    expected = np.exp(1j * np.imag(logs))
    for i in range(0, 8):
        assert min(abs(phases[i] - expected[i]), abs(phases[i] - expected[i].conj())) <= found.log_error[i] + 1e-8
    pairs = [i for i in range(8) if found.multipliers[i].imag > 0]
    assert [found.multipliers[i + 1] for i in pairs] == [found.multipliers[i].conj() for i in pairs]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_pair_is_never_parted(count, generator):
    system = Turning([(0.3, 1.1), (0.7, 0.4)])
    orbit = shoot(system, system.initial_state(), 3.4, steps=128)
    found = floquet(system, orbit, count=count, generator=generator)
    # 1, pair, pair, exp(-2 r T)
    assert len(found.multipliers) == {1: 1, 2: 3, 3: 3, 4: 5}[count]
    assert sum(found.multipliers.imag) == 0


def test_maps_have_exact_multipliers_and_no_trivial_one(generator):
    logistic = Logistic(3.2, at(0.5))
    found = floquet(logistic, map_orbit(logistic, at(0.5), 2), generator=generator)
    assert found.multipliers == pytest.approx([0.16], rel=1e-13)
    assert found.trivial == -1
    assert math.isnan(found.trivial_error)
    assert found.stable is True
    flip = FlipFlow(z0=at(1.4))
    assert floquet(flip, map_orbit(flip, at(1.4), 2), generator=generator).multipliers == pytest.approx(
        [flip.orbit_multiplier], rel=1e-12
    )
    henon = Henon(z0=at(0.5, 0.1))
    orbit = map_orbit(henon, at(0.5, 0.1), 6)
    found = floquet(henon, orbit, generator=generator)
    assert orbit.period == 6
    assert found.log_modulus.sum() == pytest.approx(6 * henon.exponent_sum, rel=1e-13)
    # the Jacobian is [[-2 a x, 1], [b, 0]], so that the multipliers are the eigenvalues of a product of six of them
    product = np.eye(2)
    for x in orbit.points[:, 0].tolist():
        product = np.array([[-2 * henon.a * x, 1], [henon.b, 0]]) @ product
    assert found.multipliers[0].real == pytest.approx(np.linalg.eigvals(product).min(), rel=1e-10)
    assert found.stable is False


def test_the_circle_of_an_euler_map_is_neutral_along_itself(generator):
    system = HopfNormalForm(z0=at(0.41, 0.0))
    assert system.rotation == pytest.approx(math.pi / 6)
    orbit = map_orbit(system, system.initial_state(), 12)
    found = floquet(system, orbit, generator=generator)
    assert orbit.amplitude == pytest.approx(system.circle_radius, rel=1e-12)
    assert found.multipliers == pytest.approx([1.0, system.radial_multiplier**12], rel=1e-10)
    assert found.stable is None


def test_a_superstable_orbit_has_multiplier_zero(generator):
    r = 1 + math.sqrt(5)  # 1/2 lies on the orbit of period 2
    system = Logistic(r, at(0.5))
    found = floquet(system, map_orbit(system, at(0.5), 2), generator=generator)
    assert abs(found.multipliers[0]) < 1e-14
    assert found.stable is True


def test_logarithms_add_up_to_the_integral_of_the_divergence(cycling, generator):
    block, root, z = cycling
    token = TokenSystem(block, root, [0], [1])
    orbit = shoot(token, z[:, 1], 3.5)
    found = floquet(token, orbit, count=8, generator=generator)

    def force(_, y):
        with torch.no_grad():
            return token.force(torch.from_numpy(y)[None])[0].numpy()

    times = np.linspace(0, orbit.period, 129)
    path = solve_ivp(force, (0, orbit.period), orbit.z[0].numpy(), "DOP853", times, rtol=1e-11, atol=1e-11).y.T
    jacobian = torch.func.jacrev(lambda y: token.force(y[None])[0])
    traces = np.array([float(jacobian(y).detach().trace()) for y in torch.from_numpy(path[:-1].copy())])
    # the trapezoidal rule converges exponentially for a periodic function, which half as many points confirm
    total, half = (x.mean() * orbit.period for x in (traces, traces[::2]))
    assert abs(found.log_modulus.sum() - total) <= found.log_error.sum() + abs(total - half) + 1e-9


def test_a_token_agrees_with_differences_of_dop853(cycling, generator):
    block, root, z = cycling
    token = TokenSystem(block, root, [0], [1])
    orbit = shoot(token, z[:, 1], 3.5)
    found = floquet(token, orbit, count=8, generator=generator)
    delta = 1e-5

    rows = TokenSystem(block, root, [0] * 16, [1] * 16)

    def force(_, y):
        with torch.no_grad():
            return rows.force(torch.from_numpy(y.reshape(16, 8))).numpy().ravel()

    starts = orbit.z.numpy() + delta * np.concatenate([np.eye(8), -np.eye(8)])
    ends = (
        solve_ivp(force, (0, orbit.period), starts.ravel(), "DOP853", rtol=1e-12, atol=1e-12).y[:, -1].reshape(2, 8, 8)
    )
    values = np.linalg.eigvals((ends[0] - ends[1]).T / (2 * delta))
    for mu, condition, log_error in zip(found.multipliers, found.condition, found.log_error, strict=True):
        # the integrator's 1e-12 times a hundred steps over delta, and third derivatives of the flow times delta^2
        allowed = 1e-5 * condition + log_error * abs(mu)
        if np.isfinite(condition) and abs(mu) > allowed:
            assert np.abs(values - mu).min() <= allowed
    assert found.trivial_error < 1e-8


def test_multipliers_by_token_are_those_of_the_whole_with_an_address(cycling, generator):
    block, root, z = cycling
    whole = shoot(block, z, 3.5, steps=128)
    assert whole.status.good
    every = floquet(block, whole, count=24, generator=generator)
    tokens = floquet(block, whole, count=24, per_token=True, generator=generator)
    assert len(tokens.multipliers) == 24
    assert tokens.token is not None
    assert sorted(tokens.token) == sorted([0, 1, 2] * 8)
    assert tokens.token[tokens.trivial] == 1  # the token that starts the cycle; token 0 rests at its root
    assert np.abs(tokens.log_modulus - every.log_modulus).max() <= 1e-6
    leading = abs(every.multipliers) > 1e-3
    # both follow the same steps: what is left is rounding, magnified by the conditions of both
    for mu, condition in zip(every.multipliers[leading], every.condition[leading], strict=True):
        assert np.abs(tokens.multipliers - mu).min() <= 1e-10 * condition
    # a token at rest has multipliers exp(mu T)
    resting = np.linalg.eigvals(Linearization(block, root).token_blocks()[0, 0].detach().numpy())
    expected = np.sort(resting.real * whole.period)[::-1]
    first = tokens.token == 0
    assert (np.abs(np.sort(tokens.log_modulus[first])[::-1] - expected) <= tokens.log_error[first].max()).all()
    # the token alone, its predecessor at the root, has the same
    alone = TokenSystem(block, root, [0], [1])
    orbit = shoot(alone, whole.z[:, 1], whole.period, steps=128)
    part = floquet(alone, orbit, count=8, generator=generator)
    assert orbit.period == pytest.approx(whole.period, rel=1e-10)
    assert np.sort(tokens.log_modulus[tokens.token == 1]) == pytest.approx(np.sort(part.log_modulus), abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("tokens_only", [False, True])
def test_products_by_steps_are_those_by_matrices(cycling, tokens_only):
    block, _, z = cycling
    orbit = follow_orbit(block, z, 3.5, 16, tol=math.inf)
    matrices = monodromy(block, orbit, 16, tokens_only)
    steps = StepChain(block, orbit, 16, tokens_only, 4)
    assert isinstance(matrices, MatrixChain)
    expected = matrices.to_dense()
    assert torch.allclose(steps.to_dense(), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    assert steps.cost == matrices.cost
    v = torch.ones(matrices.batch, matrices.dim, dtype=torch.float64)
    assert torch.allclose(matrices.rmatvec(v), (expected.mT @ v[:, :, None])[:, :, 0], rtol=1e-10)


def test_a_large_state_is_followed_and_solved_by_arnoldi(generator):
    rates = [(0.2, 1.1), (0.7, 0.4), *((2 + 0.01 * i, 0.5) for i in range(128))]
    system = Turning(rates)
    # so few steps close to 1e-4 only; what is tested is the solver, within the error bars of the discretisation
    orbit = follow_orbit(system, system.initial_state(), system.core.period, 24, tol=1e-3)
    assert orbit.status.good
    found = floquet(system, orbit, count=6, generator=generator)
    assert found.method == "krylov-schur"
    expected = np.real(system.multipliers())[: len(found.multipliers)]
    assert (np.abs(found.log_modulus - expected) <= found.log_error).all()
    assert (found.residual < 1e-9).all()
    assert np.isnan(found.condition).all()


def test_a_neutral_cycle_is_left_undetermined(generator):
    system = LinearFlow(torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64), at(1.0, 0.0))
    orbit = follow_orbit(system, at(1.0, 0.0), 2 * math.pi, 256)
    found = floquet(system, orbit, generator=generator)
    assert found.stable is None
    # followed for the exact period, not one fitted to the steps, it shows their error
    assert 1e-10 < found.trivial_error < 1e-6


def test_bad_input_is_refused_in_words(cycling, generator):
    system = VanDerPol(1.0, at(2.0, 0.0))
    orbit = shoot(system, at(2.0, 0.0), 6.6, steps=64)
    with pytest.raises(UsageError, match="at least one"):
        floquet(system, orbit, 0, generator=generator)
    with pytest.raises(DyneqError, match="causal"):
        floquet(system, orbit, per_token=True, generator=generator)
    rest = shoot(system, at(0.0, 0.0), 6.6)
    with pytest.raises(DyneqError, match="fixed_point"):
        floquet(system, rest, generator=generator)
