"""All eigenpairs of a batch of small matrices by LAPACK."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import lapack
from torch import Tensor

from dyneq.linalg.operator import MatrixOperator
from dyneq.linalg.pairs import Pairs, certify
from dyneq.linalg.result import EigenResult, default_tolerance
from dyneq.linalg.selection import leading
from dyneq.linalg.targets import Target, check_targets


def dense_eigenpairs(
    matrix: Tensor, targets: Sequence[Target], count: int | None = None, *, tol: float | None = None, left: bool = True
) -> EigenResult:
    """Compute eigenpairs of explicit matrices in float64 by LAPACK's `dgeev`, left and right from one Schur form.

    Args:
        matrix: `[batch, n, n]` or `[n, n]`, real.
        targets: Rankings; the union of what they want is returned, ordered by the first.
        count: Pairs wanted of each target (one more where the last is half of a conjugate pair); all `n` if None.
        tol: Relative to the largest column norm, for the flags; `default_tolerance(torch.float64)` if None.
        left: Whether to compute left vectors and conditions.

    Raises:
        ValueError: If the matrices are not square, not finite or nothing is wanted.
        ArithmeticError: If LAPACK does not converge.
    """
    op = MatrixOperator(matrix.detach().double())
    targets = check_targets(targets, op.dim if count is None else count)
    right, adjoint = lapack_pairs(op.matrix, targets, op.dim if count is None else min(count, op.dim), left=left)
    tol = default_tolerance(torch.float64) if tol is None else tol
    return certify(op, right, adjoint, tol=tol, matvecs=0, left_matvecs=0, method="dense", corresponding=True)


def dense_eigenvalues(matrix: Tensor) -> NDArray[np.complex128]:
    """Return all eigenvalues `[batch, n]` of real `matrix` `[batch, n, n]`, computed in float64, in LAPACK's order.

    Args:
        matrix: `[batch, n, n]`.

    Raises:
        ValueError: If the matrices are not square or not finite.
    """
    if matrix.ndim != 3 or matrix.shape[1] != matrix.shape[2]:
        raise ValueError(f"dense_eigenvalues takes square matrices [batch, n, n], got {list(matrix.shape)}.")
    array = matrix.detach().double().cpu()
    _check_finite(array)
    return torch.linalg.eigvals(array).numpy()


def lapack_pairs(matrix: Tensor, targets: Sequence[Target], count: int, *, left: bool) -> tuple[Pairs, Pairs | None]:
    """Compute the leading pairs of A, and those of A^T in the same order.

    Args:
        matrix: `[batch, n, n]`, float32 or float64; the vectors return in its dtype, on its device.
        targets: Rankings.
        count: Pairs wanted of each.
        left: Whether to compute the second.

    Returns:
        The pairs of A, and those of A^T or None.

    Raises:
        ValueError: If a matrix is not finite.
        ArithmeticError: If LAPACK does not converge.
    """
    _check_finite(matrix)
    array = matrix.double().cpu().numpy()
    batch, n = array.shape[:2]
    values = np.empty((batch, n), dtype=np.complex128)
    vectors = np.empty((2, batch, n, n))
    for i in range(batch):
        real, imag, u, v, info = lapack.dgeev(array[i], compute_vl=int(left), compute_vr=1)
        if info:
            raise ArithmeticError(f"LAPACK's dgeev did not converge for batch element {i} (info={info}).")
        values.real[i], values.imag[i], vectors[0, i] = real, imag, v.T
        if left:
            vectors[1, i] = u.T
    _, wanted = leading(values, targets, count)
    first, _ = leading(values, targets[:1], 1)
    width = int(wanted.sum(axis=1).max())
    order = np.argsort(np.where(wanted, first - n, first), axis=1, kind="stable")[:, :width]
    present = np.take_along_axis(wanted, order, axis=1)
    values = np.where(present, np.take_along_axis(values, order, axis=1), complex(np.nan, np.nan))
    scale = np.linalg.norm(array, axis=1).max(axis=1)

    def pairs(stored: NDArray[np.float64], sign: float) -> Pairs:
        rows = np.take_along_axis(stored, order[:, :, None], axis=1) * present[:, :, None]
        rows[values.imag < 0] *= sign
        return Pairs(values, torch.as_tensor(rows, dtype=matrix.dtype, device=matrix.device), present, scale, 0)

    # LAPACK's left vectors satisfy u^H A = mu u^H, so their conjugates are the vectors of A^T for the same value.
    return pairs(vectors[0], 1.0), pairs(vectors[1], -1.0) if left else None


def _check_finite(matrix: Tensor) -> None:
    bad = (~torch.isfinite(matrix).flatten(1).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"The matrices of batch elements {bad[:8]} hold numbers that are not finite; leave them out.")
