"""The period of an oscillation as a real number, and whether its amplitude stands still."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dyneq.dynamics.fits import line
from dyneq.dynamics.harmonics import Periodic, fit_periodic

Array = NDArray[np.float64]

#: Periods without which no amplitude is called stationary.
PERIODS = 10
#: Longest period, in steps, of an orbit that is looked for as one that closes exactly.
LOCK = 64
#: Share of a signal that may be not periodic where it is called periodic.
PERIODIC = 0.05
#: Largest relative difference between amplitudes of parts of the record that is called the same amplitude.
SAME_AMPLITUDE = 0.02
#: The same for signals of several frequencies, whose parts hold different beats.
BEATS = 0.1
#: A trend of the amplitude below this share over the record is not seen even where its error is smaller.
TREND = 1e-3


@dataclass(frozen=True)
class Oscillation:
    """What the projections of one sample do.

    Attributes:
        amplitude: Root mean square distance from the time mean, in the units of the projections.
        period: Period, steps; NaN where there is none to be seen.
        period_error: Its standard error, from the phases of parts of the record; 0 where the orbit closes exactly.
        lock: Steps after which the state returns exactly, 0 where it does not within :data:`LOCK`.
        misfit: Root of the share of the variance that is not periodic.
        periods: Periods in the record.
        spread: Largest relative deviation of the amplitude of a part of the record from the mean of all parts.
        trend: Change of the logarithm of the amplitude over the whole record.
        trend_error: Its standard error.
        recurrence: Closest return after about one period, relative to the amplitude: median over starts.
        drift: How far the mean moves from the first to the last quarter of the record, relative to the amplitude.
    """

    amplitude: float
    period: float
    period_error: float
    lock: int
    misfit: float
    periods: float
    spread: float
    trend: float
    trend_error: float
    recurrence: float
    drift: float

    @property
    def stationary(self) -> bool:
        """Whether the amplitude stands still over at least ten periods: parts agree, no trend beyond its error."""
        # parts of a signal of several frequencies hold different beats
        beats = self.misfit > PERIODIC
        seen, same = (SAME_AMPLITUDE, BEATS) if beats else (TREND, SAME_AMPLITUDE)
        steady = abs(self.trend) <= max(3 * self.trend_error, seen) and 3 * self.trend_error < same
        return self.periods >= PERIODS and self.spread <= same and steady

    @property
    def fading(self) -> bool:
        """Whether the amplitude falls beyond the error of its trend."""
        return self.trend < -max(3 * self.trend_error, TREND)


def measure_oscillation(x: Array, every: int = 1, *, noise: float = 0.0) -> Oscillation:
    """Measure period, amplitude and stationarity of a signal.

    Args:
        x: Projections of a state ``[row, projection]``, at equal distances in time; finite.
        every: Steps between two rows.
        noise: Root mean square of what is rounding in ``x``.
    """
    x = np.asarray(x, dtype=np.float64)
    if len(x) < 16:
        return _quiet(math.nan)
    x = x - x.mean(0)
    amplitude = math.sqrt(float((x * x).sum(1).mean()))
    if not amplitude > 4 * noise:
        return _quiet(amplitude)
    quarter = len(x) // 4
    drift = float(np.linalg.norm(x[-quarter:].mean(0) - x[:quarter].mean(0))) / amplitude
    x = _leading(x)
    lock = _lock(x, amplitude, noise) if every == 1 else 0
    if lock:
        scales, at = _scales_of(x, x, lock * max(1, len(x) // (16 * lock)))
        period, error, misfit = float(lock), 0.0, 0.0
    else:
        fitted = fit_periodic(x, noise=noise)
        if fitted is None:
            return _quiet(amplitude, drift)
        rows, row_error, scales, at = _parts(x, fitted)
        period, error, misfit = rows * every, row_error * every, fitted.misfit
        if misfit <= PERIODIC:  # over whole periods, which the record need not hold
            amplitude = fitted.amplitude
    periods = (len(x) - 1) * every / period
    spread, trend, trend_error = _steadiness(scales, at, len(x))
    back = _recurrence(x, period / every, amplitude)
    return Oscillation(amplitude, period, error, lock, misfit, periods, spread, trend, trend_error, back, drift)


def _quiet(amplitude: float, drift: float = math.nan) -> Oscillation:
    """Return what is known of a signal without a period."""
    nan = math.nan
    return Oscillation(
        amplitude=amplitude,
        period=nan,
        period_error=nan,
        lock=0,
        misfit=nan,
        periods=0.0,
        spread=nan,
        trend=nan,
        trend_error=nan,
        recurrence=nan,
        drift=drift,
    )


def _leading(x: Array) -> Array:
    """Return the leading principal components of the channels, at most four, without those that are rounding."""
    _, values, directions = np.linalg.svd(x, full_matrices=False)
    keep = min(4, max(1, int((values > 1e-6 * values[0]).sum())))
    return x @ directions[:keep].T


def _lock(x: Array, amplitude: float, noise: float) -> int:
    """Return the least number of rows after which the last half of a signal repeats itself exactly, 0 if none."""
    tail = x[len(x) // 2 :]
    for rows in range(2, min(LOCK, len(tail) // 4) + 1):
        gap = float(np.abs(tail[rows:] - tail[:-rows]).max())
        if gap <= max(1e-6 * amplitude, 8 * noise):
            return rows
    return 0


def _parts(x: Array, fitted: Periodic) -> tuple[float, float, Array, Array]:
    """Return period and its error in rows, and the scale of the signal in parts of the record, with their middles.

    Each part, of at least one period, is shifted in time and scaled to fit the signal best. A slope of the shifts
    corrects the period, and their scatter about it is its error.
    """
    n, period = len(x), 1 / fitted.frequency
    parts = int(max(3, min(16, n // max(period, 8))))
    edges = np.linspace(0, n, parts + 1).astype(int)
    centre = fitted.model.mean(0)
    shifts, scales, at = [], [], []
    for a, b in itertools.pairwise(edges):
        shape, slope = (fitted.model[a:b] - centre).ravel(), fitted.slope[a:b].ravel()
        columns = np.stack([shape, slope], 1)
        scale, moved = np.linalg.lstsq(columns, (x[a:b] - centre).ravel(), rcond=None)[0]
        scales.append(float(scale))
        shifts.append(float(moved) / scale if scale else math.nan)
        at.append((a + b - 1) / 2)
    middle = np.array(at)
    late, error = line(middle, np.array(shifts)) if np.isfinite(shifts).all() else (0.0, math.inf)
    if not abs(late) < 0.5:  # no correction of a period: the record is too short for parts of it to say anything
        late, error = 0.0, math.inf
    # phases are no better than the rounding of the angle at the end of the record
    return period * (1 - late), period * max(error, 4e-16 * n), np.array(scales), middle


def _scales_of(x: Array, like: Array, rows: int) -> tuple[Array, Array]:
    """Return the root mean square of a signal over parts of equal length, with their middles."""
    parts = len(x) // rows
    cut = like[: parts * rows].reshape(parts, rows, -1)
    scales: Array = np.sqrt((cut**2).sum(2).mean(1))
    middle: Array = (np.arange(parts, dtype=np.float64) + 0.5) * rows
    return scales, middle


def _steadiness(scales: Array, at: Array, rows: int) -> tuple[float, float, float]:
    """Return spread of the amplitude of parts, relative to their mean, and trend of its logarithm over the record."""
    mean = float(scales.mean())
    if not mean > 0 or len(scales) < 3:
        return math.inf, math.nan, math.inf
    relative = scales / mean
    # an exponential trend is a straight line in the logarithm; amplitudes that change sign are chaos, and have none
    slope, error = line(at, np.log(relative) if (relative > 0).all() else relative)
    return float(np.abs(relative - 1).max()), slope * rows, error * rows


def _recurrence(x: Array, period: float, amplitude: float) -> float:
    """Return the closest return after three quarters to five quarters of a period, relative to the amplitude.

    Measured to the straight line between neighbouring rows, so that it does not end at half of their distance.
    """
    first, last = max(1, math.floor(0.75 * period)), math.ceil(1.25 * period) + 1
    if last + 1 >= len(x):
        return math.nan
    starts = np.linspace(0, len(x) - last - 2, 48).astype(int)
    lags = np.unique(np.linspace(first, last, min(last - first + 1, 400)).astype(int))
    here = x[starts][:, None]
    a, b = x[starts[:, None] + lags[:-1]], x[starts[:, None] + lags[1:]]
    along = b - a
    length = np.maximum((along**2).sum(-1, keepdims=True), 1e-300)
    share = np.clip(((here - a) * along).sum(-1, keepdims=True) / length, 0, 1)
    distance = np.linalg.norm(here - a - share * along, axis=-1).min(1)
    return float(np.median(distance)) / amplitude
