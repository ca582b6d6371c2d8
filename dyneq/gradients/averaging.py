"""What averaging over n of B batches does to the cosine with a reference, over all choices of n of them."""

import itertools

import numpy as np
from numpy.typing import NDArray

from dyneq.gradients.agreement import Array, Interval, Pair, jackknife_interval

#: Most batches: of 16, there are 12,870 choices of 8.
MOST = 16


def subsets(batches: int, n: int) -> NDArray[np.float64]:
    """Return all choices of n of the batches as rows of 0 and 1 ``[choice, batch]``."""
    chosen = np.array(list(itertools.combinations(range(batches), n)), dtype=np.intp)
    rows = np.zeros((len(chosen), batches))
    np.put_along_axis(rows, chosen, 1.0, axis=1)
    return rows


def averaged_cosine(of: Pair, n: int, *, same: bool) -> Interval:
    """Return the mean cosine of the estimate averaged over n batches, with its jackknife interval.

    The mean is over all choices of n batches, so that no order of them matters. For the jackknife the choices without a
    batch are taken; for n = B, where there are none, those of n - 1.

    Args:
        of: Inner products over B batches, at most :data:`MOST`.
        n: Batches averaged over, 1 to B.
        same: Whether the reference is averaged over the same n batches; else over all B.
    """
    total = of.batches
    value = _cosines(of, rows := subsets(total, n), np.ones(total), same).mean(-1)
    if total == 1:
        return jackknife_interval(value, [])
    if n == total:
        rows = subsets(total, n - 1)
    without = rows == 0
    if same:
        every = _cosines(of, rows, np.ones(total), same)
        left = [every[..., without[:, b]].mean(-1) for b in range(total)]
    else:
        left = [_cosines(of, rows[without[:, b]], 1 - np.eye(total)[b], same).mean(-1) for b in range(total)]
    return jackknife_interval(value, left).clipped(-1, 1)


def _cosines(of: Pair, rows: Array, everything: Array, same: bool) -> Array:
    """Return the cosine for every choice ``[..., choice]``; the target is the same choice, or ``everything``."""
    g = _square(of.gg, rows)
    if same:
        product, r = _square(of.gr, rows), _square(of.rr, rows)
    else:
        product = (of.gr @ everything) @ rows.T
        r = np.broadcast_to((everything @ of.rr @ everything)[..., None], g.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = product / (np.sqrt(g) * np.sqrt(r))
    return np.where((g > 0) & (r > 0), cosine, np.nan)


def _square(x: Array, rows: Array) -> Array:
    """Return ``w x w`` for every row w of 0 and 1, ``[..., choice]``."""
    return ((rows @ x) * rows).sum(-1)


def counts(batches: int) -> list[int]:
    """Return 1, 2, 4, ... up to the number of batches, and that number."""
    return sorted({*(2**k for k in range(batches.bit_length()) if 2**k <= batches), batches})
