"""Whether growth is bounded at all: eigenvalues of each sample against the stability boundary, with their errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyneq.dynamics.spectra import LeadingSpectrum, Pairs
from dyneq.linalg.targets import LargestModulus, Target


@dataclass(frozen=True)
class Stability:
    """Abscissa and spectral radius of each sample, and between which values each lies.

    Attributes:
        abscissa: max Re mu, None for a map.
        abscissa_error: Its error bar.
        radius: max abs(1 + eps mu).
        radius_error: Its error bar.
    """

    abscissa: NDArray[np.float64] | None
    abscissa_error: NDArray[np.float64] | None
    radius: NDArray[np.float64]
    radius_error: NDArray[np.float64]

    @property
    def map_stable(self) -> NDArray[np.bool_]:
        """Whether every multiplier lies inside the unit circle, beyond its error."""
        return self.radius + self.radius_error < 1

    @property
    def map_unstable(self) -> NDArray[np.bool_]:
        """Whether some multiplier lies outside, beyond its error."""
        return self.radius - self.radius_error > 1

    def variables(self) -> dict[str, Any]:
        """Return the values by the names they have in a result."""
        found: dict[str, Any] = {"spectral_radius": self.radius, "spectral_radius_error": self.radius_error}
        if self.abscissa is not None:
            found |= {"abscissa": self.abscissa, "abscissa_error": self.abscissa_error}
        return found


def stability(spectrum: LeadingSpectrum, targets: Sequence[Target], eps: float) -> Stability:
    """Return the abscissa and radius of every sample from the leading pairs of its blocks.

    Args:
        spectrum: At least the leading pair of every block for each target.
        targets: The largest modulus, and for a flow the rightmost.
        eps: Step size.
    """
    pairs = spectrum.pairs
    radius = _extreme(np.abs(1 + eps * pairs.mu), eps * pairs.error, pairs, spectrum)
    if all(isinstance(t, LargestModulus) for t in targets):
        return Stability(None, None, *radius)
    return Stability(*_extreme(pairs.mu.real, pairs.error, pairs, spectrum), *radius)


def _extreme(
    values: NDArray[np.float64], error: NDArray[np.float64], pairs: Pairs, spectrum: LeadingSpectrum
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest value of each sample and its error, NaN where that of a pair is not known."""
    sample = pairs.block // spectrum.tokens
    largest, top, bottom = (np.full(spectrum.samples, -np.inf) for _ in range(3))
    np.maximum.at(largest, sample, values)
    with np.errstate(invalid="ignore"):
        np.maximum.at(top, sample, values + error)
        np.maximum.at(bottom, sample, values - error)
    rounding = np.finfo(np.float64).eps * np.abs(largest)
    return largest, np.maximum(top - largest, largest - bottom) + rounding
