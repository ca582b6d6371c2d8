"""Extremal eigenvalues of symmetric operators by thick-restarted Lanczos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.linalg.arnoldi import Arnoldi, check_finite
from dyneq.linalg.operator import LinearOperator
from dyneq.linalg.pairs import explicit_residual
from dyneq.linalg.result import default_tolerance


@dataclass(frozen=True)
class SymmetricResult:
    """Extremal eigenpairs of symmetric operators.

    Attributes:
        values: `[batch, count]`, the most extreme first. Each is a Rayleigh quotient, so that the first of `largest` is
            a lower bound of the largest eigenvalue, and the first of `smallest` an upper bound of the smallest.
        vectors: `[batch, count, dim]`, unit 2-norm, the operator's dtype.
        residual: norm(A v - mu v) `[batch, count]`, from a product with the returned vector. An eigenvalue lies within
            it of mu, rigorously, for a symmetric A; that it is the extreme one is not certified.
        converged: `[batch, count]`, residual <= tol * scale.
        scale: `[batch]`, the largest norm(A u) over the unit vectors u that A was applied to.
        tol: Relative tolerance used.
        matvecs: Products used.
        restarts: Restarts used.
    """

    values: NDArray[np.float64]
    vectors: Tensor
    residual: NDArray[np.float64]
    converged: NDArray[np.bool_]
    scale: NDArray[np.float64]
    tol: float
    matvecs: int
    restarts: int


@torch.no_grad()
def extremal_symmetric(
    op: LinearOperator,
    which: Literal["largest", "smallest"] = "largest",
    count: int = 1,
    *,
    generator: torch.Generator,
    subspace: int | None = None,
    tol: float | None = None,
    max_restarts: int = 100,
    start: Tensor | None = None,
) -> SymmetricResult:
    """Compute the largest or smallest eigenvalues of symmetric operators, such as `op.symmetric_part()`.

    Lanczos with full orthogonalisation and thick restarts (Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 2000).

    Args:
        op: Symmetric operators.
        which: `largest` or `smallest`.
        count: Pairs wanted, at most `op.dim`.
        generator: Source of the start vectors.
        subspace: Largest dimension of the Krylov spaces; chosen by `count` if None.
        tol: Relative to the operator's scale; `default_tolerance(op.dtype)` if None.
        max_restarts: Restarts after which what is there is returned, marked as not converged.
        start: Start vectors `[batch, dim]` in place of random ones.

    Raises:
        ValueError: If an argument is out of range, or the operator is found not to be symmetric.
        ArithmeticError: If the operator returns numbers that are not finite.
    """
    if which not in ("largest", "smallest"):
        raise ValueError(f"`which` is 'largest' or 'smallest', got {which!r}.")
    if not 1 <= count <= op.dim:
        raise ValueError(f"Of {op!r} there are 1 to {op.dim} eigenvalues to want, got count={count}.")
    tol = default_tolerance(op.dtype) if tol is None else tol
    if not tol > 0:
        raise ValueError(f"The tolerance must be positive, got {tol}.")
    size = min(max(2 * count + 10, 32) if subspace is None else subspace, op.dim)
    if size < min(count + 2, op.dim):
        raise ValueError(f"{count} eigenvalues need a subspace of at least {count + 2}, got {subspace}.")
    before = op.products
    kept = min(count + (size - count) // 2, size - 1)
    sign = -1.0 if which == "largest" else 1.0
    values = np.zeros((op.batch, count))
    scale = np.zeros(op.batch)
    vectors = torch.zeros(op.batch, count, op.dim, dtype=op.dtype, device=op.device)
    elements = np.arange(op.batch)
    factorisation = Arnoldi(op, size, generator=generator, start=start)
    restarts = 0
    while True:
        factorisation.extend()
        projected = factorisation.projected.cpu().numpy()
        check_finite(projected, elements)
        norm = factorisation.scale.cpu().numpy()
        matrix = projected[:, :size]
        _check_symmetric(matrix, norm, elements, op.dtype)
        # `eigh` sorts upwards; the sign puts the wanted end first.
        theta, rotation = np.linalg.eigh(sign * 0.5 * (matrix + matrix.transpose(0, 2, 1)))
        theta = sign * theta
        coupling = np.einsum("bi,bij->bj", projected[:, size], rotation)
        done = (np.abs(coupling[:, :count]) <= 0.5 * tol * norm[:, None]).all(axis=1)
        if restarts == max_restarts:
            done[:] = True
        leave = done if done.all() or done.sum() >= 0.05 * done.size else np.zeros_like(done)
        if leave.any():
            rows = factorisation.combine(torch.as_tensor(rotation[:, :, :count]).mT)
            out, here = torch.as_tensor(elements[leave]), torch.as_tensor(np.flatnonzero(leave))
            vectors[out.to(op.device)] = rows[here.to(op.device)]
            values[elements[leave]], scale[elements[leave]] = theta[leave, :count], norm[leave]
            if leave.all():
                break
            stay = ~leave
            factorisation.select(torch.as_tensor(np.flatnonzero(stay)))
            elements, theta, rotation, coupling = elements[stay], theta[stay], rotation[stay], coupling[stay]
        small = np.zeros((elements.size, kept, kept))
        small[:, range(kept), range(kept)] = theta[:, :kept]
        factorisation.restart(*(torch.as_tensor(x) for x in (rotation[:, :, :kept], small, coupling[:, :kept])))
        restarts += 1
    vectors /= torch.linalg.vector_norm(vectors, dim=2, keepdim=True)
    residual = explicit_residual(op, values.astype(np.complex128), vectors)
    return SymmetricResult(
        values=values,
        vectors=vectors,
        residual=residual,
        converged=residual <= tol * scale[:, None],
        scale=scale,
        tol=tol,
        matvecs=op.products - before,
        restarts=restarts,
    )


def _check_symmetric(
    matrix: NDArray[np.float64], norm: NDArray[np.float64], elements: NDArray[np.intp], dtype: torch.dtype
) -> None:
    asymmetry = np.abs(matrix - matrix.transpose(0, 2, 1)).max(axis=(1, 2))
    bad = elements[asymmetry > torch.finfo(dtype).eps ** 0.5 * norm]
    if bad.size:
        raise ValueError(
            f"The operators of batch elements {bad[:8].tolist()} are not symmetric; use `op.symmetric_part()` instead."
        )
