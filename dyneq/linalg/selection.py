"""Which eigenvalues of a batch are wanted and which are kept; conjugate pairs go together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dyneq.linalg.targets import Target, ranked


def partner(values: NDArray[np.complex128]) -> NDArray[np.intp]:
    """Return the position of each value's conjugate, its own where it is real.

    Args:
        values: `[batch, m]` in LAPACK's order: a value with positive imaginary part comes right before its conjugate.
    """
    return np.arange(values.shape[1]) + (values.imag > 0) - (values.imag < 0)


def leading(
    values: NDArray[np.complex128], targets: Sequence[Target], count: int
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Rank eigenvalues and mark the union of the `count` best of every target.

    Args:
        values: `[batch, m]`, conjugates adjacent, positive imaginary part first.
        targets: The rankings.
        count: Values wanted of each target, one more where the last is half of a pair.

    Returns:
        The best rank over targets `[batch, m]`, the same for both of a pair, and the mask of the wanted `[batch, m]`.
    """
    other = partner(values)
    wanted = np.zeros(values.shape, dtype=bool)
    best = np.full(values.shape, values.shape[1], dtype=np.intp)
    for target in targets:
        # A stable sort leaves the members of a pair, whose keys are equal, adjacent.
        order = np.argsort(-ranked(values, target), axis=1, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.broadcast_to(np.arange(values.shape[1]), order.shape), axis=1)
        rank = np.minimum(rank, np.take_along_axis(rank, other, axis=1))
        wanted |= rank < count
        best = np.minimum(best, rank)
    return best, wanted


def nearest(values: NDArray[np.complex128], to: NDArray[np.complex128]) -> NDArray[np.bool_]:
    """Mark for each point of `to` the nearest value that is not taken yet, with its conjugate.

    Args:
        values: `[batch, m]`, conjugates adjacent, positive imaginary part first.
        to: `[batch, k]`, NaN where there is none, the better first; points of the lower half plane are left out.

    Returns:
        The mask `[batch, m]`.
    """
    taken = np.zeros(values.shape, dtype=bool)
    for point in to.T:
        distance = np.abs(values - point[:, None])
        distance[taken | (values.imag < 0)] = np.inf
        closest = np.nanargmin(np.where(np.isnan(distance), np.inf, distance), axis=1)
        found = (point.imag >= 0) & np.isfinite(np.take_along_axis(distance, closest[:, None], axis=1)[:, 0])
        taken[np.flatnonzero(found), closest[found]] = True
    return taken | np.take_along_axis(taken, partner(values), axis=1)


def keep(
    values: NDArray[np.complex128], rank: NDArray[np.intp], wanted: NDArray[np.bool_], size: int
) -> NDArray[np.bool_]:
    """Mark `size` values of each batch element: the wanted, then the next best, no pair split.

    Both the number of values and `size` are even. Then the number of real values is even too, so that wherever the cut
    falls inside a pair there is a real value left that can take its place.

    Args:
        values: `[batch, m]`, conjugates adjacent, positive imaginary part first; m even.
        rank: `[batch, m]`, smaller is better, equal for both of a pair.
        wanted: `[batch, m]`, pairs whole, at most `size` true in a row.
        size: Number to keep, even.

    Raises:
        ValueError: If `m` or `size` is odd or more is wanted than kept.
    """
    m = values.shape[1]
    if m % 2 or size % 2 or wanted.sum(axis=1).max() > size:
        raise ValueError(
            f"Keeping {size} of {m} values needs even numbers and at most {size} wanted, "
            f"got up to {wanted.sum(axis=1).max()} wanted."
        )
    order = np.argsort(np.where(wanted, rank - m, rank), axis=1, kind="stable")
    imag = np.take_along_axis(values.imag, order, axis=1)
    chosen = np.broadcast_to(np.arange(m) < size, order.shape).copy()
    split = np.flatnonzero(imag[:, size - 1] > 0)
    if split.size:
        substitute = size + np.argmax(imag[split, size:] == 0, axis=1)
        chosen[split, size - 1] = False
        chosen[split, substitute] = True
    mask = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(mask, order, chosen, axis=1)
    return mask
