"""How far estimates of a gradient agree with a reference: cosines, norms, bias and variance, each with an interval.

Everything is computed from inner products. B disjoint batches give gradients g_b of an estimator and r_b of the
reference, and the batches are what the intervals are taken over: Student's t for means of one number a batch, the
delete-one jackknife with Student's t for everything else (Tukey, Ann. Math. Stat. 29, 1958; Efron and Stein, Ann. Stat.
9, 1981: its variance is not too small on average). With one batch there is no interval, and with few it is wide.

What is estimated: cosines and norm ratios are those of batches of the given size, and the cosine of means that of the
mean over the B batches at hand, the gradient of one batch B times as large. Bias and variance, and the cosine that
averaging tends to, belong to the population the batches are drawn from; they are U-statistics, in which no batch is
multiplied with itself, so that noise does not pass for bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Array = NDArray[np.float64]

#: Probability that an interval covers what is estimated.
LEVEL = 0.95
#: Rounding of inner products relative to the norms; no interval is narrower.
ROUNDING = 16 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Interval:
    """A number with its confidence interval at :data:`LEVEL`; NaN ends where there is none.

    Attributes:
        value: The estimate, any shape.
        low: Lower end, of the same shape.
        high: Upper end, of the same shape.
    """

    value: Array
    low: Array
    high: Array

    @property
    def error(self) -> Array:
        """The distance from the value to the farther end."""
        return np.maximum(self.high - self.value, self.value - self.low)

    def clipped(self, least: float, most: float) -> Interval:
        """Return the interval within the bounds the quantity has by its nature."""
        return Interval(*(np.clip(x, least, most) for x in (self.value, self.low, self.high)))


@dataclass(frozen=True)
class Pair:
    """Inner products of an estimator's gradients g_b and a reference's r_b over the same batches.

    Attributes:
        gg: <g_b, g_b'> ``[..., batch, batch]``.
        gr: <g_b, r_b'> of the same shape.
        rr: <r_b, r_b'> of the same shape.
    """

    gg: Array
    gr: Array
    rr: Array

    @property
    def batches(self) -> int:
        """Number of batches."""
        return int(self.gg.shape[-1])

    def keep(self, index: NDArray[np.intp]) -> Pair:
        """Return the inner products over some of the batches."""
        return Pair(*(x[..., index[:, None], index] for x in (self.gg, self.gr, self.rr)))


def gram_matrix(vectors: Array) -> Array:
    """Return the inner products ``[estimator, batch, estimator, batch]`` of vectors ``[estimator, batch, entry]``."""
    flat = np.asarray(vectors, dtype=np.float64).reshape(-1, vectors.shape[-1])
    shape = vectors.shape[:2]
    return (flat @ flat.T).reshape(*shape, *shape)


def pair(gram: Array, estimator: int, reference: int) -> Pair:
    """Return one estimator's part of ``gram`` ``[..., estimator, batch, estimator, batch]`` against a reference."""

    def block(a: int, b: int) -> Array:
        return gram[..., a, :, b, :]

    return Pair(block(estimator, estimator), block(estimator, reference), block(reference, reference))


def student_interval(values: Array) -> Interval:
    """Return the mean over the last axis with Student's t-interval; no interval from one value or with a NaN."""
    n = values.shape[-1]
    mean = values.mean(-1)
    if n < 2:
        return _without(mean)
    return _around(mean, values.std(-1, ddof=1) / n**0.5, n, np.abs(mean))


def jackknife(statistic: Callable[[Pair], Array], of: Pair, fewest: int = 2) -> Interval:
    """Return a statistic with its delete-one jackknife interval, Student's t with B - 1 degrees of freedom.

    Args:
        statistic: From inner products to a number, over leading axes.
        of: The inner products.
        fewest: Batches the statistic itself needs; with no more there is nothing to delete.
    """
    n = of.batches
    if n < fewest:
        return _without(np.full(of.gg.shape[:-2], np.nan))
    index = np.arange(n)
    left = [statistic(of.keep(np.delete(index, b))) for b in range(n)] if n > fewest else []
    return jackknife_interval(statistic(of), left)


def jackknife_interval(value: Array, left: Sequence[Array]) -> Interval:
    """Return a statistic with the interval that its values without one batch each give; none from fewer than two."""
    n = len(left)
    if n < 2:
        return _without(value)
    rest = np.stack(left)
    error = np.sqrt((n - 1) / n * np.square(rest - rest.mean(0)).sum(0))
    return _around(value, error, n, np.abs(value))


def cosines(of: Pair) -> Array:
    """Return the cosine of every batch ``[..., batch]``; NaN where one of the gradients is 0."""
    return _cosine(_diagonal(of.gr), _diagonal(of.gg), _diagonal(of.rr))


def mean_of_cosines(of: Pair) -> Interval:
    """Return the mean of the batches' cosines with its t-interval."""
    return student_interval(cosines(of)).clipped(-1, 1)


def cosine_of_means(of: Pair) -> Interval:
    """Return the cosine of the means over all batches, its jackknife taken in Fisher's z, where its error is even."""

    def z(p: Pair) -> Array:
        return np.arctanh(_within(_cosine(_total(p.gr), _total(p.gg), _total(p.rr))))

    found = jackknife(z, of, fewest=1)
    return _floored(Interval(np.tanh(found.value), np.tanh(found.low), np.tanh(found.high)), 1.0).clipped(-1, 1)


def norm_ratio(of: Pair) -> Interval:
    """Return k = |g|/|r|, the geometric mean over batches with the t-interval of log k."""
    found = student_interval(log_ratios(of))
    return Interval(np.exp(found.value), np.exp(found.low), np.exp(found.high))


def log_ratios(of: Pair) -> Array:
    """Return log(|g_b|/|r_b|) of every batch ``[..., batch]``; NaN where one of them is 0."""
    g, r = _diagonal(of.gg), _diagonal(of.rr)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((g > 0) & (r > 0), 0.5 * (np.log(g) - np.log(r)), np.nan)


def self_cosine(gg: Array) -> Interval:
    """Return the mean pairwise cosine of one estimator's gradients over batches ``[...]``, with its jackknife interval.

    Args:
        gg: <g_b, g_b'> ``[..., batch, batch]``.
    """

    def mean_pairwise(p: Pair) -> Array:
        size = _diagonal(p.gg)
        return _off_diagonal(_cosine(p.gg, size[..., :, None], size[..., None, :]))

    return jackknife(mean_pairwise, Pair(gg, gg, gg), fewest=2).clipped(-1, 1)


def limit_cosine(of: Pair) -> Interval:
    """Return the cosine between the expected gradients, which averaging over more and more batches tends to.

    NaN where an expected gradient cannot be told from 0: its squared norm, estimated without bias, is not positive.
    """

    def ratio(p: Pair) -> Array:
        return _cosine(_off_diagonal(p.gr), _off_diagonal(p.gg), _off_diagonal(p.rr))

    return jackknife(ratio, of, fewest=2).clipped(-1, 1)


@dataclass(frozen=True)
class ErrorParts:
    """The squared error of one batch's gradient, split into what averaging leaves and what it removes.

    Attributes:
        scale: The factor s of the reference the error is taken from: d_b = g_b - s r_b.
        bias: |E d|^2, in units of the mean of |g_b|^2 (of |r_b|^2 where s = 1 is prescribed). Estimated without bias,
            so that it may come out below 0 where it is small.
        variance: Trace of the covariance of d_b, in the same units; averaging over n batches divides it by n.
        share: bias/(bias + variance), within 0 and 1; NaN where there is no error beyond rounding.
    """

    scale: Array
    bias: Interval
    variance: Interval
    share: Interval


def error_parts(of: Pair, *, fitted: bool) -> ErrorParts:
    """Return bias and variance of the differences of paired gradients.

    Args:
        of: The inner products.
        fitted: Whether the reference is first scaled by the least-squares factor sum <g_b, r_b>/sum |r_b|^2, so that
            only the direction counts; else the differences are taken as they are.
    """

    def differences(p: Pair) -> tuple[Array, Array]:
        g, r = _diagonal(p.gg).sum(-1), _diagonal(p.rr).sum(-1)
        s = _quotient(_diagonal(p.gr).sum(-1), r) if fitted else np.ones_like(g)
        unit = (g if fitted else r) / p.batches
        wide = s[..., None, None]
        d = p.gg - wide * (p.gr + p.gr.swapaxes(-1, -2)) + wide**2 * p.rr
        return _quotient(d, unit[..., None, None]), s

    def bias(p: Pair) -> Array:
        return _off_diagonal(differences(p)[0])

    def variance(p: Pair) -> Array:
        d = differences(p)[0]
        return _diagonal(d).mean(-1) - _off_diagonal(d)

    def share(p: Pair) -> Array:
        d = differences(p)[0]
        total = _diagonal(d).mean(-1)
        return _quotient(_off_diagonal(d), np.where(total > ROUNDING, total, 0.0))

    constant, varying = (_floored(jackknife(f, of, fewest=2), 1.0) for f in (bias, variance))
    return ErrorParts(differences(of)[1], constant, varying, jackknife(share, of, fewest=2).clipped(0, 1))


def _around(value: Array, error: Array, n: int, unit: Array) -> Interval:
    half = student.ppf(0.5 + LEVEL / 2, n - 1) * error
    return _floored(Interval(value, value - half, value + half), unit)


def _floored(found: Interval, unit: Array | float) -> Interval:
    """Return an interval not narrower than rounding allows, for a quantity of the size ``unit``."""
    value, least = found.value, ROUNDING * np.asarray(unit)
    return Interval(value, np.minimum(found.low, value - least), np.maximum(found.high, value + least))


def _without(value: Array) -> Interval:
    nothing = np.full(np.shape(value), np.nan)
    return Interval(value, nothing, nothing)


def _diagonal(x: Array) -> Array:
    return np.diagonal(x, axis1=-2, axis2=-1)


def _total(x: Array) -> Array:
    return x.sum((-2, -1))


def _off_diagonal(x: Array) -> Array:
    """Return the mean over pairs of different batches."""
    n = x.shape[-1]
    off = ~np.eye(n, dtype=bool)
    return x[..., off].sum(-1) / (n * (n - 1))


def _quotient(top: Array, bottom: Array) -> Array:
    """Return the quotient, NaN where the divisor is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)


def _cosine(product: Array, a: Array, b: Array) -> Array:
    """Return product/sqrt(a b) without letting squares of squares overflow or vanish; NaN unless both are positive."""
    with np.errstate(invalid="ignore"):
        return _quotient(product, np.sqrt(np.where(a > 0, a, np.nan)) * np.sqrt(np.where(b > 0, b, np.nan)))


def _within(c: Array) -> Array:
    return np.clip(c, -1 + ROUNDING, 1 - ROUNDING)
