"""Eigenvectors in real storage, and the certificates computed from them.

A batch of eigenvectors is stored as real rows `[batch, k, dim]`: the row of a real eigenvalue is its vector; the two
rows of a conjugate pair are the real and the imaginary part of the vector of its +imag member. So the residuals of k
pairs cost k real products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.linalg.operator import LinearOperator
from dyneq.linalg.result import EigenResult


@dataclass(frozen=True)
class Pairs:
    """Eigenvalues and vectors as a method found them.

    Attributes:
        values: `[batch, k]`, NaN where `present` is false; conjugates adjacent, +imag first.
        rows: `[batch, k, dim]`, vectors in real storage, zero where not present.
        present: `[batch, k]`, false for padding.
        scale: `[batch]`, largest norm(A u) over the unit vectors u used.
        restarts: Restarts used.
    """

    values: NDArray[np.complex128]
    rows: Tensor
    present: NDArray[np.bool_]
    scale: NDArray[np.float64]
    restarts: int


def unpack(values: NDArray[np.complex128], rows: Tensor) -> Tensor:
    """Return complex unit vectors `[batch, k, dim]` from real storage.

    Args:
        values: `[batch, k]`, which decide how the rows go together; NaN counts as real.
        rows: `[batch, k, dim]`.
    """
    upper = torch.as_tensor(values.imag > 0, device=rows.device)[:, :, None]
    lower = torch.as_tensor(values.imag < 0, device=rows.device)[:, :, None]
    real = torch.where(lower, rows.roll(1, dims=1), rows)
    imag = torch.where(upper, rows.roll(-1, dims=1), torch.where(lower, -rows, torch.zeros_like(rows)))
    vectors = torch.complex(real, imag)
    norm = torch.linalg.vector_norm(vectors, dim=2, keepdim=True)
    return vectors / torch.where(norm > 0, norm, torch.ones_like(norm))


def normalized(values: NDArray[np.complex128], rows: Tensor) -> Tensor:
    """Return real storage scaled so that every complex vector has unit norm; zero rows stay zero.

    Args:
        values: `[batch, k]`.
        rows: `[batch, k, dim]`.
    """
    imag = torch.as_tensor(values.imag, device=rows.device)
    square = torch.linalg.vector_norm(rows, dim=2, dtype=torch.float64) ** 2
    other = torch.where(imag > 0, square.roll(-1, dims=1), torch.where(imag < 0, square.roll(1, dims=1), 0.0))
    norm = torch.sqrt(square + other)
    return rows / torch.where(norm > 0, norm, 1.0).to(rows.dtype)[:, :, None]


def explicit_residual(op: LinearOperator, values: NDArray[np.complex128], rows: Tensor) -> NDArray[np.float64]:
    """Compute norm(A v - mu v) / norm(v) by products, `k` of them; NaN where the value is.

    Args:
        op: The operators.
        values: `[batch, k]`.
        rows: `[batch, k, dim]`, vectors in real storage, normalised.
    """
    with torch.no_grad():
        images = op.matmat(rows.mT).mT
    mu = torch.as_tensor(values, device=rows.device)[:, :, None]
    upper, lower = mu.imag > 0, mu.imag < 0
    real, imag = mu.real.to(rows.dtype), mu.imag.to(rows.dtype)
    # A (a + ib) = (r + is)(a + ib) is A a = r a - s b for the first row, A b = r b + s a for the second, which has -s.
    other = torch.where(upper, rows.roll(-1, dims=1), torch.where(lower, rows.roll(1, dims=1), torch.zeros_like(rows)))
    defect = images - real * rows + imag * other
    square = torch.linalg.vector_norm(defect, dim=2, dtype=torch.float64) ** 2
    mate = torch.where(
        upper[:, :, 0], square.roll(-1, dims=1), torch.where(lower[:, :, 0], square.roll(1, dims=1), 0.0)
    )
    return torch.sqrt(square + mate).cpu().numpy()


def certify(
    op: LinearOperator,
    right: Pairs,
    left: Pairs | None,
    *,
    tol: float,
    matvecs: int,
    left_matvecs: int,
    method: str,
    corresponding: bool = False,
) -> EigenResult:
    """Build the result: explicit residuals, conditions from matched left vectors, flags.

    Args:
        op: The operators.
        right: Pairs of A.
        left: Pairs of A^T, or None.
        tol: Relative tolerance.
        matvecs: Products used so far for the right pairs; those of the residuals are added.
        left_matvecs: Products used so far for the left vectors; those of the residuals are added.
        method: Name of the method.
        corresponding: Whether the left pairs are known to belong to the right ones, position by position.
    """
    before = op.products
    rows = normalized(right.values, right.rows)
    residual = explicit_residual(op, right.values, rows)
    matvecs += op.products - before
    vectors = unpack(right.values, rows)
    left_vectors, left_residual, left_converged = None, None, None
    condition = np.full(residual.shape, np.nan)
    if left is not None:
        before = op.products
        left_rows = normalized(left.values, left.rows)
        error = explicit_residual(op.T, left.values, left_rows)
        left_matvecs += op.products - before
        # A^T u = theta u means w^H A = theta w^H for w = conj(u).
        candidates = unpack(left.values, left_rows).conj().resolve_conj()
        overlap = torch.bmm(candidates.conj(), vectors.mT).abs().double().cpu().numpy()
        if corresponding:
            match = np.broadcast_to(np.arange(right.values.shape[1]), right.values.shape)
            fits = right.present & (error <= tol * left.scale[:, None])
        else:
            match, fits = _match(right, left, error, overlap, tol=tol)
        chosen = np.take_along_axis(overlap, match[:, None, :], axis=1)[:, 0]
        if not corresponding:
            chosen = np.where(right.values.imag < 0, np.roll(chosen, 1, axis=1), chosen)
        with np.errstate(divide="ignore"):
            # Rounding can put the overlap of two unit vectors a little above 1.
            condition = np.where(fits, np.maximum(1.0 / chosen, 1.0), np.nan)
        gather = torch.as_tensor(match.copy(), device=vectors.device)[:, :, None].expand(-1, -1, op.dim)
        matched = torch.gather(candidates, 1, gather)
        if not corresponding:
            # The member of a pair in the lower half plane takes the conjugate of what the upper one has matched.
            lower = torch.as_tensor(right.values.imag < 0, device=vectors.device)[:, :, None]
            matched = torch.where(lower, matched.conj(), matched)
        left_vectors = _masked(matched, right.present)
        left_residual = np.where(right.present, np.take_along_axis(error, match, axis=1), np.nan)
        left_converged = fits
    return EigenResult(
        values=right.values,
        vectors=_masked(vectors, right.present),
        left_vectors=left_vectors,
        residual=residual,
        left_residual=left_residual,
        condition=condition,
        converged=right.present & (residual <= tol * right.scale[:, None]),
        left_converged=left_converged,
        present=right.present,
        scale=right.scale,
        tol=tol,
        matvecs=matvecs,
        left_matvecs=left_matvecs,
        restarts=right.restarts,
        method=method,
    )


def _masked(vectors: Tensor, present: NDArray[np.bool_]) -> Tensor:
    mask = torch.as_tensor(present, device=vectors.device)[:, :, None]
    return torch.where(mask, vectors, torch.full_like(vectors, float("nan")))


def _match(
    right: Pairs, left: Pairs, error: NDArray[np.float64], overlap: NDArray[np.float64], *, tol: float
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Find a left vector for every right one; the lower member of a pair gets the position of the upper one's.

    Candidates are converged left pairs whose eigenvalue agrees to sqrt(tol) * scale, which allows for condition numbers
    up to 1/sqrt(tol). Of several the one with the largest overlap is taken: vectors of different eigenvalues are
    orthogonal.

    Returns:
        Positions `[batch, k]`, and whether a candidate was found `[batch, k]`.
    """
    batch, k = right.values.shape
    every = np.arange(batch)
    scale = np.maximum(right.scale, left.scale)
    usable = left.present & (left.values.imag >= 0) & (error <= tol * scale[:, None])
    match = np.zeros((batch, k), dtype=np.intp)
    fits = np.zeros((batch, k), dtype=bool)
    for j in range(k):
        distance = np.abs(left.values - right.values[:, j, None])
        candidate = usable & (distance <= np.sqrt(tol) * scale[:, None])
        best = np.where(candidate, overlap[:, :, j], -1.0).argmax(axis=1)
        found = candidate[every, best] & right.present[:, j]
        fallback = np.where(left.present & (left.values.imag >= 0), distance, np.inf)
        fallback = np.where(np.isnan(fallback), np.inf, fallback).argmin(axis=1)
        match[:, j], fits[:, j] = np.where(found, best, fallback), found
        usable[every[found], best[found]] = False
        lower = right.values[:, j].imag < 0
        if j > 0:
            match[lower, j], fits[lower, j] = match[lower, j - 1], fits[lower, j - 1]
    return match, fits
