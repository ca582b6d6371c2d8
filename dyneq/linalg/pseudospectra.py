"""Pseudospectra of explicit matrices: sigma_min(z - A) on grids, and the pseudospectral abscissa.

The eps-pseudospectrum is where sigma_min(z - A) <= eps: the eigenvalues of all A + E with norm(E) <= eps (Trefethen and
Embree, Spectra and Pseudospectra, 2005).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.linalg.explicit import one_square

#: Matrix entries of one batch of singular value problems.
_CHUNK = 4_000_000
#: Turns after which the search for the pseudospectral abscissa gives up; it converges quadratically.
_TURNS = 60


def smallest_singular_values(matrix: Tensor, points: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Return sigma_min(z - A) at points of the complex plane, of their shape; exact but for rounding.

    Each value is good to about n times 1e-16 times norm(z - A): smaller ones are rounding.

    Args:
        matrix: A `[n, n]`, real; with it sigma_min at conjugate points is the same, and computed once.
        points: z.

    Raises:
        ValueError: If the matrix is not square or not finite.
    """
    a = one_square(matrix, "smallest_singular_values")
    folded = np.ravel(points).real + 1j * np.abs(np.ravel(points).imag)
    unique, back = np.unique(folded, return_inverse=True)
    n, size = a.shape[0], float(np.abs(a).max(initial=0.0))
    scale = max(size, float(np.abs(unique).max(initial=0.0))) or 1.0
    shifted = torch.from_numpy(a / scale).to(torch.complex128)
    eye = torch.eye(n, dtype=torch.complex128)
    parts = torch.from_numpy(unique / scale).split(max(1, _CHUNK // n**2))
    found = [torch.linalg.svdvals(part[:, None, None] * eye - shifted)[:, -1] for part in parts]
    values = torch.cat(found).numpy() if found else np.empty(0)
    return np.asarray((values * scale)[back].reshape(np.shape(points)))


@dataclass(frozen=True)
class Abscissa:
    """A pseudospectral abscissa alpha_eps.

    Attributes:
        value: Re z of the point found, the rightmost of the eps-pseudospectrum; no smaller than the true one, but
            for rounding, if `certified`, and never larger than it.
        point: z.
        sigma: sigma_min(z - A) there, which shows that z belongs to the pseudospectrum.
        margin: The line Re z = value + margin was found not to meet the eps-pseudospectrum: an error bar.
        certified: Whether that was found within `margin` as returned.
        turns: Horizontal searches.
    """

    value: float
    point: complex
    sigma: float
    margin: float
    certified: bool
    turns: int


def pseudospectral_abscissa(matrix: Tensor, eps: float) -> Abscissa:
    """Compute alpha_eps(A), the largest real part over the eps-pseudospectrum, by the criss-cross algorithm.

    From a point of the pseudospectrum, search along the vertical line through it: it meets the boundary where a
    Hamiltonian matrix has imaginary eigenvalues. From the middle of every interval inside, go right to the boundary, by
    another Hamiltonian matrix; repeat from the rightmost point reached. Globally and quadratically convergent (Burke,
    Lewis and Overton, IMA J. Numer. Anal. 23, 2003).

    Args:
        matrix: A `[n, n]`, real.
        eps: Size of the perturbation in the 2-norm, positive.

    Raises:
        ValueError: If the matrix is not square or not finite, or eps is not positive.
    """
    a = one_square(matrix, "pseudospectral_abscissa")
    if not 0 < eps < np.inf:
        raise ValueError(f"A pseudospectrum belongs to a positive finite eps, got {eps}.")
    # in units of the matrix: neither huge nor tiny norms overflow
    size = float(np.abs(a).max())
    scale = max(size * float(np.linalg.norm(a / size)) if size > 0 else 0.0, eps)
    found = _CrissCross(a / scale, eps / scale).run()
    return Abscissa(
        found.value * scale,
        found.point * scale,
        found.sigma * scale,
        found.margin * scale,
        found.certified,
        found.turns,
    )


class _CrissCross:
    """The search for one matrix of norm at most 1 and one eps of at most 1."""

    def __init__(self, a: NDArray[np.float64], eps: float) -> None:
        self.a, self.eps, self.n = a, eps, a.shape[0]
        self.eye = np.eye(self.n)
        # where two eigenvalues of a Hamiltonian matrix meet on the axis, rounding takes them off it by its square root
        self.rounding = 64 * self.n * np.finfo(np.float64).eps
        self.near = np.sqrt(self.rounding)

    def run(self) -> Abscissa:
        values = np.linalg.eigvals(self.a)
        start = values[values.real.argmax()]
        x, y = self._rightmost([abs(float(start.imag))], float(start.real))
        turns = 1
        while turns < _TURNS:
            middles = self._middles(x)
            if not middles:
                break
            reached, height = self._rightmost(middles, x)
            turns += 1
            gained = reached - x
            if gained > 0:
                x, y = reached, height
            if gained <= self.rounding:
                break
        margin, certified = self._margin(x)
        return Abscissa(x, complex(x, y), float(self._sigma(np.array([x + 1j * y]))[0]), margin, certified, turns)

    def _sigma(self, points: NDArray[np.complex128]) -> NDArray[np.float64]:
        return np.asarray(np.linalg.svd(points[:, None, None] * self.eye - self.a, compute_uv=False)[:, -1])

    def _crossings(self, x: float) -> NDArray[np.float64]:
        """Return the y >= 0 where sigma_min(x + iy - A) may be eps: a superset, of which each is to be verified."""
        h = np.block([[x * self.eye - self.a.T, self.eps * self.eye], [-self.eps * self.eye, self.a - x * self.eye]])
        values = np.linalg.eigvals(h)
        return np.unique(np.abs(values.imag[np.abs(values.real) <= self.near]))

    def _middles(self, x: float) -> list[float]:
        """Return the middles of the intervals of y >= 0 in which x + iy lies inside the pseudospectrum."""
        cuts = self._crossings(x)
        if not cuts.size:
            return []
        ends = np.concatenate([[-cuts[0]], cuts])  # the pseudospectrum of a real matrix is symmetric
        middles = np.unique(np.concatenate([0.5 * (ends[1:] + ends[:-1]), cuts]))
        inside = self._sigma(x + 1j * middles) <= self.eps
        return [float(y) for y in middles[inside]]

    def _rightmost(self, heights: list[float], x: float) -> tuple[float, float]:
        """Return the rightmost point of the pseudospectrum on horizontal lines, and its line; x if none is further."""
        best = (x, heights[0])
        for y in heights:
            # a singular value of s + iy - A is eps where s is a real eigenvalue of this matrix
            turned, coupling = 1j * y * self.eye, self.eps * self.eye
            values = np.linalg.eigvals(np.block([[self.a - turned, coupling], [coupling, self.a.T + turned]]))
            real = np.unique(values.real[np.abs(values.imag) <= self.near])[::-1]
            for s in real[real > best[0]]:
                if self._sigma(np.array([s + 1j * y]))[0] <= self.eps + self.rounding:
                    best = (float(s), y)
                    break
        return best

    def _margin(self, x: float) -> tuple[float, bool]:
        """Return the smallest of a few margins with no point of the pseudospectrum on the line beyond it."""
        margin = self.rounding
        while margin < 1e-2:
            if not self._middles(x + margin):
                return margin, True
            margin *= 8
        return float("nan"), False
