"""Multipliers of a long product of matrices in logarithms: simultaneous iteration with a QR step at every link.

A product G_M ... G_1 whose eigenvalues range over 1 to exp(-85) holds the small ones no longer. Carried through the
links as Q R, with only R's diagonal blocks multiplied on, every one keeps its own relative accuracy.
Source: Geist, Parlitz and Lauterborn, Prog. Theor. Phys. 83 (1990), section 4; Bojanczyk, Golub and Van Dooren, SPIE
1770 (1992), on the periodic Schur form that the iteration converges to.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.monodromy import Monodromy

#: Coupling below the diagonal above which two columns are taken together.
COUPLED = 1e-6


@dataclass(frozen=True)
class LogMultipliers:
    """Leading multipliers of every operator of the batch, by modulus; conjugate pairs whole, +imag first.

    Attributes:
        log_modulus: ``[batch, k]``; NaN where a column holds half of a pair whose other half lies beyond the last.
        phase: mu/abs(mu), complex ``[batch, k]``.
        change: Estimated error of the logarithms from what further periods would change ``[batch, k]``.
        periods: Periods used.
    """

    log_modulus: NDArray[np.float64]
    phase: NDArray[np.complex128]
    change: NDArray[np.float64]
    periods: int


@dataclass(frozen=True)
class _Turn:
    """One period: how the columns came back, and R's diagonal and its blocks of two, multiplied up.

    Attributes:
        back: S = Q^T Q' ``[batch, k, k]``.
        logs: Sum of log abs(R_jj) ``[batch, k]``.
        signs: Sign of the product of R_jj ``[batch, k]``.
        blocks: Products of the blocks of columns j and j + 1, of unit size ``[batch, k - 1, 2, 2]``.
        scales: Logarithms of the sizes taken out of them ``[batch, k - 1]``.
    """

    back: NDArray[np.float64]
    logs: NDArray[np.float64]
    signs: NDArray[np.float64]
    blocks: NDArray[np.float64]
    scales: NDArray[np.float64]


def log_multipliers(chain: Monodromy, start: Tensor, wanted: int, *, most: int, tol: float) -> LogMultipliers:
    """Carry ``start`` around the period until the logarithms settle.

    Args:
        chain: The tangent maps of one period.
        start: Vectors ``[batch, dim, k]``, of full rank; the nearer to the leading invariant subspaces the better.
        wanted: How many of the columns have to settle; further ones complete a pair.
        most: Most periods, at least 2.
        tol: Change of the logarithms, over a period, at which to stop.
    """
    q = torch.linalg.qr(start).Q
    whole = start.shape[2] == start.shape[1]
    history: list[NDArray[np.float64]] = []
    for period in range(1, max(most, 2) + 1):
        q, turn = _around(chain, q)
        logs, phase = _read(turn, whole)
        history = [*history[-2:], logs]
        change = _remaining(history)
        if period > 1 and not (np.nan_to_num(change[:, :wanted], nan=0.0) > tol).any():
            break
    return LogMultipliers(logs, phase, change, period)


def _remaining(history: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return what is still to come of the logarithms, from a geometric decrease of their last changes."""
    if len(history) < 2:
        return np.full_like(history[-1], np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        last = np.abs(history[-1] - history[-2])
        last = np.where(np.isneginf(history[-1]) & np.isneginf(history[-2]), 0.0, last)
        if len(history) < 3:
            return last
        before = np.abs(history[-2] - history[-3])
        ratio = np.clip(np.where(before > 0, last / before, 0.0), 0.0, 0.99)
        return np.asarray(last * np.maximum(1.0, ratio / (1 - ratio)))


def _around(chain: Monodromy, q: Tensor) -> tuple[Tensor, _Turn]:
    batch, _, k = q.shape
    first, low = q, torch.arange(k - 1, device=q.device)
    logs, signs = q.new_zeros(batch, k), q.new_ones(batch, k)
    blocks = torch.eye(2, dtype=q.dtype, device=q.device).expand(batch, k - 1, 2, 2)
    scales = q.new_zeros(batch, k - 1)
    for link in chain.links():
        q, r = torch.linalg.qr(link(q))
        diagonal = r.diagonal(dim1=1, dim2=2)
        logs, signs = logs + diagonal.abs().log(), signs * diagonal.sign()
        upper = torch.stack([r[:, low, low], r[:, low, low + 1], r[:, low + 1, low], r[:, low + 1, low + 1]], -1)
        blocks = upper.view(batch, k - 1, 2, 2) @ blocks
        size = blocks.abs().amax((2, 3), keepdim=True)
        size = torch.where(size > 0, size, 1.0)
        blocks, scales = blocks / size, scales + size[:, :, 0, 0].log()
    return q, _Turn(*(x.double().cpu().numpy() for x in (first.mT @ q, logs, signs, blocks, scales)))


def _read(turn: _Turn, whole: bool) -> tuple[NDArray[np.float64], NDArray[np.complex128]]:
    """Return log moduli and phases ``[batch, k]`` from the diagonal blocks of S R."""
    batch, k = turn.logs.shape
    logs = turn.logs.copy()
    diagonal = np.diagonal(turn.back, axis1=1, axis2=2)
    phase = (np.where(diagonal < 0, -1.0, 1.0) * turn.signs).astype(np.complex128)
    for b in range(batch):
        j = 0
        while j < k - 1:
            block = turn.back[b, j : j + 2, j : j + 2] @ turn.blocks[b, j]
            values = np.linalg.eigvals(block)
            coupled = abs(turn.back[b, j + 1, j]) > COUPLED
            if not (coupled or np.iscomplex(values).any()) or not np.abs(values).all():
                j += 1
                continue
            values = values[np.lexsort((-values.imag, -np.abs(values)))]
            # the determinant is exact in logarithms, so that a pair has the mean of its two columns
            if values[0].imag:
                logs[b, j : j + 2] = logs[b, j : j + 2].mean()
            else:
                logs[b, j : j + 2] = turn.scales[b, j] + np.log(np.abs(values))
            phase[b, j : j + 2] = values / np.abs(values)
            j += 2
        if j == k - 1 and not whole and abs(turn.back[b, j, j]) < 1 - COUPLED:
            logs[b, j] = np.nan  # it belongs together with a column that is not there
    return logs, phase
