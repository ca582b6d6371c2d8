"""Verdicts on systems of known kind from several seeds: right or undetermined, never another kind."""

import math

import numpy as np
import pytest
import torch

from dyneq.dynamics.attractor import classify_attractors, first_moving_token, follow
from dyneq.dynamics.attractor_kinds import AttractorKind as Kind
from dyneq.dynamics.attractor_kinds import Evidence
from dyneq.dynamics.attractor_rules import judge
from dyneq.dynamics.chaos import ZeroOne
from dyneq.dynamics.decay import classify_decay
from dyneq.dynamics.monitor import observe
from dyneq.dynamics.period import measure_oscillation
from dyneq.errors import UsageError
from dyneq.systems import analytic
from dyneq.systems.adapters import from_map, from_ode
from dyneq.systems.protocol import Structure, System, Time

F64 = torch.float64
SEEDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]


def verdicts(system, steps=1000, depth=500, seed=0, samples=2, **options):
    if system.samples > samples:
        system = system.select(torch.arange(samples))
    z = observe(system, system.initial_state(), depth).z if depth else system.initial_state()
    return classify_attractors(system, z, steps=steps, generator=torch.Generator().manual_seed(seed), **options)


def kinds(found):
    return [a.kind for a in found]


def text(a):
    return " ".join(a.against)


def spiral(rate, turn, eps):
    matrix = torch.tensor([[rate, -turn], [turn, rate]], dtype=F64)
    return from_ode(lambda z: (z - 1) @ matrix.mT, torch.tensor([[2.0, 1.5], [1.1, 0.7]], dtype=F64), eps=eps)


def two_oscillators(ratio, eps=0.1):
    """Two uncoupled Stuart-Landau oscillators: a torus where the ratio of their frequencies is irrational."""

    def force(z):
        out = []
        for x, y, nu in ((z[:, 0], z[:, 1], 2.0), (z[:, 2], z[:, 3], 2.0 * ratio)):
            grow = 0.5 - x * x - y * y
            out += [grow * x - nu * y, nu * x + grow * y]
        return torch.stack(out, 1)

    return from_ode(force, torch.tensor([[1.0, 0, 0.5, 0.5], [0.5, 0.3, 0, 1.0]], dtype=F64), eps=eps)


# --- cycles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_stuart_landau_is_a_cycle_of_the_flow(seed):
    system = analytic.StuartLandau(eps=0.1)
    for a in verdicts(system, seed=seed):
        assert a.kind is Kind.CYCLE
        # Euler's circle: abs(1 + eps (r - c rho^2 + i nu)) = 1, so that it turns by asin(eps nu) a step
        assert a.period_steps == pytest.approx(2 * math.pi / math.asin(0.2), rel=1e-9)
        across = math.sqrt(1 - 0.2**2)
        radial = 1 - 2 * 0.1 * (0.5 + (1 - across) / 0.1) * across
        assert a.exponents[1] == pytest.approx(math.log(radial), rel=1e-6)
        assert abs(a.exponents[0]) < 1e-6
        assert a.of_the_flow
        assert a.orbit.period == pytest.approx(system.period, rel=1e-8)
        assert a.orbit.amplitude == pytest.approx(system.cycle_radius, rel=1e-8)
        assert a.first.stationary
        assert a.second.amplitude == pytest.approx(a.first.amplitude, rel=1e-6)


def test_van_der_pol_is_a_cycle_with_the_period_of_the_reference():
    (a,) = verdicts(analytic.VanDerPol(eps=0.05), samples=1, steps=1500)
    assert a.kind is Kind.CYCLE
    assert a.orbit.period == pytest.approx(6.663286859323, rel=1e-8)
    # the map's own period differs at first order in eps
    assert a.period_steps * 0.05 == pytest.approx(6.663286859323, rel=0.05)


@pytest.mark.slow
def test_relaxation_oscillations_need_periods_enough():
    short = verdicts(analytic.VanDerPol(mu=5.0), steps=6000, samples=1)[0]
    assert short.kind is Kind.UNDETERMINED
    assert "periods, 10 are needed" in text(short)
    long = verdicts(analytic.VanDerPol(mu=5.0), steps=24000, samples=1)[0]
    assert long.kind is Kind.CYCLE
    assert long.orbit.period == pytest.approx(11.612230667720, rel=1e-8)


@pytest.mark.parametrize(("eps", "lock"), [(0.5, 12), (0.4, 0)])
def test_the_circle_that_euler_makes_is_a_cycle_of_the_map_and_not_of_the_flow(eps, lock):
    system = analytic.HopfNormalForm(eps=eps)
    for a in verdicts(system, samples=1):
        assert a.kind is Kind.CYCLE
        assert a.period_steps == pytest.approx(2 * math.pi / system.rotation, rel=1e-10)
        assert a.first.lock == lock
        assert a.exponents[1] == pytest.approx(math.log(system.radial_multiplier), rel=1e-6)
        assert a.of_the_flow is False
        assert a.orbit is None
        assert "Euler" in text(a)


def test_a_flip_is_a_cycle_of_two_steps_made_by_euler():
    system = analytic.FlipFlow()
    for a in verdicts(system, steps=600, depth=200):
        assert a.kind is Kind.CYCLE
        assert a.period_steps == 2
        assert a.exponents[0] == pytest.approx(math.log(system.orbit_multiplier) / 2, rel=1e-9)
        assert a.of_the_flow is False


def test_periodic_orbits_of_maps_are_found_by_newton():
    for r, period in ((3.2, 2), (3.5, 4), (3.83, 3)):
        for a in verdicts(analytic.Logistic(r), steps=300):
            assert a.kind is Kind.CYCLE
            assert a.period_steps == a.orbit.period == period
            assert a.of_the_flow is None
    (a, _) = verdicts(analytic.Logistic(3.2), steps=300)
    assert a.exponents[0] == pytest.approx(0.5 * math.log(0.16), rel=1e-9)


# --- what a cycle is mistaken for ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "turn", "eps", "depth"),
    [(-0.3, 2.4, 0.0975, 500), (-0.29, 2.4, 0.099, 0), (-0.2, 2.0, 0.0985, 500), (-0.2, 2.0, 0.09899, 500)],
)
def test_a_decaying_spiral_is_slow_with_the_steps_that_are_left(rate, turn, eps, depth):
    """Trap 14."""
    system = spiral(rate, turn, eps)
    exact = math.log(abs(1 + eps * complex(rate, turn)))
    for a in verdicts(system, depth=depth):
        assert a.kind in (Kind.SLOW, Kind.FIXED_POINT)
        assert a.exponents[0] == pytest.approx(exact, rel=1e-3)
        # to 1e-6 from a residual of order 0.01 to 10, at that rate
        assert math.log(1e2) / -exact < a.predicted_steps < math.log(1e8) / -exact


def test_a_neutral_family_of_orbits_is_no_cycle():
    """Every circle is an orbit: amplitude, period and recurrence are perfect, and the second start stays elsewhere."""
    for system in (analytic.RotationMap(1.2, 1.0), spiral(-0.2, 2.0, 2 * 0.2 / (0.04 + 4.0) - 1e-9)):
        for a in verdicts(system, depth=0):
            assert a.first.stationary
            assert a.kind is Kind.UNDETERMINED
            assert "two starts end with amplitudes" in text(a)


@pytest.mark.parametrize(
    ("r", "start", "steps"),
    [(1e-4, 1.0, 1500), (1e-4, 1.99, 800), (1e-5, 1.9, 1500), (3e-4, 1.0, 4000), (1e-6, 1.99, 900), (1e-6, 1.9, 700)],
)
def test_the_ghost_of_a_fold_is_never_given_a_kind_it_has_not(r, start, steps):
    """No root: the state passes and escapes. While the force is within tolerance it may be called a fixed point."""
    system = from_ode(lambda z: r + (z - 2) ** 2, torch.tensor([[start], [start - 0.02]], dtype=F64))
    for a in verdicts(system, steps=steps, depth=100):
        assert a.kind in (Kind.UNDETERMINED, Kind.DIVERGED)
        if a.kind is Kind.UNDETERMINED:
            assert a.against


def test_a_saddle_that_is_passed_is_not_called_slow():
    """The state falls for long along the stable direction, then leaves along the unstable one."""
    matrix = torch.diag(torch.tensor([-0.1, 0.05], dtype=F64))
    start = torch.tensor([[2.0, 1 + 1e-9], [1.5, 1 - 1e-9]], dtype=F64)
    system = from_ode(lambda z: (z - 1) @ matrix, start)
    # it falls to 5e-8 until step 1400 and reaches 1e-4 at step 2900; at 2100 it is within tolerance, but growing
    for steps in (500, 1600):
        for a in verdicts(system, steps=steps, depth=0):
            assert a.kind is Kind.UNDETERMINED


def test_marginal_roots_are_left_open_and_called_a_power_law():
    fold = from_ode(lambda z: -((z - 1) ** 2), torch.tensor([[2.0], [1.5]], dtype=F64))
    for a in verdicts(fold, steps=2000, depth=0):
        assert a.kind is Kind.UNDETERMINED
        assert a.decay.kind == "power-law"
        assert "marginal root" in text(a)


# --- torus and chaos -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_incommensurate_oscillators_are_a_torus(seed):
    for a in verdicts(two_oscillators(math.sqrt(2)), steps=6000, seed=seed):
        assert a.kind is Kind.TORUS
        assert np.abs(a.exponents[:2]).max() < 1e-6
        assert a.exponents[2] < -0.01


@pytest.mark.slow
def test_two_commensurate_oscillators_are_no_torus():
    """One period, but a whole family of phases: neither attracts, so no kind is given."""
    (a,) = verdicts(two_oscillators(1.0), steps=1000, samples=1)
    assert a.kind is Kind.UNDETERMINED


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("system", "exponent"),
    [(analytic.Henon(), 0.419), (analytic.Logistic(4.0), math.log(2)), (analytic.Tent(1.9), math.log(1.9))],
    ids=["henon", "logistic", "tent"],
)
def test_chaotic_maps(system, exponent, seed):
    for a in verdicts(system, steps=1000, depth=100, seed=seed, samples=2):
        assert a.kind is Kind.CHAOS
        assert a.exponents[0] == pytest.approx(exponent, abs=max(4 * a.exponent_errors[0], 0.002))
        assert a.zero_one > 0.9
        assert math.isnan(a.period_steps)


@pytest.mark.slow
def test_lorenz_is_chaos_and_undetermined_where_the_record_is_short():
    for a in verdicts(analytic.Lorenz(), steps=40000, samples=2):
        assert a.kind is Kind.CHAOS
        assert a.exponents[0] / 0.005 == pytest.approx(0.906, abs=4 * a.exponent_errors[0] / 0.005 + 0.03)
        assert a.exponents.sum() / 0.005 == pytest.approx(-13.667, rel=0.1)
    for a in verdicts(analytic.Lorenz(), steps=1500, samples=2):
        assert a.kind is Kind.UNDETERMINED


@pytest.mark.slow
@pytest.mark.parametrize("c", [4.0, 6.0, 9.0, 18.0])
def test_roessler_through_its_period_doubling(c):
    """Period one at c = 4, two at 6, chaos at 9 and 18 (a=b=0.1): each is named rightly or left open."""

    def force(z):
        x, y, w = z.unbind(-1)
        return torch.stack([-y - w, x + 0.1 * y, 0.1 + w * (x - c)], -1)

    system = from_ode(force, torch.tensor([[1.0, 1, 1], [3, 2, 0]], dtype=F64), eps=0.02)
    allowed = {Kind.CYCLE, Kind.UNDETERMINED} if c < 7 else {Kind.CHAOS, Kind.UNDETERMINED}
    assert set(kinds(verdicts(system, steps=40000, depth=10000, samples=2))) <= allowed


# --- rest, loss, bad input -----------------------------------------------------------------------------------------


def test_rest_loss_and_absorption():
    found = verdicts(from_map(lambda z: z * z, torch.tensor([[1.5], [0.5]], dtype=F64)), depth=0)
    assert kinds(found) == [Kind.DIVERGED, Kind.FIXED_POINT]
    constant = verdicts(from_ode(lambda z: 1 - z, torch.ones(2, 3, dtype=F64)), depth=0)
    assert kinds(constant) == [Kind.FIXED_POINT] * 2
    assert constant[0].amplitude == 0
    # a force far below one unit in the last place of the state
    stuck = verdicts(from_ode(lambda z: 0.01 + 0 * z, torch.full((1, 2), 1e3), eps=1e-4), depth=0, tol=1e-9)
    assert kinds(stuck) == [Kind.UNDETERMINED]
    assert "absorbed by rounding" in " ".join(stuck[0].evidence)


def test_samples_are_judged_each_by_itself():
    """Growing, resting and cycling samples side by side, as alone."""

    def force(z):
        square = (z[:, :2] ** 2).sum(1, keepdim=True)
        x, y, p = z[:, :1], z[:, 1:2], z[:, 2:]
        return torch.cat([(p - square) * x - 2 * y, 2 * x + (p - square) * y, 0 * p], 1)

    start = torch.tensor([[0.5, 0, 0.5], [0.5, 0, -0.5], [1e9, 0, 0.5]], dtype=F64)
    found = verdicts(from_ode(force, start, eps=0.05), samples=3, exponents=2)
    # the parameter p is a third component that never moves: its exponent is 0, as the phase's, so that a cycle
    # cannot be told from one of a family
    assert kinds(found) == [Kind.UNDETERMINED, Kind.FIXED_POINT, Kind.DIVERGED]


def test_what_was_not_measured_is_named():
    system = analytic.StuartLandau(eps=0.1)
    assert "exponents were not measured" in text(verdicts(system, exponents=0, samples=1, steps=400)[0])
    assert "second exponent" in text(verdicts(system, exponents=1, samples=1, steps=400)[0])
    alone = verdicts(system, second_start=False, samples=1, steps=400)[0]
    assert alone.kind is Kind.UNDETERMINED
    assert "second start was not followed" in text(alone)
    assert "periods, 10 are needed" in text(verdicts(system, steps=250, samples=1)[0])


def test_bad_numbers_are_refused():
    with pytest.raises(UsageError, match="at least 200 steps"):
        verdicts(analytic.Henon(), steps=100, depth=0)
    with pytest.raises(UsageError, match="cannot be negative"):
        verdicts(analytic.Henon(), steps=300, depth=0, exponents=-1)


def test_single_precision_is_right_or_undetermined():
    z0 = torch.tensor([[1.0, 0.2], [0.4, 0.4]])
    for a in verdicts(analytic.StuartLandau(eps=0.1, z0=z0), shooting=False):
        assert a.kind is Kind.CYCLE
        assert a.period_steps == pytest.approx(2 * math.pi / math.asin(0.2), rel=1e-5)
    rest = verdicts(from_ode(lambda z: 1 - z, torch.zeros(2, 3)))
    assert kinds(rest) == [Kind.FIXED_POINT] * 2


# --- causal systems ------------------------------------------------------------------------------------------------


class Row(System):
    """Tokens that are planar oscillators; each also sees the one before. Only those with r > 0 cycle by themselves."""

    name = "row of oscillators"
    time = Time.FLOW
    eps = 0.1
    structure = Structure(1, True)

    def __init__(self, growth, frequency):
        self.r, self.nu = (torch.tensor(v, dtype=F64)[:, None] for v in (growth, frequency))
        tokens = len(growth)
        self.z0 = torch.full((1, tokens, 2), 0.4, dtype=F64) + 0.1 * torch.arange(tokens)[:, None]

    def initial_state(self):
        return self.z0

    def select(self, samples):
        return self

    def force(self, z, context=None):
        c = z if context is None else context
        before = torch.cat([torch.zeros_like(c[:, :1]), c[:, :-1]], 1)
        x, y = z[..., :1], z[..., 1:]
        grow = self.r - x * x - y * y
        return torch.cat([grow * x - self.nu * y, self.nu * x + grow * y], -1) + 0.1 * before + 0.05


def test_a_cycle_starts_at_its_token_and_drives_the_later_ones():
    system = Row([-1.0, 0.5, -1.0], [1.0, 2.0, 1.5])
    z = observe(system, system.z0, 300).z
    followed = follow(system, z, steps=600, generator=torch.Generator().manual_seed(0))
    (a,) = followed.attractors
    assert a.kind is Kind.CYCLE
    assert a.token == 1
    assert a.orbit.z.shape == (1, 2)  # the token's own
    assert a.of_the_flow
    assert first_moving_token(followed.record, 0, 1e-6) == 1


@pytest.mark.slow
def test_two_tokens_that_cycle_by_themselves_are_a_torus_or_left_open():
    system = Row([0.5, 0.5], [2.0, 2.0 * math.sqrt(2)])
    (a,) = classify_attractors(
        system, observe(system, system.z0, 1000).z, steps=6000, generator=torch.Generator().manual_seed(0)
    )
    assert a.kind in (Kind.TORUS, Kind.UNDETERMINED)
    assert a.token == 0


# --- the rules themselves ------------------------------------------------------------------------------------------


def evidence(**changed):
    """Return the evidence of a perfect cycle, with changes."""
    n = np.arange(4000)
    x = np.stack([np.cos(2 * np.pi * n / 25.3), np.sin(2 * np.pi * n / 25.3)], 1)
    o = measure_oscillation(x)
    step = np.arange(16.0, 4001, 16)
    known = {
        "time": Time.FLOW,
        "steps": 4000,
        "tol": 1e-6,
        "residual": 0.1,
        "lost": -1,
        "frozen": False,
        "decay": classify_decay(step, np.full(len(step), 0.1), tol=1e-6, rounding=2e-16),
        "first": o,
        "second": o,
        "exponents": np.array([1e-5, -0.02]),
        "errors": np.array([1e-4, 1e-4]),
        "averaged": 3200,
        "dimension": 10,
        "zero_one": ZeroOne(0.01, 0.05, 600, 6),
    }
    return Evidence(**{**known, **changed})


def test_the_rules_name_a_kind_only_where_everything_is_there():
    assert judge(evidence()).kind is Kind.CYCLE
    chaotic, half = ZeroOne(0.99, 0.01, 900, 3), ZeroOne(0.5, 0.3, 900, 3)
    positive = {"exponents": np.array([0.02, -0.02]), "errors": np.array([1e-3, 1e-3])}
    assert judge(evidence(**positive, zero_one=chaotic)).kind is Kind.CHAOS
    open_ = [
        {**positive},  # the 0-1 test reads regular
        {**positive, "zero_one": half},
        {**positive, "zero_one": None},
        {**positive, "zero_one": chaotic, "second": None, "second_end": "came to rest at a fixed point"},
        {"zero_one": chaotic},
        {"second": None, "second_end": "came to rest at a fixed point"},
        {"exponents": np.array([1e-5, -1e-4])},  # the second is not seen to be negative
        {"exponents": np.array([0.02, -0.02]), "errors": np.array([0.01, 1e-3]), "zero_one": chaotic},  # two errors
        {"exponents": np.array([1e-3, -0.02]), "errors": np.array([1e-5, 1e-5]), "zero_one": chaotic},  # three nats
        {"exponents": np.array([np.nan, np.nan])},
        {"frozen": True},
    ]
    for changed in open_:
        verdict = judge(evidence(**changed))
        assert verdict.kind is Kind.UNDETERMINED, changed
        assert verdict.against
    assert judge(evidence(lost=17)).kind is Kind.DIVERGED
    assert judge(evidence(residual=1e-8)).kind is Kind.FIXED_POINT
