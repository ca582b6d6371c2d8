"""The 0-1 test for chaos of a signal: does a walk driven by it stay bounded, or diffuse?

Gottwald and Melbourne, On the implementation of the 0-1 test for chaos, SIAM J. Appl. Dyn. Syst. 8 (2009) 129, the
correlation method (section 3.2) with the oscillating term subtracted (equations 3.4 and 3.5).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Fewer samples than this say nothing.
LEAST = 300
#: Longest signal used: the test costs its length times a tenth of it for every frequency.
MOST = 2500


@dataclass(frozen=True)
class ZeroOne:
    """Outcome of the 0-1 test.

    Attributes:
        k: Median over the frequencies of the correlation of mean square displacement and time: near 1 for chaos, near 0
            for periodic and quasiperiodic signals. NaN where the signal is too short or constant.
        spread: Half of the distance between the quartiles of the same.
        samples: Samples of the signal used.
        stride: Rows between two of them.
    """

    k: float
    spread: float
    samples: int
    stride: int

    @property
    def chaotic(self) -> bool:
        """Whether most frequencies see diffusion."""
        return self.k > 0.8 and self.k - self.spread > 0.6

    @property
    def regular(self) -> bool:
        """Whether most frequencies see a bounded walk."""
        return self.k < 0.25


def oscillation_time(x: Array) -> float:
    """Return 2 pi rms(x)/rms(change of x), the period, in rows, of the sine that changes as fast as a signal does.

    Unlike the highest peak of a spectrum it is defined for chaos too.
    """
    x = x - x.mean()
    change = float(np.sqrt(np.mean(np.diff(x) ** 2)))
    return 2 * math.pi * float(np.sqrt(np.mean(x * x))) / change if change > 0 else math.inf


def zero_one(x: Array, *, generator: torch.Generator, frequencies: int = 100, stride: int | None = None) -> ZeroOne:
    """Test a signal for chaos.

    A flow that is sampled too densely looks regular whatever it is, so it is thinned out to about four samples an
    oscillation.

    Args:
        x: The signal ``[row]``; finite.
        generator: Draws the frequencies, uniform in (pi/5, 4 pi/5), away from resonances.
        frequencies: How many are drawn.
        stride: Rows between samples; from :func:`oscillation_time` if None.
    """
    x = np.asarray(x, dtype=np.float64)
    if len(x) < 2 or not float(np.ptp(x)) > 0:
        return ZeroOne(math.nan, math.nan, len(x), 1)
    if stride is None:
        time = oscillation_time(x)
        stride = max(1, min(len(x), round(time / 4))) if math.isfinite(time) else 1
    thinned = x[::stride][-MOST:]
    n = len(thinned)
    if n < LEAST:
        return ZeroOne(math.nan, math.nan, n, stride)
    signal = (thinned - thinned.mean()) / thinned.std()
    c = torch.rand(frequencies, generator=generator, dtype=torch.float64).numpy() * (3 * np.pi / 5) + np.pi / 5
    # the mean is taken out of the signal, so the oscillating term of its square vanishes but for rounding
    walk = np.cumsum(signal * np.exp(1j * np.outer(c, np.arange(1, n + 1))), axis=1)
    cut = n // 10
    lags = np.arange(1, cut + 1)
    displacement = np.stack([(np.abs(walk[:, lag : lag + n - cut] - walk[:, : n - cut]) ** 2).mean(1) for lag in lags])
    centred, time = displacement - displacement.mean(0), lags - lags.mean()
    size = np.sqrt((centred**2).sum(0) * (time**2).sum())
    k = np.where(size > 0, time @ centred / np.where(size > 0, size, 1.0), 0.0)
    low, middle, high = np.quantile(k, (0.25, 0.5, 0.75))
    return ZeroOne(float(middle), float(high - low) / 2, n, stride)
