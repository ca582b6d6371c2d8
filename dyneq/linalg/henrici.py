"""Henrici's departure from normality of a batch of small matrices, without cancellation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.linalg.explicit import square_arrays


@dataclass(frozen=True)
class Departure:
    """Departure from normality of each matrix of a batch.

    Attributes:
        values: All eigenvalues `[batch, n]`, in the order of the Schur form.
        departure: Frobenius norm of the strictly upper part of the complex Schur form `[batch]`, which is
            sqrt(norm_F(A)^2 - sum abs(lambda)^2); 0 for normal matrices alone.
        norm: Frobenius norm `[batch]`.
        antisymmetric: Frobenius norm of (A - A^T)/2 `[batch]`.
        symmetric: Frobenius norm of (A + A^T)/2 `[batch]`.
        backward_error: Frobenius norm of A minus the computed product of Schur factors, and of what these lack in
            orthogonality, plus the given uncertainty of A `[batch]`: the departure is exactly that of a matrix about
            this far from A.
        error: First-order bound of the error of the departure by that `[batch]`, which grows with the conditions of the
            eigenvalues; NaN where the matrix has no full set of eigenvectors, or nearly so.
    """

    values: NDArray[np.complex128]
    departure: NDArray[np.float64]
    norm: NDArray[np.float64]
    antisymmetric: NDArray[np.float64]
    symmetric: NDArray[np.float64]
    backward_error: NDArray[np.float64]
    error: NDArray[np.float64]

    @property
    def relative(self) -> NDArray[np.float64]:
        """Departure divided by the Frobenius norm, between 0 and 1; 0 for the zero matrix."""
        return np.divide(self.departure, self.norm, out=np.zeros_like(self.norm), where=self.norm > 0)

    @property
    def antisymmetric_share(self) -> NDArray[np.float64]:
        """norm_F((A - A^T)/2) / norm_F(A), between 0 and 1; 0 for the zero matrix."""
        return np.divide(self.antisymmetric, self.norm, out=np.zeros_like(self.norm), where=self.norm > 0)


def departure_from_normality(matrix: Tensor, uncertainty: NDArray[np.float64] | float = 0.0) -> Departure:
    """Compute Henrici's departure (Henrici, Numer. Math. 4, 1962) from the real Schur form by LAPACK, in float64.

    The textbook difference norm_F(A)^2 - sum abs(lambda)^2 loses half of the digits for nearly normal matrices. The
    Schur form shows the departure itself: its entries above the diagonal blocks, and, of a 2 x 2 block [[a, b], [c, a]]
    of a conjugate pair, b + c.

    Args:
        matrix: `[batch, n, n]`, real.
        uncertainty: How far each matrix may be off, in the Frobenius norm `[batch]`, for the error.

    Raises:
        ValueError: If the matrices are not square or not finite.
    """
    array = square_arrays(matrix, "departure_from_normality")
    batch, n = array.shape[:2]
    # squares of very large or very small entries do not fit
    scale = np.abs(array).reshape(batch, -1).max(axis=1)
    unit = array / np.where(scale > 0, scale, 1.0)[:, None, None]
    triangular, basis = np.empty_like(unit), np.empty_like(unit)
    for i in range(batch):
        triangular[i], basis[i] = scipy.linalg.schur(unit[i], output="real", check_finite=False)
    t, q, a = (torch.from_numpy(x) for x in (triangular, basis, unit))
    lower = torch.diagonal(t, -1, 1, 2)
    upper = torch.diagonal(t, 1, 1, 2)
    paired = lower != 0
    values = torch.diagonal(t, 0, 1, 2).to(torch.complex128).clone()
    # LAPACK leaves both diagonal entries of a pair's block equal, and its off-diagonal ones of opposite sign
    half = torch.where(paired, (-lower * upper).clamp(min=0.0).sqrt(), 0.0)
    values[:, :-1] += 1j * half
    values[:, 1:] -= 1j * half
    # the entries above the blocks, and b + c within them
    strict = torch.triu(t, 2).square().sum((1, 2)) + torch.where(paired, 0.0, upper.square()).sum(1)
    departure = (strict + torch.where(paired, (upper + lower).square(), 0.0).sum(1)).sqrt()
    residual = torch.linalg.matrix_norm(q @ t @ q.mT - a)
    loss = torch.linalg.matrix_norm(q @ q.mT - torch.eye(n, dtype=torch.float64)) * torch.linalg.matrix_norm(a)
    off = residual + loss + torch.as_tensor(uncertainty / np.where(scale > 0, scale, 1.0))

    def scaled(x: Tensor) -> NDArray[np.float64]:
        return np.asarray(x.numpy() * scale)

    return Departure(
        values=values.numpy() * scale[:, None],
        departure=scaled(departure),
        norm=scaled(torch.linalg.matrix_norm(a)),
        antisymmetric=scaled(torch.linalg.matrix_norm(0.5 * (a - a.mT))),
        symmetric=scaled(torch.linalg.matrix_norm(0.5 * (a + a.mT))),
        backward_error=scaled(off),
        error=scaled(_first_order(a, departure, off)),
    )


def _first_order(a: Tensor, departure: Tensor, off: Tensor) -> Tensor:
    """Return the first-order bound of the error of departures of matrices that may be off by so much.

    The square changes by 2 <A - H^T, E> where A changes by E, with H = V conj(lambda) V^-1, which is A^T where A is
    normal.
    """
    values, vectors = torch.linalg.eig(a)
    # where the vectors are nearly dependent, a change of A moves eigenvalues by more than in proportion
    dependent = torch.linalg.cond(vectors) > np.finfo(np.float64).eps ** -0.5
    adjoint, failed = torch.linalg.solve_ex(vectors.mT, (vectors * values.conj()[:, None, :]).mT)
    slope = torch.linalg.matrix_norm(a - adjoint)
    known = (failed == 0) & torch.isfinite(slope) & ~dependent
    relative = torch.where(departure > 0, slope / torch.where(departure > 0, departure, 1.0), 1.0)
    return torch.where(known, (1 + relative) * off, torch.nan)
