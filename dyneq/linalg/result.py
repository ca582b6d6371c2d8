"""What an eigenvalue computation returns: pairs with the evidence for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class EigenResult:
    """Eigenpairs of a batch of operators, each with its certificate.

    Rows are rectangular: `k` is the largest number of pairs of any batch element, and `present` says which entries are
    pairs; where it is false the others hold NaN (False in boolean ones). A conjugate pair is always whole, +imag first.
    Pairs are ordered by the first target.

    Attributes:
        values: Eigenvalues `[batch, k]`, complex128.
        vectors: Right vectors v `[batch, k, dim]`, unit 2-norm, complex form of the operator's dtype, on its device.
        left_vectors: Left vectors w `[batch, k, dim]`, w^H A = mu w^H, unit 2-norm; None if not asked for.
        residual: norm(A v - mu v) `[batch, k]`, from a product with the returned vector, never from the recurrence.
        left_residual: norm(A^T w - conj(theta) w) `[batch, k]`, with the eigenvalue theta of the run on A^T that found
            w; None if left vectors were not asked for.
        condition: 1/abs(w^H v) `[batch, k]`, inf where the vectors are orthogonal; NaN where no left vector converged,
            or none was asked for. For a repeated eigenvalue it belongs to the returned vectors, which need not be the
            best choice of them.
        converged: `[batch, k]`, residual <= tol * scale.
        left_converged: `[batch, k]`, left_residual <= tol * scale and theta within sqrt(tol) * scale of mu; where it is
            false, the left vector is merely the nearest one found. None if left vectors were not asked for.
        present: `[batch, k]`, false for padding.
        scale: `[batch]`, the largest norm(A u) over the unit vectors u that A was applied to: a lower bound of the
            2-norm of A, so that the test for convergence is never too generous.
        tol: Relative tolerance used.
        matvecs: Products with A for the right pairs.
        left_matvecs: Products with A^T for the left vectors.
        restarts: Restarts of the run for the right pairs.
        method: `krylov-schur` or `dense`.
    """

    values: NDArray[np.complex128]
    vectors: Tensor
    left_vectors: Tensor | None
    residual: NDArray[np.float64]
    left_residual: NDArray[np.float64] | None
    condition: NDArray[np.float64]
    converged: NDArray[np.bool_]
    left_converged: NDArray[np.bool_] | None
    present: NDArray[np.bool_]
    scale: NDArray[np.float64]
    tol: float
    matvecs: int
    left_matvecs: int
    restarts: int
    method: str

    @property
    def error_bound(self) -> NDArray[np.float64]:
        """First-order estimate condition * residual `[batch, k]` of abs(error of mu), valid for simple eigenvalues.

        It is not a rigorous bound: a residual is a backward error, and the estimate ignores terms of second order,
        which dominate for defective or nearly repeated eigenvalues. NaN where the condition is unknown, inf
        where it is inf.
        """
        with np.errstate(invalid="ignore"):
            return np.where(np.isposinf(self.condition), np.inf, self.condition * self.residual)

    @property
    def relative_residual(self) -> NDArray[np.float64]:
        """Residual / scale `[batch, k]`, the number that `converged` compares with `tol`; 0 for the zero operator."""
        scale = self.scale[:, None]
        return np.divide(self.residual, scale, out=np.array(self.residual), where=scale > 0)


def default_tolerance(dtype: torch.dtype) -> float:
    """Return the tolerance, relative to the operator's scale, that products in `dtype` can reach: max(1e-10, 64 eps).

    Args:
        dtype: Real dtype of the operator.
    """
    return max(1e-10, 64 * torch.finfo(dtype).eps)
