"""Real Schur forms of a batch of small matrices and their reordering, by LAPACK in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack


def _unsorted(real: float, imag: float) -> bool:
    """Stand in for the selection function that `dgees` takes but does not call without sorting."""
    return False


def schur(
    matrices: NDArray[np.float64],
) -> tuple[NDArray[np.complex128], NDArray[np.float64], NDArray[np.float64]]:
    """Compute real Schur forms H = Z T Z^T.

    Args:
        matrices: H `[batch, m, m]`, finite.

    Returns:
        The eigenvalues `[batch, m]` in the order of T's diagonal, T `[batch, m, m]` and Z `[batch, m, m]`.

    Raises:
        ArithmeticError: If the QR algorithm does not converge.
    """
    batch, m = matrices.shape[:2]
    values = np.empty((batch, m), dtype=np.complex128)
    triangular = np.empty((batch, m, m))
    vectors = np.empty((batch, m, m))
    for i in range(batch):
        t, _, real, imag, z, _, info = lapack.dgees(_unsorted, matrices[i], sort_t=0, lwork=8 * m)
        if info:
            raise ArithmeticError(f"LAPACK's dgees did not find the Schur form of batch element {i} (info={info}).")
        values.real[i], values.imag[i], triangular[i], vectors[i] = real, imag, t, z
    return values, triangular, vectors


def leading_subspace(
    triangular: NDArray[np.float64], vectors: NDArray[np.float64], select: NDArray[np.bool_], size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reorder Schur forms so that the selected eigenvalues lead, and return what spans them.

    Where LAPACK finds two eigenvalues too close to exchange them stably, the unselected one of them takes the place.

    Args:
        triangular: T `[batch, m, m]`.
        vectors: Z `[batch, m, m]`.
        select: `[batch, m]`, `size` true in every row, pairs whole.
        size: Dimension of the subspaces.

    Returns:
        Q `[batch, m, size]`, orthonormal, and S = Q^T H Q `[batch, size, size]`, quasi-triangular, with H Q = Q S.

    Raises:
        ArithmeticError: If no exchange that LAPACK accepts keeps a conjugate pair together.
    """
    batch, m = select.shape
    rotation = np.empty((batch, m, size))
    small = np.empty((batch, size, size))
    flags = np.ascontiguousarray(select, dtype=np.int32)
    for i in range(batch):
        t, q, _, _, found, _, _, info = lapack.dtrsen(
            flags[i], triangular[i], vectors[i], job="N", wantq=1, lwork=m, liwork=1
        )
        if info or found != size or (size < m and t[size, size - 1] != 0):
            t, q = _reorder_leniently(triangular[i], vectors[i], select[i], size, i)
        rotation[i] = q[:, :size]
        small[i] = t[:size, :size]
    return rotation, small


def _reorder_leniently(
    triangular: NDArray[np.float64], vectors: NDArray[np.float64], select: NDArray[np.bool_], size: int, element: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Move selected blocks to the front one exchange at a time; a refused exchange passes the selection on."""
    t, q = triangular, vectors
    wanted = select.copy()
    for low in _blocks(t):
        while wanted[low] and low > 0:
            above = low - 1 - (low > 1 and t[low - 1, low - 2] != 0)
            if wanted[above]:
                break
            width, height = _width(t, low), low - above
            t_new, q_new, info = lapack.dtrexc(t, q, low + 1, above + 1)
            if not info:
                t, q = t_new, q_new
                wanted[above : low + width] = [True] * width + [False] * height
            elif width == height:
                # Hardly different from the one it cannot pass, which goes on in its place.
                wanted[above:low], wanted[low : low + width] = True, False
            else:
                break
            low = above
    if size < t.shape[0] and t[size, size - 1] != 0:
        t, q = _uncut(t, q, size, element)
    return t, q


def _uncut(
    t: NDArray[np.float64], q: NDArray[np.float64], size: int, element: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Move a real eigenvalue across the pair that the cut at `size` would split."""
    real = [low for low in _blocks(t) if _width(t, low) == 1]
    for low in sorted(real, key=lambda position: abs(position - size)):
        t_new, q_new, info = lapack.dtrexc(t, q, low + 1, size if low > size else size + 1)
        if not info and t_new[size, size - 1] == 0:
            return t_new, q_new
    raise ArithmeticError(f"The Schur form of batch element {element} could not be reordered; try another subspace.")


def _blocks(t: NDArray[np.float64]) -> list[int]:
    """Return the first row of every diagonal block."""
    return [0, *(j for j in range(1, t.shape[0]) if t[j, j - 1] == 0)]


def _width(t: NDArray[np.float64], low: int) -> int:
    return 1 + int(low + 1 < t.shape[0] and t[low + 1, low] != 0)
