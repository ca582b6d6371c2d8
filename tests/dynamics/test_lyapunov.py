"""Exponents by QR against closed forms, dense eigenvalues, published values, and their own error bars."""

import math

import numpy as np
import pytest
import torch

from dyneq.dynamics.averages import Averages, Plan
from dyneq.dynamics.dimension import kaplan_yorke
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.lyapunov import lyapunov_exponents, product_exponents, token_exponents
from dyneq.dynamics.relax import relax
from dyneq.errors import DyneqError, UsageError
from dyneq.systems import analytic
from dyneq.systems.adapters import from_ode

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def exponents(system, steps, count, **options):
    return lyapunov_exponents(system, system.initial_state(), steps, count, generator=seeded(), **options)


def test_logistic_and_tent_at_full_chaos_are_ln_2():
    logistic = exponents(analytic.Logistic(r=4.0), 2500, 1, warmup=50)
    assert ((logistic.values - math.log(2)).abs() < 4 * logistic.errors).all()
    assert logistic.errors.max() < 0.01
    tent = exponents(analytic.Tent(), 250, 1)  # both slopes are 2 in modulus
    assert (tent.values - math.log(2)).abs().max() < 1e-13
    assert tent.errors.max() < 1e-13


def test_logistic_of_period_2():
    found = exponents(analytic.Logistic(r=3.2), 250, 1, warmup=500)
    assert (found.values - 0.5 * math.log(0.16)).abs().max() < 1e-12


def test_superstable_map_is_minus_infinity_without_an_error_bar():
    """At r = 2 the root is the critical point 1/2, where the slope is 0."""
    found = exponents(analytic.Logistic(r=2.0, z0=torch.tensor([[0.5], [0.1]], dtype=F64)), 100, 1)
    assert found.values[0, 0] == -torch.inf
    assert found.errors[0, 0].isnan()
    assert (found.history[:, 0] == -torch.inf).all()
    assert found.resolved.all()
    assert found.valid.all()


def test_henon_sum_is_ln_of_the_determinant_and_both_are_as_published():
    found = exponents(analytic.Henon(), 2500, 2, warmup=100)
    assert (found.values.sum(-1) - math.log(0.3)).abs().max() < 1e-12
    published = torch.tensor([0.419, -1.623], dtype=F64)  # to three places
    assert ((found.values - published).abs() < 4 * found.errors + 5e-4).all()
    assert found.errors.max() < 0.02
    for values, errors in zip(found.values.numpy(), found.errors.numpy(), strict=True):
        dimension, bar = kaplan_yorke(values, errors, complete=True, moving=True)
        assert dimension == pytest.approx(1 + 0.419 / 1.623, abs=4 * bar + 1e-3)


@pytest.mark.parametrize(("scheme", "order", "step"), [("euler", 1, 4e-3), ("rk4", 4, 2e-2)])
def test_lorenz_sum_is_the_divergence_at_the_order_of_the_scheme(scheme, order, step):
    lorenz = analytic.Lorenz()
    errors = []
    for h in (step, step / 2):
        # one time unit, before the trajectories of the two steps have parted
        found = exponents(lorenz, round(1 / h), 3, scheme=scheme, step=h, batches=2)
        errors.append((found.values.sum(-1) / h - lorenz.exponent_sum).abs())
    measured = (errors[0] / errors[1]).log2()
    assert (measured - order).abs().max() < 0.2
    assert errors[1].max() < (0.2 if order == 1 else 1e-3)


def test_lorenz_exponents_and_dimension_are_as_published():
    lorenz = analytic.Lorenz(z0=analytic.Lorenz().initial_state().repeat(16, 1))
    noise = torch.randn(64, 3, generator=seeded(), dtype=F64)
    found = lyapunov_exponents(
        lorenz, lorenz.initial_state() + noise, 750, 3, generator=seeded(), scheme="rk4", step=0.02, warmup=250
    )
    rates, bars = found.values / 0.02, found.errors / 0.02
    mean, error = rates.mean(0), rates.std(0) / 8  # of 64 independent trajectories
    published = torch.tensor([0.906, 0.0, -14.57], dtype=F64)
    # a fourth-order step of 0.02 moves the sum by less than 1e-3, and the last place is rounded
    assert ((mean - published).abs() < 4 * error + 0.006).all()
    assert error.max() < 0.03
    # the error bars of single trajectories are no smaller than these scatter
    assert (bars.square().mean(0).sqrt() > 0.8 * rates.std(0)).all()
    dimension, bar = kaplan_yorke(mean.numpy(), error.numpy(), complete=True, moving=True)
    assert dimension == pytest.approx(2.062, abs=4 * bar + 1e-3)


@pytest.mark.parametrize(("scheme", "order"), [("euler", 1), ("rk4", 4)])
def test_stuart_landau_cycle_has_0_and_minus_2r_at_the_order_of_the_scheme(scheme, order):
    r = 0.5
    cycle = analytic.StuartLandau(r=r, z0=torch.tensor([[math.sqrt(r), 0.0]], dtype=F64))
    errors = []
    for h in (0.2, 0.1):
        found = exponents(cycle, round(60 / h), 2, scheme=scheme, step=h, warmup=round(20 / h))
        errors.append((found.values[0] / h - torch.tensor([0.0, -2 * r], dtype=F64)).abs())
        # an invariant circle without resonance has exponent 0 whatever the step
        assert errors[-1][0] < 1e-6
    assert float((errors[0] / errors[1]).log2()[1]) == pytest.approx(order, abs=0.35)


def test_linear_flow_has_the_logarithms_of_its_multipliers():
    """Real ones to rounding and alignment; a pair's mean likewise, each of the two within its error bar."""
    basis = torch.randn(5, 5, generator=seeded(2), dtype=F64)
    blocks = torch.block_diag(*(torch.tensor(b, dtype=F64) for b in ([[0.6]], [[-0.5, 2.0], [-2.0, -0.5]], [[-3.0]])))
    blocks = torch.block_diag(blocks, torch.tensor([[-6.0]], dtype=F64))
    matrix = basis @ blocks @ torch.linalg.inv(basis)
    system = analytic.LinearFlow(matrix, torch.zeros(3, 5, dtype=F64), eps=0.1)
    found = exponents(system, 1000, 5)
    expected = (1 + 0.1 * torch.linalg.eigvals(matrix)).abs().log().sort(descending=True).values
    single = [0, 3, 4]
    # the tangent vectors align at rates of at least 0.05 a step, over 200 steps
    assert (found.values - expected)[:, single].abs().max() < 1e-2 * math.exp(-200 * 0.05)
    pair = found.values[:, 1:3]
    assert (pair.mean(-1) - expected[1]).abs().max() < 1e-6
    assert ((pair - expected[1]).abs() <= 4 * found.errors[:, 1:3]).all()
    # over a batch of 40 steps what rotates changes a logarithm by no more than that of the basis's condition
    assert found.errors[:, 1:3].max() < math.log(float(torch.linalg.cond(basis))) / 40 / 20**0.5


def test_gaussian_products_and_the_calibration_of_error_bars():
    """Error bars from one product each are right: z-scores are Student's of 19 degrees, whose deviation is 1.057."""
    size, gain, samples, steps = 6, 1.3, 150, 300
    matrices = analytic.gaussian_matrices(steps, size, gain, samples=samples)
    found = product_exponents(matrices, size, generator=seeded())
    exact = analytic.gaussian_exponents(size, gain)
    used = steps - found.aligning
    scatter = analytic.gaussian_exponent_errors(size, used)
    assert used == 240
    mean = found.values.mean(0)
    assert ((mean - exact).abs() < 5 * scatter / samples**0.5).all()
    z = (found.values - exact) / found.errors
    # 900 scores, those of one product not independent: the deviation is known to a few percent; widening adds as much
    assert 0.95 < float(z.std()) < 1.17
    assert float((z.abs() > 3).double().mean()) < 0.02
    # and the bars are those of theory
    assert (found.errors.square().mean(0).sqrt() / scatter - 1).abs().max() < 0.12


def test_large_gaussian_product_has_the_reference_value():
    found = product_exponents(analytic.gaussian_matrices(2000, 20, 1.3), 1, generator=seeded())
    assert float(found.values[0, 0]) == pytest.approx(0.236948, abs=4 * float(found.errors[0, 0]))
    assert float(found.errors[0, 0]) < 0.01


def test_union_over_tokens_is_the_list_of_the_whole_and_log_multipliers_at_the_root(build):
    system = build(seed=1, samples=2, tokens=3, channels=4, gain=0.5)
    z = relax(system, 1500).z
    assert system.force(z).abs().max() < 1e-12
    exact = (1 + system.eps * torch.linalg.eigvals(Linearization(system, z).token_blocks())).abs().log()
    assert exact.max() < 0
    steps = 500
    whole = lyapunov_exponents(system, z, steps, 12, generator=seeded())
    tokens = token_exponents(system, z, steps, 4, generator=seeded())
    assert tokens.values.shape == (2, 3, 4)
    for found, expected in (
        (whole.values, exact.flatten(1)),
        (tokens.values, exact),
        (tokens.values.flatten(1), exact.flatten(1)),
    ):
        ordered = found.sort(descending=True).values
        # what rotates or is not aligned yet changes a logarithm by the order of 1 in all: 3 in 400 steps
        assert (ordered - expected.sort(descending=True).values).abs().max() < 3 / 400
        # and sums, which are logarithms of volumes, do not rotate
        assert (ordered.sum(-1) - expected.sum(-1)).abs().max() < 1e-10


def test_error_bars_cover_the_truth_at_roots_with_rotating_pairs(build):
    """Tokens of 3 random blocks at their roots: the leading exponent is within 4 bars or 1e-4 of the exact one."""
    scores = []
    for seed in range(3):
        system = build(seed=seed, samples=3, tokens=4, gain=0.6)
        z = relax(system, 1500).z
        if system.force(z).abs().max() > 1e-10:
            continue
        exact = (1 + system.eps * torch.linalg.eigvals(Linearization(system, z).token_blocks())).abs().log().amax(-1)
        found = token_exponents(system, z, 300, 1, generator=seeded(seed))
        scores.append(((found.values[..., 0] - exact).abs() / (found.errors[..., 0] + 2.5e-5)).flatten())
    z = torch.cat(scores)
    assert len(z) >= 24
    assert (z < 4).double().mean() > 0.95


def test_a_sample_that_is_lost_spoils_no_other():
    start = torch.tensor([[-0.9], [3.0], [-0.5]], dtype=F64)
    system = from_ode(lambda z: z * z - 1, start)
    found = lyapunov_exponents(system, start, 400, 1, generator=seeded(), warmup=20)
    assert found.valid.tolist() == [True, False, True]
    assert found.values[1].isnan().all()
    assert found.errors[1].isnan().all()
    assert found.history[:, 1].isnan().all()
    assert not found.resolved[1].any()
    # the root is -1, its multiplier 1 - 2 eps
    assert (found.values[[0, 2]] - math.log(0.8)).abs().max() < 1e-6


def test_fewer_orthonormalisations_give_the_same_numbers_until_rounding_eats_them():
    henon = analytic.Henon()
    often, seldom = (exponents(henon, 500, 2, warmup=50, qr_every=q) for q in (1, 5))
    assert (often.values - seldom.values).abs().max() < 1e-10
    lost = exponents(henon, 2500, 2, warmup=50, qr_every=50)
    assert lost.resolved[:, 0].all()
    assert not lost.resolved[:, 1].any()
    singular = analytic.LinearMap(torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=F64), torch.ones(1, 2, dtype=F64))
    found = exponents(singular, 50, 2)
    assert found.resolved.tolist() == [[True, False]]
    assert float(found.values[0, 0]) == pytest.approx(math.log(5), rel=1e-12)


@pytest.mark.parametrize(("steps", "every", "batches"), [(400, 1, 20), (997, 3, 20), (25, 1, 20), (5000, 7, 11)])
def test_history_is_bounded_and_ends_with_the_values(steps, every, batches):
    system = analytic.Logistic(r=3.9)
    found = exponents(system, steps, 1, qr_every=every, batches=batches)
    assert len(found.history) == len(found.history_steps) <= 256
    assert int(found.history_steps[-1]) == found.steps == steps
    assert (found.history_steps.diff() > 0).all()
    assert torch.equal(found.history[-1], found.values)
    assert steps / 5 <= found.aligning < steps / 5 + batches * every + every
    # by hand: the orbit's slopes after the aligning steps
    z, total = system.initial_state(), 0.0
    for n in range(steps):
        if n >= found.aligning:
            total = total + (3.9 * (1 - 2 * z)).abs().log()
        z = z + system.force(z)  # rounded as the relaxation rounds: the orbit is chaotic
    assert (found.values - total / (steps - found.aligning)).abs().max() < 1e-6


def test_a_row_of_the_history_is_what_a_shorter_horizon_gives():
    system = analytic.Logistic(r=3.9)
    row = 100
    found = exponents(system, 200, 1)
    short = exponents(system, int(found.history_steps[row]), 1, batches=2)
    assert abs(int(found.history_steps[row]) * 0.2 - short.aligning) < 2
    assert (found.history[row] - short.values).abs().max() < 3 / 80  # one step more or less of some 80


def test_batch_means_widen_where_batches_are_correlated():
    """An autoregressive series whose correlation time is longer than a batch: the bar stays a fair one."""
    steps, samples, keep = 2000, 400, 0.99
    generator = np.random.default_rng(0)
    series = np.zeros((steps, samples))
    for n in range(1, steps):
        series[n] = keep * series[n - 1] + generator.standard_normal(samples)
    averages = Averages(Plan.of(steps, 1, 20), (samples,), torch.device("cpu"))
    for n in range(steps):
        averages.add(n + 1, torch.from_numpy(series[n]))
    mean, error, _ = averages.finish()
    plain = torch.from_numpy(series[400:].reshape(20, 80, samples).mean(1).std(0, ddof=1) / 20**0.5)
    z, naive = (mean / error).std(), (mean / plain).std()
    assert naive > 1.5
    assert z < 0.8 * naive
    assert ((error == plain) | (error > plain)).double().mean() > 0.95


def test_single_precision_and_one_sample():
    system = analytic.LinearFlow(torch.diag(torch.tensor([-0.5, -2.0])), torch.ones(1, 2), eps=0.1)
    found = exponents(system, 300, 2)
    assert found.values.dtype == F64
    assert (found.values[0] - torch.tensor([0.95, 0.8], dtype=F64).log()).abs().max() < 1e-5


def test_the_seed_decides_the_vectors_and_nothing_else_does():
    first, again, other = (
        lyapunov_exponents(analytic.Henon(), analytic.Henon().initial_state(), 100, 2, generator=seeded(s))
        for s in (0, 0, 1)
    )
    assert torch.equal(first.history, again.history)
    assert not torch.equal(first.history, other.history)


def test_what_cannot_be_asked_is_said():
    henon = analytic.Henon()
    with pytest.raises(UsageError, match=r"between 1 and 2 exponents exist.*3 were asked"):
        exponents(henon, 100, 3)
    with pytest.raises(UsageError, match=r"10 steps is too short for 20 batches.*at least 25 steps"):
        exponents(henon, 10, 1)
    with pytest.raises(UsageError, match="at least 2 batches"):
        exponents(henon, 100, 1, batches=1)
    with pytest.raises(UsageError, match="cannot be negative"):
        exponents(henon, 100, 1, warmup=-1)
    with pytest.raises(UsageError, match="is a map"):
        exponents(henon, 100, 1, scheme="rk4")
    with pytest.raises(DyneqError, match="causal"):
        token_exponents(henon, henon.initial_state(), 100, 1, generator=seeded())


@pytest.mark.parametrize("steps", range(25, 60))
def test_the_least_horizon_that_is_named_is_enough(steps):
    for every in (1, 2, 3):
        try:
            plan = Plan.of(steps, every, 20)
        except UsageError as error:
            least = int(str(error).split("at least ")[-1].split()[0])
            assert least > steps
            assert Plan.of(least, every, 20).length == every
        else:
            assert plan.length % every == 0
            assert plan.aligning >= 0.2 * steps - 1e-9


@pytest.mark.parametrize(
    ("values", "errors", "complete", "expected"),
    [
        ([0.9, 0.0, -14.5], [0.01, 0.001, 0.01], True, 2 + 0.9 / 14.5),
        ([-0.1, -1.0], [0.001, 0.001], True, 0.0),
        ([1e-9, -1.0], [1e-4, 1e-4], True, 1.0),  # a cycle
        ([-1e-5, -1.0], [1e-4, 1e-4], True, 1.0),
        ([0.0, -1e-5, -1.0], [1e-4, 1e-4, 1e-4], True, np.nan),  # a torus, a cycle or a point: not told
        ([0.5, -0.2], [0.01, 0.01], False, np.nan),  # more would be needed
        ([0.5, -0.2], [0.01, 0.01], True, 2.0),
        ([0.5], [0.01], False, np.nan),
        ([-np.inf], [np.nan], True, 0.0),
        ([0.5, -np.inf], [0.01, np.nan], True, 1.0),
        ([np.nan, -1.0], [np.nan, 0.1], True, np.nan),
        ([], [], False, np.nan),
    ],
)
def test_kaplan_yorke_dimension(values, errors, complete, expected):
    dimension, bar = kaplan_yorke(np.array(values), np.array(errors), complete=complete, moving=True)
    assert dimension == pytest.approx(expected, nan_ok=True, rel=1e-12)
    assert np.isnan(bar) or bar >= 0


def test_a_leading_exponent_at_0_is_a_cycle_only_where_the_state_moves():
    values, errors = np.array([0.0, -1.0]), np.array([1e-3, 1e-3])
    assert kaplan_yorke(values, errors, complete=True, moving=True) == (1.0, 1e-3)
    assert np.isnan(kaplan_yorke(values, errors, complete=True, moving=False)).all()
    assert kaplan_yorke(values[:1], errors[:1], complete=True, moving=True)[0] == 1.0


def test_margin_is_the_widest_of_three():
    found = exponents(analytic.Henon(), 400, 2)
    assert (found.margin >= 3 * found.errors).all()
    half = int((found.history_steps - 200).abs().argmin())
    assert (found.margin >= 2 * (found.values - found.history[half]).abs()).all()
    constant = analytic.LinearMap(torch.diag(torch.tensor([1.01, 0.5], dtype=F64)), torch.zeros(1, 2, dtype=F64))
    found = exponents(constant, 100, 1)  # growth by 1.01^80 = 2.2 shows nothing yet
    assert float(found.margin[0, 0]) == pytest.approx((1 + math.log(2) / 2) / 80)
