"""Leading eigenpairs of a batch of operators by thick-restarted Arnoldi (Krylov-Schur)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.linalg.arnoldi import Arnoldi, check_finite
from dyneq.linalg.dense import lapack_pairs
from dyneq.linalg.operator import LinearOperator
from dyneq.linalg.pairs import Pairs, certify
from dyneq.linalg.result import EigenResult, default_tolerance
from dyneq.linalg.schur import leading_subspace, schur
from dyneq.linalg.selection import keep, leading, nearest
from dyneq.linalg.targets import Target, check_targets

# Ranks Ritz values of the named batch elements: (values [some, m], elements [some]) to ranks and mask of the wanted.
_Select = Callable[[NDArray[np.complex128], NDArray[np.intp]], tuple[NDArray[np.intp], NDArray[np.bool_]]]


def eigenpairs(
    op: LinearOperator,
    targets: Sequence[Target],
    count: int,
    *,
    generator: torch.Generator,
    subspace: int | None = None,
    tol: float | None = None,
    max_restarts: int = 100,
    start: Tensor | None = None,
    left: bool = True,
) -> EigenResult:
    """Compute the `count` leading eigenpairs of every target, for every operator of the batch.

    Krylov-Schur (Stewart, SIAM J. Matrix Anal. Appl. 23, 2001) in real arithmetic, one Krylov space of the operator for
    all targets. Where the space would hold the whole dimension, LAPACK is used on the matrix itself. Every pair is
    returned; one that has not converged is marked as such. Which eigenvalues lead is not certified: like any Krylov
    method this one can miss an eigenvalue that its start vector hardly contains, and can find fewer copies of a
    repeated one than there are.

    Args:
        op: The operators; `left` needs their transposed product.
        targets: Rankings; the union of what they want is returned, ordered by the first.
        count: Pairs wanted of each target (one more where the last is half of a conjugate pair).
        generator: Source of the start vectors.
        subspace: Largest dimension of the Krylov spaces, rounded up to an even number; chosen by `count` if None.
        tol: Relative to the operator's scale; `default_tolerance(op.dtype)` if None.
        max_restarts: Restarts after which what is there is returned, marked as not converged.
        start: Start vectors `[batch, dim]` for the right pairs, in place of random ones.
        left: Whether to find left vectors and conditions by a second run on A^T.

    Raises:
        ValueError: If nothing is wanted, the subspace is too small for it, or the tolerance is not positive.
        NotImplementedError: If `left` and the operator has no transposed product.
        ArithmeticError: If the operator returns numbers that are not finite.
    """
    targets = check_targets(targets, count)
    tol = default_tolerance(op.dtype) if tol is None else tol
    if not tol > 0:
        raise ValueError(f"The tolerance must be positive, got {tol}.")
    if max_restarts < 0:
        raise ValueError(f"max_restarts must not be negative, got {max_restarts}.")
    most = len(targets) * (count + 1)
    size = max(2 * most + 10, 32) if subspace is None else subspace
    size += size % 2
    transposed = op.T if left else None
    before = op.products
    if op.dim <= size:
        with torch.no_grad():
            matrix = op.to_dense()
        right, adjoint = lapack_pairs(matrix, targets, min(count, op.dim), left=left)
        matvecs, left_matvecs, method = op.products - before, 0, "dense"
    else:
        if size < most + 2:
            raise ValueError(
                f"{count} pairs of {len(targets)} targets need a subspace of at least {most + 2}, got {subspace}."
            )
        select = _by_rank(targets, count)
        right = _run(op, select, targets[0], most, size, tol, max_restarts, generator, start)
        matvecs, before, method = op.products - before, op.products, "krylov-schur"
        adjoint = None
        if transposed is not None:
            both = _by_rank_or_distance(targets, count, right.values)
            adjoint = _run(transposed, both, targets[0], size - 2, size, tol, max_restarts, generator, None)
        left_matvecs = op.products - before
    return certify(
        op,
        right,
        adjoint,
        tol=tol,
        matvecs=matvecs,
        left_matvecs=left_matvecs,
        method=method,
        corresponding=method == "dense",
    )


def _by_rank(targets: Sequence[Target], count: int) -> _Select:
    """Want the union of the best of every target."""

    def select(
        values: NDArray[np.complex128], elements: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        return leading(values, targets, count)

    return select


def _by_rank_or_distance(targets: Sequence[Target], count: int, near: NDArray[np.complex128]) -> _Select:
    """Want what the targets want and the values nearest to `near`, which differ where two rank almost alike."""

    def select(
        values: NDArray[np.complex128], elements: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        rank, wanted = leading(values, targets, count)
        both = wanted | nearest(values, near[elements])
        # A restart drops at least two vectors; where that leaves no room for both, the ranking decides.
        return rank, np.where(both.sum(axis=1, keepdims=True) <= values.shape[1] - 2, both, wanted)

    return select


class _Found:
    """What has converged, or was given up, collected while batch elements leave the iteration one by one."""

    def __init__(self, op: LinearOperator, most: int) -> None:
        self.values = np.full((op.batch, most), complex(np.nan, np.nan), dtype=np.complex128)
        self.rows = torch.zeros(op.batch, most, op.dim, dtype=op.dtype, device=op.device)
        self.scale = np.zeros(op.batch)

    def take(
        self,
        elements: NDArray[np.intp],
        factorisation: Arnoldi,
        at: NDArray[np.intp],
        ritz: _Ritz,
        first: Target,
    ) -> None:
        """Store the wanted Ritz pairs of positions `at` of the running batch, which are `elements` of the whole one."""
        best, _ = leading(ritz.values[at], [first], 1)
        wanted = ritz.wanted[at]
        width = int(wanted.sum(axis=1).max())
        order = np.argsort(np.where(wanted, best - best.shape[1], best), axis=1, kind="stable")[:, :width]
        held = np.take_along_axis(wanted, order, axis=1)
        values = np.where(held, np.take_along_axis(ritz.values[at], order, axis=1), complex(np.nan, np.nan))
        # The vector of the second of a pair is the conjugate of the first's, whose imaginary part is stored in its row.
        real_form = np.where(ritz.values[at, None, :].imag < 0, -ritz.vectors[at].imag, ritz.vectors[at].real)
        coefficients = np.take_along_axis(real_form, order[:, None, :], axis=2) * held[:, None, :]
        whole = torch.zeros(factorisation.op.batch, width, coefficients.shape[1], dtype=torch.float64)
        whole[torch.as_tensor(at)] = torch.as_tensor(coefficients).mT
        rows = factorisation.combine(whole)[torch.as_tensor(at, device=self.rows.device)]
        self.values[elements, :width] = values
        self.rows[torch.as_tensor(elements, device=self.rows.device), :width] = rows
        self.scale[elements] = factorisation.scale.cpu().numpy()[at]

    def pairs(self, restarts: int) -> Pairs:
        """Return everything, without columns that nobody uses."""
        present = ~np.isnan(self.values)
        width = int(present.sum(axis=1).max())
        return Pairs(self.values[:, :width], self.rows[:, :width], present[:, :width], self.scale, restarts)


class _Ritz:
    """Ritz pairs of the truncated factorisations: values, vectors in the kept basis, residuals, and what is wanted."""

    def __init__(self, small: NDArray[np.float64], coupling: NDArray[np.float64]) -> None:
        values, vectors = np.linalg.eig(small)
        self.values = values.astype(np.complex128)
        self.vectors = vectors.astype(np.complex128)
        self.residual = np.abs(np.einsum("bi,bij->bj", coupling, self.vectors))
        self.wanted = np.zeros(values.shape, dtype=bool)

    def settled(self, limit: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return `[batch]`, whether every wanted pair is below the limit `[batch]`."""
        return ((self.residual <= limit[:, None]) | ~self.wanted).all(axis=1)


@torch.no_grad()
def _run(
    op: LinearOperator,
    select: _Select,
    first: Target,
    most: int,
    size: int,
    tol: float,
    max_restarts: int,
    generator: torch.Generator,
    start: Tensor | None,
) -> Pairs:
    """Iterate until every element has what `select` wants, or the restarts are used up."""
    factorisation = Arnoldi(op, size, generator=generator, start=start)
    found = _Found(op, most)
    elements = np.arange(op.batch)
    restarts = 0
    while True:
        factorisation.extend()
        projected = factorisation.projected.cpu().numpy()
        check_finite(projected, elements)
        values, triangular, vectors = schur(projected[:, :size])
        rank, wanted = select(values, elements)
        kept = _kept(int(wanted.sum(axis=1).max()), size)
        rotation, small = leading_subspace(triangular, vectors, keep(values, rank, wanted, kept), kept)
        coupling = np.einsum("bi,bij->bj", projected[:, size], rotation)
        factorisation.restart(*(torch.as_tensor(x, device=op.device) for x in (rotation, small, coupling)))
        ritz = _Ritz(small, coupling)
        _, ritz.wanted = select(ritz.values, elements)
        # Half the tolerance is left to the rounding errors that the explicit residual will show.
        done = ritz.settled(0.5 * tol * factorisation.scale.cpu().numpy())
        if restarts == max_restarts:
            done[:] = True
        if done.all():
            found.take(elements, factorisation, np.flatnonzero(done), ritz, first)
            return found.pairs(restarts)
        # Settled elements leave once they are enough to pay for the copy.
        if done.sum() >= 0.05 * done.size:
            found.take(elements[done], factorisation, np.flatnonzero(done), ritz, first)
            factorisation.select(torch.as_tensor(np.flatnonzero(~done)))
            elements = elements[~done]
        restarts += 1


def _kept(wanted: int, size: int) -> int:
    """Return how many vectors to keep: what is wanted and half of the rest, even, with room for two new ones."""
    half = wanted + (size - wanted) // 2
    return min(half + half % 2, size - 2)
