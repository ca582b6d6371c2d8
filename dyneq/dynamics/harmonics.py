"""A periodic signal of unknown, real-valued period, as a sum of harmonics fitted to several channels at once."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Array = NDArray[np.float64]

#: Harmonics fitted at most, where a period has rows enough to tell them apart, and where it has not.
HARMONICS, ALIASED = 64, 24
#: A period of more rows than this is thinned out before it is fitted.
ROWS = 160
#: A subharmonic is the true frequency where it leaves less than this share of what the frequency leaves.
SUBHARMONIC = 0.1


@dataclass(frozen=True)
class Periodic:
    """A periodic signal fitted to ``x`` ``[row, channel]``.

    Attributes:
        frequency: Turns per row.
        harmonics: Number of harmonics fitted.
        model: The fitted signal ``[row, channel]``.
        slope: Its derivative over a row, ``[row, channel]``.
        misfit: Root of the share of the variance that it leaves unexplained.
        amplitude: Root mean square of the fitted signal about its mean over whole periods, all channels together.
    """

    frequency: float
    harmonics: int
    model: Array
    slope: Array
    misfit: float
    amplitude: float


def fit_periodic(x: Array, *, noise: float = 0.0) -> Periodic | None:
    """Fit a sum of harmonics of one frequency; None where the signal turns fewer than three times.

    The period need not be a whole number of rows, and aliased harmonics are as good as any: after a Neimark-Sacker
    bifurcation row n of a map is a smooth function of the angle n * frequency on a circle.

    Args:
        x: Channels without their means ``[row, channel]``.
        noise: Root mean square of what is rounding in ``x``; a misfit below it is as good as none.
    """
    power = float((x * x).sum(1).mean())
    if power <= 0:
        return None
    enough = max(1e-9, 2 * noise / math.sqrt(power))
    best: Periodic | None = None
    for peak in _peaks(x):
        found = _refine(x, peak, enough)
        if best is None or found.misfit < 0.8 * best.misfit:
            best = found
        if best.misfit < enough:
            return best
    if best is None:
        return None
    # the strongest frequency may be a harmonic of the true one, as after a period doubling
    base, once = best.frequency, _repeats(x, 1 / best.frequency)
    for part in (2, 3, 4, 5, 6, 8):
        longer = part / base
        if 3 * longer < len(x) and longer > 8 and _repeats(x, longer) < SUBHARMONIC * once:
            lower = _refine(x, base / part, enough, first=part)
            if lower.misfit < SUBHARMONIC * best.misfit:
                return lower
    return best


def _repeats(x: Array, period: float) -> float:
    """Return the mean square change over one period, by cubic interpolation between rows, relative to the variance."""
    whole, share = int(period), period - int(period)
    n = len(x) - whole - 3
    if n < 8:
        return math.inf
    weights = (
        -share * (share - 1) * (share - 2) / 6,
        (share + 1) * (share - 1) * (share - 2) / 2,
        -(share + 1) * share * (share - 2) / 2,
        (share + 1) * share * (share - 1) / 6,
    )
    ahead = sum(w * x[whole + i : whole + i + n] for i, w in enumerate(weights))
    return float(((ahead - x[1 : n + 1]) ** 2).sum() / (x[1 : n + 1] ** 2).sum())


def _peaks(x: Array) -> list[float]:
    """Return the frequencies of the highest peaks of the spectrum, summed over channels, highest first."""
    n = len(x)
    taper = np.hanning(n + 2)[1:-1, None]
    size = 1 << (2 * n - 1).bit_length()
    spectrum = (np.abs(np.fft.rfft(x * taper, size, axis=0)) ** 2).sum(1)
    low = int(3 * size / n)
    inner = spectrum[low:]
    if len(inner) < 3:
        return []
    padded = np.concatenate([[-np.inf if low == 0 else spectrum[low - 1]], inner, [-np.inf]])
    top = np.nonzero((inner >= padded[:-2]) & (inner >= padded[2:]))[0]
    top = top[np.argsort(inner[top])[::-1][:3]]
    return [float(low + i) / size for i in top if inner[i] > 0.1 * inner[top[0]]]


def _columns(n: int, frequency: float, harmonics: int) -> tuple[Array, Array]:
    """Return the columns 1, cos, sin of all harmonics, and their derivatives over a row; centred in time."""
    at = np.arange(n) - (n - 1) / 2
    k = np.arange(1, harmonics + 1)
    turned = np.exp(2j * np.pi * np.outer(at, frequency * k))
    c, s, speed = turned.real, turned.imag, 2 * np.pi * frequency * k
    columns, slopes = np.ones((n, 2 * harmonics + 1)), np.zeros((n, 2 * harmonics + 1))
    columns[:, 1 : harmonics + 1], columns[:, harmonics + 1 :] = c, s
    slopes[:, 1 : harmonics + 1], slopes[:, harmonics + 1 :] = -s * speed, c * speed
    return columns, slopes


class _Trial:
    """The fit at one frequency."""

    def __init__(self, x: Array, frequency: float, harmonics: int) -> None:
        self.x, self.frequency, self.harmonics = x, frequency, harmonics
        self.columns, self._slopes = _columns(len(x), frequency, harmonics)
        gram = self.columns.T @ self.columns
        # at a rational frequency the higher harmonics repeat the lower ones
        gram[np.diag_indices_from(gram)] += 1e-12 * len(x)
        self._factor = cho_factor(gram)
        self.coefficients = self.onto(x)
        self.model = self.columns @ self.coefficients
        self.misfit = math.sqrt(float(((x - self.model) ** 2).sum() / (x * x).sum()))

    def onto(self, v: Array) -> Array:
        """Return the coefficients of the columns that come closest to ``v``."""
        return cho_solve(self._factor, self.columns.T @ v)

    def result(self) -> Periodic:
        """Return what was fitted."""
        waves = float((self.coefficients[1:] ** 2).sum()) / 2
        return Periodic(self.frequency, self.harmonics, self.model, self.slope, self.misfit, math.sqrt(waves))

    @property
    def slope(self) -> Array:
        """The derivative of the model over a row."""
        return self._slopes @ self.coefficients

    def change(self) -> float:
        """Return the Gauss-Newton change of the frequency, as a share of it."""
        n = len(self.x)
        # a change by a share d moves the model by d * time * slope; what coefficients can take up of it does not count
        direction = (np.arange(n) - (n - 1) / 2)[:, None] * self.slope
        direction -= self.columns @ self.onto(direction)
        weight = float((direction**2).sum())
        if weight <= 0:
            return 0.0
        limit = 0.5 / (self.frequency * n)
        return max(min(float(((self.x - self.model) * direction).sum()) / weight, limit), -limit)


def _refine(x: Array, frequency: float, enough: float, *, first: int = 1) -> Periodic:
    """Return the fit at the best frequency near one, with more and more harmonics.

    Args:
        x: Channels ``[row, channel]``.
        frequency: Where to begin.
        enough: Misfit at which no more harmonics are needed.
        first: Harmonics to begin with.
    """
    thin = max(1, int(1 / frequency / ROWS))
    coarse, turn = x[::thin], frequency * thin
    most = min(ALIASED if turn > 1 / 16 else min(HARMONICS, int(0.5 / turn) - 1), len(coarse) // 8)
    order, stalled = min(first, most), 0
    best = _descend(_Trial(coarse, turn, order))
    while order < most and best.misfit > enough and stalled < 2:
        order = min(2 * order, most)
        more = _descend(_Trial(coarse, best.frequency, order))
        # odd harmonics only: every second doubling may bring nothing
        stalled = stalled + 1 if more.misfit > 0.9 * best.misfit else 0
        best = more
    if thin == 1:
        return best.result()
    return _Trial(x, best.frequency / thin, best.harmonics).result()


def _descend(now: _Trial) -> _Trial:
    """Return the fit at the frequency where no step of Gauss-Newton lowers the misfit any more."""
    for _ in range(8):
        change = now.change()
        if abs(change) * now.frequency * len(now.x) < 1e-12:
            break
        moved = _Trial(now.x, now.frequency * (1 + change), now.harmonics)
        if moved.misfit >= now.misfit * (1 - 1e-9):
            break
        now = moved
    return now
