"""How influence falls with distance: profiles over the tokens, their error bars, and the law they follow."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Fewest distances a law is fitted to.
FEWEST = 4
#: One law is preferred where the other leaves this many times its sum of squares.
BETTER = 1.5


@dataclass(frozen=True)
class Profile:
    """Influence against distance.

    Attributes:
        distance: t - s ``[distance]``.
        influence: Root mean square over sources and directions ``[sample, distance]``; NaN where there are none.
        error: Standard error of it from the scatter over directions and sources ``[sample, distance]``.
        typical: Median over the samples ``[distance]``.
        typical_error: Half-width of its distribution-free interval of about 68 %; of one sample, that sample's error.
    """

    distance: NDArray[np.int64]
    influence: Array
    error: Array
    typical: Array
    typical_error: Array


def profile(response: Array, sources: list[int], causal: bool) -> Profile:
    """Return the influence against the distance from the perturbed token.

    The mean square of norm(J^{-1}_ts d) over unit vectors d is the squared Frobenius norm of the block over the number
    of channels, so that squares are averaged.

    Args:
        response: ``[sample, source, direction, token]``.
        sources: The perturbed tokens.
        causal: Leave out earlier tokens, which feel nothing.
    """
    samples, tokens = response.shape[0], response.shape[3]
    first = 0 if causal else -max(sources)
    distance = np.arange(first, tokens - min(sources))
    influence, error = (np.full((samples, len(distance)), np.nan) for _ in range(2))
    for column, d in enumerate(distance):
        rows = [i for i, s in enumerate(sources) if 0 <= s + d < tokens]
        if not rows:
            continue
        squares = np.stack([response[:, i, :, sources[i] + d] for i in rows], 1).reshape(samples, -1) ** 2
        known = np.isfinite(squares)
        count = known.sum(1)
        mean = np.where(count > 0, np.where(known, squares, 0).sum(1) / np.maximum(count, 1), np.nan)
        spread = (np.where(known, squares - mean[:, None], 0) ** 2).sum(1) / np.maximum(count - 1, 1)
        influence[:, column] = np.sqrt(mean)
        with np.errstate(invalid="ignore", divide="ignore"):
            # of the root: half the relative error of the square
            bar = np.sqrt(spread / count) / (2 * influence[:, column])
        error[:, column] = np.where(count > 1, np.where(influence[:, column] == 0, 0.0, bar), np.nan)
    typical, bars = _medians(influence, error)
    return Profile(distance, influence, error, typical, bars)


def _medians(values: Array, errors: Array) -> tuple[Array, Array]:
    """Return the median over samples, and its half-width from order statistics (ranks n/2 -+ sqrt(n)/2)."""
    middle, half = (np.full(values.shape[1], np.nan) for _ in range(2))
    for column in range(values.shape[1]):
        known = np.sort(values[np.isfinite(values[:, column]), column])
        n = len(known)
        if not n:
            continue
        middle[column] = np.median(known)
        if n == 1:
            half[column] = errors[np.isfinite(values[:, column]), column][0]
            continue
        low = max(int(np.floor(n / 2 - np.sqrt(n) / 2)), 0)
        high = min(int(np.ceil(n / 2 + np.sqrt(n) / 2)), n) - 1
        half[column] = max(known[high] - middle[column], middle[column] - known[low])
    return middle, half


@dataclass(frozen=True)
class Decay:
    """The law influence follows from distance 1 on.

    Attributes:
        kind: ``exponential``, ``power`` (of the distance), ``either`` (they fit alike), ``none`` (no decay),
            ``isolated`` (no influence on other tokens at all) or ``undetermined`` (too few distances or samples).
        length: Distance over which an exponential falls by e, tokens; NaN where there is no decay.
        length_error: Standard error of it from the scatter over samples, or over distances where there is one sample.
        exponent: p of distance^-p; NaN where there is no decay.
        exponent_error: Its standard error.
        samples: Samples fitted.
    """

    kind: str
    length: float = np.nan
    length_error: float = np.nan
    exponent: float = np.nan
    exponent_error: float = np.nan
    samples: int = 0


def decay(response: Array, sources: list[int]) -> Decay:
    """Fit log influence against distance and against its logarithm, from distance 1 on.

    Within a sample the lines of all sources have one slope, and each its own height: sources differ in how loud they
    are, and far distances are seen by the early ones only. Slopes are then averaged over samples.

    Args:
        response: ``[sample, source, direction, token]``.
        sources: The perturbed tokens.
    """
    tokens = response.shape[3]
    rows = [(i, s) for i, s in enumerate(sources) if tokens - 1 - s >= FEWEST]
    later = [np.sqrt((response[:, i, :, s + 1 :] ** 2).mean(1)) for i, s in rows]
    if not later:
        return Decay("undetermined")
    values = np.concatenate(later, axis=1)
    values = values[np.isfinite(values).all(1)]
    if len(values) and (values == 0).all():
        return Decay("isolated", samples=len(values))
    values = values[(values > 0).all(1)]
    if not len(values):
        return Decay("undetermined")
    d = np.concatenate([np.arange(1, tokens - s) for _, s in rows]).astype(np.float64)
    group = np.concatenate([np.full(tokens - 1 - s, i) for i, s in rows])
    logs = np.log(values)
    slope, slope_error, left = _lines(d, logs, group)
    power, power_error, left_power = _lines(np.log(d), logs, group)
    falls = slope + 2 * slope_error < 0, power + 2 * power_error < 0
    if not all(falls):
        # neither law falls, or they disagree on whether there is a fall
        return Decay("undetermined" if any(falls) else "none", samples=len(values))
    kind = "either"
    if left_power > BETTER * left:
        kind = "exponential"
    elif left > BETTER * left_power:
        kind = "power"
    return Decay(kind, -1 / slope, slope_error / slope**2, -power, power_error, len(values))


def _lines(x: Array, logs: Array, group: NDArray[np.int64]) -> tuple[float, float, float]:
    """Return the mean slope of lines through ``[sample, point]``, its standard error, and the squares left.

    Args:
        x: Place of every point.
        logs: Values, one row of points a sample.
        group: Which line of the sample a point belongs to; lines of a sample are parallel.
    """
    groups = np.unique(group)
    centre = np.stack([group == g for g in groups]).astype(np.float64)
    centre /= centre.sum(1, keepdims=True)
    which = np.searchsorted(groups, group)
    offset = x - (centre @ x)[which]
    rest = logs - (logs @ centre.T)[:, which]
    square = (offset**2).sum()
    slopes = rest @ offset / square
    left = float(((rest - slopes[:, None] * offset) ** 2).sum())
    if len(slopes) > 1:
        error = float(slopes.std(ddof=1) / np.sqrt(len(slopes)))
    else:
        error = float(np.sqrt(left / max(len(x) - len(groups) - 1, 1) / square))
    return float(slopes.mean()), error, left
