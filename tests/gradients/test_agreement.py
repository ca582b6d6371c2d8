"""Statistics of agreement: explicit vectors in NumPy, planted populations, coverage of intervals, and what fails."""

import itertools

import numpy as np
import pytest
from scipy import stats

from dyneq.gradients.agreement import (
    Pair,
    cosine_of_means,
    cosines,
    error_parts,
    gram_matrix,
    limit_cosine,
    log_ratios,
    mean_of_cosines,
    norm_ratio,
    pair,
    self_cosine,
)
from dyneq.gradients.averaging import averaged_cosine, counts, subsets


def cos(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.fixture(name="vectors")
def _vectors():
    """Gradients [estimator, batch, entry] that share a direction, the reference last."""
    rng = np.random.default_rng(3)
    v = rng.standard_normal((3, 5, 12))
    v[2] += 2.0
    v[0] += 0.7 * v[2]
    v[1] -= v[2]
    return v


def of(vectors, e=0):
    return pair(gram_matrix(vectors), e, 2)


def interval_from(values, value, error):
    """Student's interval around a value with a standard error."""
    return stats.t.interval(0.95, len(values) - 1, loc=value, scale=error)


def jackknifed(statistic, batches):
    """Delete-one jackknife standard error from explicit vectors."""
    index = np.arange(batches)
    left = np.array([statistic(np.delete(index, b)) for b in index])
    return (batches - 1) ** 0.5 * left.std(), left


def matches(found, value, low, high):
    for got, expected in zip((found.value, found.low, found.high), (value, low, high), strict=True):
        assert float(got) == pytest.approx(expected, rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("e", [0, 1])
def test_statistics_of_one_number_a_batch_equal_numpy_and_scipy(vectors, e):
    g, r = vectors[e], vectors[2]
    each = np.array([cos(a, b) for a, b in zip(g, r, strict=True)])
    np.testing.assert_allclose(cosines(of(vectors, e)), each, rtol=1e-13)
    matches(mean_of_cosines(of(vectors, e)), each.mean(), *interval_from(each, each.mean(), stats.sem(each)))
    logs = np.log(np.linalg.norm(g, axis=1) / np.linalg.norm(r, axis=1))
    np.testing.assert_allclose(log_ratios(of(vectors, e)), logs, rtol=1e-11, atol=1e-14)
    matches(norm_ratio(of(vectors, e)), np.exp(logs.mean()), *np.exp(interval_from(logs, logs.mean(), stats.sem(logs))))


@pytest.mark.parametrize("e", [0, 1])
def test_jackknifed_statistics_equal_explicit_deletion(vectors, e):
    g, r = vectors[e], vectors[2]

    def of_means(keep):
        return np.arctanh(cos(g[keep].mean(0), r[keep].mean(0)))

    def pairwise(keep):
        return np.mean([cos(g[a], g[b]) for a, b in itertools.combinations(keep, 2)])

    def expected(keep):
        off = list(itertools.permutations(keep, 2))
        gr, gg, rr = (np.mean([x[a] @ y[b] for a, b in off]) for x, y in ((g, r), (g, g), (r, r)))
        return gr / np.sqrt(gg * rr)

    whole = np.arange(5)
    for statistic, found, back in (
        (of_means, cosine_of_means(of(vectors, e)), np.tanh),
        (pairwise, self_cosine(of(vectors, e).gg), lambda x: np.clip(x, -1, 1)),
        (expected, limit_cosine(of(vectors, e)), lambda x: np.clip(x, -1, 1)),
    ):
        error, left = jackknifed(statistic, 5)
        low, high = interval_from(left, statistic(whole), error)
        matches(found, back(statistic(whole)), back(low), back(high))


@pytest.mark.parametrize("fitted", [True, False])
def test_bias_and_variance_equal_explicit_differences(vectors, fitted):
    g, r = vectors[0], vectors[2]

    def parts(keep):
        a, b = g[keep], r[keep]
        s = (a * b).sum() / (b * b).sum() if fitted else 1.0
        unit = np.mean(np.sum((a if fitted else b) ** 2, axis=1))
        d = a - s * b
        variance = d.var(axis=0, ddof=1).sum() / unit  # the trace of the sample covariance
        bias = (d.mean(0) @ d.mean(0)) / unit - variance / len(keep)  # the squared mean, corrected for its noise
        return np.array([bias, variance, np.clip(bias / (np.mean(np.sum(d**2, axis=1)) / unit), 0, 1), s])

    found = error_parts(of(vectors), fitted=fitted)
    value = parts(np.arange(5))
    assert float(found.scale) == pytest.approx(value[3], rel=1e-12)
    left = np.array([parts(np.delete(np.arange(5), b)) for b in range(5)])
    for i, interval in enumerate((found.bias, found.variance)):
        low, high = interval_from(left, value[i], 2 * left[:, i].std())
        matches(interval, value[i], low, high)
    assert float(found.share.value) == pytest.approx(value[2], rel=1e-11)


def test_the_fitted_parts_and_the_part_along_the_reference_make_up_the_whole(vectors):
    """Pythagoras: the error is orthogonal to the reference by the fit."""
    found, g, r = error_parts(of(vectors), fitted=True), vectors[0], vectors[2]
    along = float(found.scale) ** 2 * (r**2).sum() / (g**2).sum()
    assert float(found.bias.value + found.variance.value) + along == pytest.approx(1, rel=1e-12)


def draw(rng, repeats, batches, s, beta, common, own, entries=40):
    """Gradients g = s r + bias + own noise, r = unit vector + common noise; bias orthogonal to the unit vector."""
    mean, bias = np.zeros(entries), np.zeros(entries)
    mean[0], bias[1] = 1.0, beta
    r = mean + common / entries**0.5 * rng.standard_normal((repeats, batches, entries))
    g = s * r + bias + own / entries**0.5 * rng.standard_normal((repeats, batches, entries))

    def inner(a, b):
        return np.einsum("rbp,rcp->rbc", a, b)

    return Pair(inner(g, g), inner(g, r), inner(r, r))


REPEATS = 2000
#: 3.3 standard errors of a coverage of 95 % seen in that many repeats: one false alarm in a thousand.
BINOMIAL = 3.3 * (0.95 * 0.05 / REPEATS) ** 0.5


@pytest.mark.parametrize(
    ("s", "beta", "common", "own", "batches"),
    [(3.0, 1.5, 1.0, 0.5, 8), (1.0, 0.3, 0.5, 0.2, 8), (1.0, 0.3, 0.5, 0.2, 4), (0.5, 1.0, 0.5, 0.5, 12)],
)
def test_intervals_cover_planted_populations(s, beta, common, own, batches):
    rng = np.random.default_rng(11)
    p = draw(rng, REPEATS, batches, s, beta, common, own)
    many = draw(rng, 4000, batches, s, beta, common, own)
    square_g, square_r = s**2 * (1 + common**2) + beta**2 + own**2, 1 + common**2
    fitted, raw = error_parts(p, fitted=True), error_parts(p, fitted=False)
    # what has no closed form is the mean over 4000 repeats, off by a 63rd of one estimate's deviation, which changes a
    # coverage by less than 1e-4; bias, variance and limit are those of the population, in closed form
    truths = {
        "cosine": (mean_of_cosines(p), mean_of_cosines(many).value.mean()),
        "ratio": (norm_ratio(p), np.exp(np.log(norm_ratio(many).value).mean())),
        "means": (cosine_of_means(p), np.tanh(np.arctanh(cosine_of_means(many).value).mean())),
        "self": (self_cosine(p.gg), self_cosine(many.gg).value.mean()),
        "limit": (limit_cosine(p), s / np.hypot(s, beta)),
        "bias": (fitted.bias, beta**2 / square_g),
        "variance": (fitted.variance, own**2 / square_g),
        "share": (fitted.share, beta**2 / (beta**2 + own**2)),
        "raw bias": (raw.bias, ((s - 1) ** 2 + beta**2) / square_r),
        "raw variance": (raw.variance, ((s - 1) ** 2 * common**2 + own**2) / square_r),
    }
    for name, (found, truth) in truths.items():
        covered = float(((found.low <= truth) & (truth <= found.high)).mean())
        # means of one number a batch are nearly normal, so their coverage is exact; the jackknife's variance is too
        # large on average (Efron and Stein), never too small, and with few batches its statistics are skewed
        upper = BINOMIAL if name in ("cosine", "ratio") else 0.05
        assert -BINOMIAL - 0.01 <= covered - 0.95 <= upper, (name, covered)


def test_without_bias_none_is_found_and_noise_does_not_pass_for_it():
    p = draw(np.random.default_rng(5), REPEATS, 6, 2.0, 0.0, 1.0, 1.5)
    found = error_parts(p, fitted=True)
    mean, error = found.bias.value.mean(), found.bias.value.std() / REPEATS**0.5
    assert abs(mean) < 4 * error  # a plain squared mean would give variance/6, more than 100 of these errors
    assert found.variance.value.mean() / 6 > 50 * error
    assert (found.bias.low <= 0).mean() > 0.95 - BINOMIAL
    assert (limit_cosine(p).high >= 1 - 1e-12).mean() > 0.95 - BINOMIAL


def test_a_zero_gradient_has_no_cosine_and_one_batch_no_interval(vectors):
    vectors[0, 2] = 0
    found = mean_of_cosines(of(vectors))
    assert np.isnan([found.value, found.low, found.high]).all()
    assert np.isfinite(cosines(of(vectors))).sum() == 4
    assert np.isnan(norm_ratio(of(vectors)).value)
    assert np.isfinite(cosine_of_means(of(vectors)).value)
    one = of(vectors[:, :1])
    for statistic in (mean_of_cosines, cosine_of_means, norm_ratio):
        assert np.isfinite(statistic(one).value)
        assert np.isnan(statistic(one).low)
    for statistic in (limit_cosine, lambda p: self_cosine(p.gg), lambda p: error_parts(p, fitted=True).bias):
        assert np.isnan(statistic(one).value)
    two = of(vectors[:, :2])
    assert np.isfinite(self_cosine(two.gg).value)
    assert np.isnan(self_cosine(two.gg).low)
    assert np.isfinite(mean_of_cosines(two).low)


def test_equal_gradients_have_an_interval_of_rounding_and_no_share(vectors):
    vectors[0] = vectors[2]
    found = mean_of_cosines(of(vectors))
    assert float(found.value) == pytest.approx(1, abs=1e-14)
    assert 0 < float(found.error) < 1e-14
    parts = error_parts(of(vectors), fitted=True)
    assert abs(float(parts.bias.value)) <= float(parts.bias.error) < 1e-13
    assert np.isnan(parts.share.value)


def test_scales_of_gradients_do_not_matter(vectors):
    expected = limit_cosine(of(vectors))
    vectors[0] *= 1e-100
    vectors[2] *= 1e120
    matches(limit_cosine(of(vectors)), *(float(x) for x in (expected.value, expected.low, expected.high)))
    assert float(norm_ratio(of(vectors)).value) < 1e-215


def test_leading_axes_are_groups(vectors):
    gram = np.stack([gram_matrix(vectors), gram_matrix(vectors[:, :, :4])])
    found = limit_cosine(pair(gram, 0, 2))
    alone = limit_cosine(of(vectors[:, :, :4]))
    assert found.value[1] == pytest.approx(float(alone.value), rel=1e-13)
    assert found.low[1] == pytest.approx(float(alone.low), rel=1e-13)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_averaging_is_over_every_choice_of_batches(vectors, n, same):
    g, r = vectors[0], vectors[2]

    def averaged(keep, size):
        target = r[list(keep)].mean(0)
        chosen = [list(c) for c in itertools.combinations(keep, size)]
        return np.mean([cos(g[c].mean(0), r[c].mean(0) if same else target) for c in chosen])

    error, left = jackknifed(lambda keep: averaged(keep, min(n, 4)), 5)
    value = averaged(range(5), n)
    low, high = interval_from(left, value, error)
    matches(averaged_cosine(of(vectors), n, same=same), value, low, min(high, 1))


def test_averaging_agrees_with_the_statistics_of_one_and_of_all(vectors):
    p = of(vectors)
    one = averaged_cosine(p, 1, same=True)  # the jackknife of a mean is its t-interval
    matches(one, *(float(x) for x in (lambda m: (m.value, m.low, m.high))(mean_of_cosines(p))))
    for same in (True, False):
        assert float(averaged_cosine(p, 5, same=same).value) == pytest.approx(
            float(cosine_of_means(p).value), rel=1e-13
        )
    assert counts(16) == [1, 2, 4, 8, 16]
    assert counts(6) == [1, 2, 4, 6]
    assert counts(1) == [1]
    assert subsets(16, 8).shape == (12870, 16)
    assert (subsets(5, 3).sum(1) == 3).all()
    assert np.isnan(averaged_cosine(of(vectors[:, :1]), 1, same=True).low)
