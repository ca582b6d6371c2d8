"""Laws of decay fitted to the logarithm of an envelope, and the choice between them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Array = NDArray[np.float64]

#: A law may miss the last third of a stretch, unseen, by this much of the fall over it.
MISS = 0.12
#: Every other law must miss by at least this many times as much.
RIVALS = 2.0
#: Exponents a power law may have; a mixture of exponentials can mimic one that is steeper.
POWERS = (0.2, 8.0)
#: A level is seen where it makes up at least this share of the last residual; below, it is no more than a parameter.
SEEN = 0.3


@dataclass(frozen=True)
class Fit:
    """One law fitted to a stretch.

    Attributes:
        name: ``exponential`` (value: the rate per step), ``power-law`` (value: the exponent), ``level`` (value: the
            level that an exponential fall ends at).
        value: See there.
        error: Its standard error.
        decades: Decades the law falls by over the stretch.
        bic: Bayesian information criterion, n log(mean square) + parameters log n.
        miss: Root mean square miss, in nats, on the last third of the stretch when fitted to the first two.
    """

    name: str
    value: float
    error: float
    decades: float
    bic: float
    miss: float


def line(t: Array, y: Array) -> tuple[float, float]:
    """Return the slope of a straight line through y over t and its standard error, misfits being correlated.

    Neighbouring misfits of a smooth curve are alike, so the number of independent ones is reduced by their lag-one
    correlation r: n (1 - r)/(1 + r).
    """
    s = t - t.mean()
    spread = float(s @ s)
    slope = float(s @ y) / spread
    misfit = y - y.mean() - slope * s
    n = len(t)
    power = float(misfit @ misfit)
    # below rounding nothing can be told
    power = max(power, n * (4e-16 * (1 + float(np.abs(y).max()))) ** 2)
    r = min(max(float(misfit[1:] @ misfit[:-1]) / power, 0.0), 0.95)
    independent = max(n * (1 - r) / (1 + r), 3.0)
    return slope, math.sqrt(power / n / spread * n / (independent - 2))


def compare(t: Array, y: Array, rounding: float) -> Fit | None:
    """Return the one law that fits a stretch, None where none does or several do.

    Args:
        t: Steps ``[row]``.
        y: Log of the envelope ``[row]``.
        rounding: Unit of rounding of the numbers.
    """
    fits = [f for law in LAWS if (f := _fit(law, t, y, rounding)) is not None]
    if not fits:
        return None
    fits.sort(key=lambda f: f.miss)
    best = fits[0]
    fall = float(y[0] - y[-1])
    if best.miss > MISS * max(fall / 3, 0.3) or best.bic > min(f.bic for f in fits) + 6:
        return None
    # two laws that both foresee the rest are not told apart
    rivals = [f for f in fits[1:] if f.miss < RIVALS * best.miss + 1e-6]
    return None if rivals else best


@dataclass(frozen=True)
class _Law:
    name: str
    curve: Callable[[Array, Array], Array]
    starts: Callable[[Array, Array], list[Array]]
    value: Callable[[Array], float]
    index: int


def _fit(law: _Law, t: Array, y: Array, rounding: float) -> Fit | None:
    """Fit a law to the whole stretch, and to its first two thirds to see what it foresees."""
    scale = float(t[-1])
    x = (t - t[0]) / scale
    part = len(t) * 2 // 3
    whole, early = _solve(law, x, y), _solve(law, x[:part], y[:part])
    if whole is None or early is None:
        return None
    n, parameters = len(t), len(whole.x)
    square = max(float(np.mean(whole.fun**2)), (8 * rounding) ** 2)
    foreseen = law.curve(x[part:], early.x)
    miss = float(np.sqrt(np.mean((y[part:] - foreseen) ** 2)))
    curve = law.curve(x, whole.x)
    covariance = np.linalg.pinv(whole.jac.T @ whole.jac) * square * n / max(n - parameters, 1)
    r = min(max(float(whole.fun[1:] @ whole.fun[:-1]) / max(float(whole.fun @ whole.fun), 1e-300), 0.0), 0.95)
    error = math.sqrt(max(covariance[law.index, law.index], 0.0) * (1 + r) / (1 - r))
    value = law.value(whole.x)
    # what the first two thirds give differs by what the law leaves out
    drift = abs(law.value(early.x) - value) / 2
    if law.name == "exponential":
        value, error, drift = value / scale, error / scale, drift / scale
    elif law.name == "power-law" and not POWERS[0] <= value <= POWERS[1]:
        return None
    elif law.name == "level":
        error *= value
        if value < SEEN * math.exp(float(y[-1])):
            return None
    decades = float(curve[0] - curve[-1]) / math.log(10)
    return Fit(
        law.name, value, math.hypot(error, drift), decades, n * math.log(square) + parameters * math.log(n), miss
    )


def _solve(law: _Law, x: Array, y: Array):  # type: ignore[no-untyped-def]
    best = None
    for start in law.starts(x, y):
        try:
            found = least_squares(lambda p: law.curve(x, p) - y, start, method="lm", max_nfev=400)
        except (ValueError, FloatingPointError):
            continue
        if np.isfinite(found.fun).all() and (best is None or found.cost < best.cost):
            best = found
    return best


def _exponential(x: Array, p: Array) -> Array:
    return p[0] - p[1] * x


def _power(x: Array, p: Array) -> Array:
    """Return log of a (x + offset)^-p, the offset between 0 and 1: with a larger one it is an exponential."""
    return p[0] - p[1] * np.log(x + np.exp(np.clip(p[2], -30.0, 0.0)))


def _level(x: Array, p: Array) -> Array:
    """Return log of level + a exp(-rate x)."""
    return np.logaddexp(p[2], p[0] - np.exp(np.clip(p[1], -20, 20)) * x)


def _line_start(x: Array, y: Array) -> list[Array]:
    slope = line(x, y)[0]
    return [np.array([y.mean() - slope * x.mean(), -slope])]


def _power_start(x: Array, y: Array) -> list[Array]:
    starts = []
    for offset in (-4.0, -2.0, -0.5):
        slope = line(np.log(x + math.exp(offset)), y)[0]
        starts.append(np.array([y[-1], -slope, offset]))
    return starts


def _level_start(x: Array, y: Array) -> list[Array]:
    fast = max((y[0] - y[len(y) // 3]) / (x[len(x) // 3] - x[0]), 1.0)
    return [np.array([y[0], math.log(fast), y[-1]]), np.array([y[0], 0.0, y[-1] - 1.0])]


LAWS = (
    _Law("exponential", _exponential, _line_start, lambda p: float(p[1]), 1),
    _Law("power-law", _power, _power_start, lambda p: float(p[1]), 1),
    _Law("level", _level, _level_start, lambda p: math.exp(min(float(p[2]), 700.0)), 2),
)
