"""Lower bounds of Kreiss constants of explicit matrices.

Of a flow: sup over Re z > 0 of Re z norm((z - J)^-1); of a map: sup over abs(z) > 1 of (abs(z) - 1) norm((z - M)^-1).
The largest growth of e^{tJ}, or of M^n, is at least the constant and at most e n times it (Kreiss matrix theorem:
Trefethen and Embree, Spectra and Pseudospectra, 2005, chapters 14, 16 and 18).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.optimize
import torch
from numpy.typing import NDArray

from dyneq.linalg.explicit import one_square
from dyneq.linalg.pseudospectra import pseudospectral_abscissa, smallest_singular_values

#: Distances from the stability boundary at which the first look is taken, relative to the norm of the matrix.
_DISTANCES = np.geomspace(1e-4, 2.0, 14)
#: Places along the boundary of the first look.
_PLACES = 25
#: Local searches from the best places of the first look.
_LOCAL = 3
#: Smallest trusted sigma_min, in units of its rounding n times 1e-16 times the norm.
_TRUSTED = 1e3


@dataclass(frozen=True)
class Kreiss:
    """A lower bound of a Kreiss constant.

    Attributes:
        value: The bound, at least 1 but for rounding (which z at infinity gives); infinite where an eigenvalue lies
            beyond the boundary.
        point: The z that shows it (an eigenvalue, where the bound is infinite; infinity, where it is 1).
        sigma: sigma_min(z - A) there.
        rounding: First-order bound of the error of the value by rounding.
    """

    value: float
    point: complex
    sigma: float
    rounding: float


def kreiss_lower_bound(matrix: torch.Tensor, time: Literal["flow", "map"] = "flow") -> Kreiss:
    """Search the Kreiss constant of a real matrix.

    A grid and local ascent from its best points; for a flow also a search of the whole pseudospectrum of the size found
    (criss-cross), from which the ascent goes on.

    Args:
        matrix: J of a flow, or M of a map `[n, n]`.
        time: Which.

    Raises:
        ValueError: If the matrix is not square or not finite, or `time` is neither.
    """
    if time not in ("flow", "map"):
        raise ValueError(f"A Kreiss constant belongs to a 'flow' or a 'map', got {time!r}.")
    a = one_square(matrix, "kreiss_lower_bound")
    values = np.asarray(np.linalg.eigvals(a), dtype=np.complex128)
    search = _Search(a, time)
    beyond = search.distance(values)
    worst = int(beyond.argmax())
    # of an eigenvalue on the boundary rounding decides on which side it lies; a finite bound is right in both cases
    if beyond[worst] > search.floor:
        return Kreiss(float("inf"), complex(values[worst]), 0.0, 0.0)
    return search.run(values)


class _Search:
    """Ascent of log(distance from the boundary) - log(sigma_min) over (log distance, place along the boundary)."""

    def __init__(self, a: NDArray[np.float64], time: str) -> None:
        self.a, self.flow, self.n = a, time == "flow", a.shape[0]
        self.eye = np.eye(self.n)
        self.norm = float(np.linalg.norm(a, 2))
        # distances from a unit circle are of the order of 1 where the map is small
        self.size = self.norm if self.flow else max(self.norm, 1.0)
        self.floor = _TRUSTED * self.n * np.finfo(np.float64).eps * max(self.norm, 0.0 if self.flow else 1.0)

    def distance(self, z: NDArray[np.complex128]) -> NDArray[np.float64]:
        """Return how far points lie beyond the stability boundary."""
        return np.asarray(z.real if self.flow else np.abs(z) - 1)

    def point(self, distance: float, place: float) -> complex:
        """Return the z of a distance and a place (imaginary part, or angle)."""
        return complex(distance, place) if self.flow else (1 + distance) * complex(np.cos(place), np.sin(place))

    def run(self, values: NDArray[np.complex128]) -> Kreiss:
        """Return the best point found."""
        if self.size == 0:
            return Kreiss(1.0, complex("inf"), float("inf"), 0.0)
        reach = self.size if self.flow else np.pi
        near = values[np.argsort(-self.distance(values))[: 2 * _LOCAL]]
        heights = np.abs(near.imag) if self.flow else np.abs(np.angle(near))
        places = np.unique(np.concatenate([np.linspace(0, reach, _PLACES), heights]))
        grid = np.array([[self.point(d * self.size, p) for p in places] for d in _DISTANCES])
        sigma = smallest_singular_values(torch.from_numpy(self.a), grid)
        ratio = np.where(sigma > self.floor, self.distance(grid) / np.maximum(sigma, self.floor), 0.0)
        best = (1.0, complex("inf"), float("inf"))
        order = np.argsort(-ratio, axis=None)
        taken: list[tuple[int, int]] = []
        for flat in order:
            row, column = divmod(int(flat), len(places))
            if all(abs(column - c) > 2 for _, c in taken):  # a search of its own for each peak along the boundary
                taken.append((row, column))
                best = max(best, self._climb(_DISTANCES[row] * self.size, places[column]), key=lambda b: b[0])
            if len(taken) == _LOCAL:
                break
        for _ in range(4 if self.flow else 0):
            if not np.isfinite(best[2]):
                break
            # a higher peak of the same sigma_min lies where its pseudospectrum reaches furthest
            reached = pseudospectral_abscissa(torch.from_numpy(self.a), best[2])
            if not reached.value > best[1].real * (1 + 1e-6):
                break
            better = self._climb(reached.value, reached.point.imag)
            if better[0] <= best[0] * (1 + 1e-12):
                break
            best = better
        value, point, found = best
        if not np.isfinite(found):
            return Kreiss(1.0, complex("inf"), float("inf"), 0.0)
        error = self.n * np.finfo(np.float64).eps * (self.norm + abs(point)) / found
        return Kreiss(float(value), complex(point), float(found), float(value * error))

    def _climb(self, distance: float, place: float) -> tuple[float, complex, float]:
        """Return value, point and sigma_min of a local maximum near a distance and place."""

        def negative(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            d = float(np.exp(x[0])) * self.size
            z = self.point(d, x[1] * unit)
            u, s, v = np.linalg.svd(z * self.eye - self.a)
            sigma = max(float(s[-1]), self.floor)
            # d sigma = Re(u^H dz v); below the floor it is rounding, held constant so that the ascent turns back
            overlap = complex(u[:, -1].conj() @ v[-1].conj()) * (s[-1] >= self.floor)
            radial = d if self.flow else d * z / abs(z)
            along = 1j * unit if self.flow else 1j * z
            slope = np.array([1 - (overlap * radial).real / sigma, -(overlap * along).real / sigma])
            return float(np.log(sigma / d)), -slope

        unit = self.size if self.flow else 1.0
        start = np.array([np.log(distance / self.size), place / unit])
        found = scipy.optimize.minimize(
            negative, start, jac=True, method="L-BFGS-B", bounds=[(np.log(1e-12), np.log(1e6)), (None, None)]
        )
        d = float(np.exp(found.x[0])) * self.size
        z = self.point(d, float(found.x[1]) * unit)
        sigma = float(smallest_singular_values(torch.from_numpy(self.a), np.array([z]))[0])
        if sigma <= self.floor or d < 64 * np.finfo(np.float64).eps * abs(z):
            return (1.0, complex("inf"), float("inf"))
        return (float(self.distance(np.array([z]))[0] / sigma), z, sigma)
