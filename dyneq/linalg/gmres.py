"""Restarted GMRES for a batch of linear systems."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.linalg.arnoldi import Arnoldi, check_finite
from dyneq.linalg.operator import LinearOperator
from dyneq.linalg.result import default_tolerance

# A cycle that leaves more than this of the residual counts as no progress.
_STALL = 0.999


class GmresStatus(Enum):
    """Why a batch element stopped; the value is a sentence that says what to do."""

    CONVERGED = "The residual is below the tolerance."
    MAX_PRODUCTS = "The products ran out before the residual reached the tolerance; allow more, or precondition."
    STAGNATED = "Restarts no longer reduce the residual; enlarge `restart`, or expect a nearly singular system."


@dataclass(frozen=True)
class GmresResult:
    """Solutions of A x = b for a batch.

    Attributes:
        x: `[batch, dim]`, the best found.
        residual: norm(b - A x) `[batch]`, from a product with x.
        relative_residual: residual / norm(b) `[batch]`; 0 where b and the residual are 0, inf where only b is.
        converged: `[batch]`, relative_residual <= tol.
        products: Products used.
        status: One `GmresStatus` a batch element.
    """

    x: Tensor
    residual: NDArray[np.float64]
    relative_residual: NDArray[np.float64]
    converged: NDArray[np.bool_]
    products: int
    status: tuple[GmresStatus, ...]


@torch.no_grad()
def solve(
    op: LinearOperator,
    b: Tensor,
    *,
    generator: torch.Generator,
    tol: float | None = None,
    restart: int = 30,
    max_products: int = 1000,
    x0: Tensor | None = None,
) -> GmresResult:
    """Solve A x = b, with one Krylov space for each batch element.

    GMRES(restart) of Saad and Schultz (SIAM J. Sci. Stat. Comput. 7, 1986). Whether an element has converged is decided
    by the residual of its x, computed afresh after every cycle; a cycle that makes it worse is discarded.

    Args:
        op: The operators.
        b: Right-hand sides `[batch, dim]`, finite.
        generator: Source of directions after a breakdown.
        tol: Relative to norm(b); `default_tolerance(op.dtype)` if None.
        restart: Steps in a cycle.
        max_products: Applications of `op` after which what is there is returned.
        x0: Start `[batch, dim]`, zero if None.

    Raises:
        ValueError: If shapes or dtypes do not fit, `b` or `x0` is not finite, or an argument is out of range.
        ArithmeticError: If the operator returns numbers that are not finite.
    """
    tol = default_tolerance(op.dtype) if tol is None else tol
    if not tol > 0 or restart < 1 or max_products < 1:
        raise ValueError(
            f"GMRES needs tol > 0, restart >= 1 and max_products >= 1, got {tol=}, {restart=}, {max_products=}."
        )
    x = torch.zeros_like(b) if x0 is None else x0.clone()
    for name, tensor in (("b", b), ("x0", x)):
        if tensor.shape != (op.batch, op.dim) or tensor.dtype != op.dtype:
            raise ValueError(
                f"{name} for {op!r} is {op.dtype} [{op.batch}, {op.dim}], got {tensor.dtype} {list(tensor.shape)}."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds numbers that are not finite; leave those batch elements out.")
    before, used = op.products, 0
    defect = b.clone()
    if x0 is not None:
        defect -= op.matvec(x)
        used = 1
    size = _norm(b)
    residual = _norm(defect)
    stalled = np.zeros(op.batch, dtype=bool)
    while True:
        running = np.flatnonzero((residual > tol * size) & ~stalled)
        steps = min(restart, op.dim, max_products - used - 1)
        if running.size == 0 or steps < 1:
            break
        index = torch.as_tensor(running, device=op.device)
        part = op if running.size == op.batch else op.restrict(index)
        trial = x[index] + _correction(part, defect[index], residual[running], running, steps, generator)
        remaining = b[index] - part.matvec(trial)
        used += steps + 1
        left_over = _norm(remaining)
        better = left_over < residual[running]
        accept = torch.as_tensor(running[better], device=op.device)
        chosen = torch.as_tensor(better, device=op.device)
        x[accept], defect[accept] = trial[chosen], remaining[chosen]
        # A cycle cut short by `max_products` says nothing about stagnation.
        stalled[running] = ~(left_over < _STALL * residual[running]) & (steps == min(restart, op.dim))
        residual[running] = np.where(better, left_over, residual[running])
    converged = residual <= tol * size
    relative = np.divide(residual, size, out=np.where(residual > 0, np.inf, 0.0), where=size > 0)
    reasons = np.where(converged, 0, np.where(stalled, 2, 1))
    return GmresResult(
        x=x,
        residual=residual,
        relative_residual=relative,
        converged=converged,
        products=op.products - before,
        status=tuple(list(GmresStatus)[reason] for reason in reasons),
    )


def _norm(v: Tensor) -> NDArray[np.float64]:
    return torch.linalg.vector_norm(v, dim=1, dtype=torch.float64).cpu().numpy()


def _correction(
    op: LinearOperator,
    defect: Tensor,
    residual: NDArray[np.float64],
    elements: NDArray[np.intp],
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Minimise norm(defect - A d) over d in the Krylov space of the defect."""
    factorisation = Arnoldi(op, steps, generator=generator, start=defect)
    factorisation.extend()
    projected = factorisation.projected.cpu()
    check_finite(projected.numpy(), elements)
    target = torch.zeros(elements.size, steps + 1, 1, dtype=torch.float64)
    target[:, 0, 0] = torch.as_tensor(residual)
    # The projected matrix may be singular, where A is or after a breakdown: the smallest solution ignores noise.
    cut = steps * torch.finfo(op.dtype).eps
    weights = torch.linalg.lstsq(projected, target, rcond=cut, driver="gelsd").solution
    return factorisation.combine(weights.mT)[:, 0]
