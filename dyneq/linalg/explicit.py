"""Explicit real matrices as the float64 arrays that LAPACK takes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def square_arrays(matrix: Tensor, what: str) -> NDArray[np.float64]:
    """Return real matrices `[batch, n, n]` in float64 on the CPU.

    Args:
        matrix: `[batch, n, n]`.
        what: Who asks, for messages.

    Raises:
        ValueError: If they are not square and real, or not finite.
    """
    if matrix.ndim != 3 or matrix.shape[1] != matrix.shape[2] or not matrix.shape[1] or matrix.is_complex():
        raise ValueError(f"{what} takes real square matrices [batch, n, n], got {list(matrix.shape)} {matrix.dtype}.")
    array = matrix.detach().double().cpu()
    bad = (~torch.isfinite(array).flatten(1).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"The matrices of batch elements {bad[:8]} hold numbers that are not finite; leave them out.")
    return np.asarray(array.numpy())


def one_square(matrix: Tensor, what: str) -> NDArray[np.float64]:
    """Return one real matrix `[n, n]` in float64 on the CPU.

    Args:
        matrix: `[n, n]`.
        what: Who asks, for messages.

    Raises:
        ValueError: If it is not square and real, or not finite.
    """
    if matrix.ndim != 2:
        raise ValueError(f"{what} takes one real square matrix [n, n], got {list(matrix.shape)}.")
    return square_arrays(matrix[None], what)[0]
