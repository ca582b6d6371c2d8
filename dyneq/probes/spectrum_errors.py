"""First-order error bars of what a spectrum says about a whole sample; NaN wherever one is not known."""

from collections.abc import Collection, Mapping

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.dynamics.spectra import Pairs
from dyneq.systems.protocol import System, Time


def reaches(pairs: Pairs, targets: Collection[str], eps: float, blocks: int) -> dict[str, NDArray[np.float64]]:
    """Return for each target how far up the pairs of each block reach, each within its own error, ``[blocks]``.

    The pair a block's number comes from need not be the one that reaches furthest: another with a larger error can.

    Args:
        pairs: All pairs found.
        targets: Out of ``largest`` (measured by abs(1 + eps mu)), ``rightmost`` (Re mu) and ``critical`` (2 Re(1/mu),
            which is minus the critical step).
        eps: Step size.
        blocks: Number of blocks.

    Returns:
        By target; NaN for a block with a pair of unknown error, which bounds nothing.
    """
    error, distance = pairs.error, np.abs(pairs.mu)
    with np.errstate(divide="ignore", invalid="ignore"):
        tops = {
            "largest": np.abs(1 + eps * pairs.mu) + eps * error,
            "rightmost": pairs.mu.real + error,
            "critical": 2 * (1 / pairs.mu).real + _turn(distance, error),
        }
        found = {target: np.full(blocks, -np.inf) for target in targets}
        for target, top in found.items():
            np.maximum.at(top, pairs.block, tops[target])
    return found


def _turn(distance: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far 2/mu moves at most over a disc of radius ``error`` about mu; NaN where it holds 0.

    Args:
        distance: abs(mu).
        error: Radius.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(error < distance, 2 * error / (distance * (distance - error)), np.nan)


def add_errors(ds: xr.Dataset, system: System, reach: Mapping[str, xr.DataArray]) -> xr.Dataset:
    """Return one state's dataset with the error bars of the numbers derived from its blocks.

    The bars are those of the eigenvalues: at the state as computed, with the error of the state where the pairs have it
    in theirs.

    Args:
        ds: Each block's pairs, with ``spectral_radius`` and, for flows, ``abscissa`` and ``critical_eps``.
        system: What was measured.
        reach: By target, how far up each block reaches, of :func:`reaches`, with the dimensions of the pairs.
    """
    over = [d for d in ("token",) if d in ds["largest_mu"].dims]
    modulus = xr.ufuncs.abs(1 + system.eps * ds["largest_mu"])
    ds["spectral_radius_error"] = _of_maximum(modulus, system.eps * ds["largest_error"], reach["largest"], over)
    if system.time is Time.MAP:
        return ds
    ds["abscissa_error"] = _of_maximum(ds["rightmost_mu"].real, ds["rightmost_error"], reach["rightmost"], over)
    # the critical step of a block is -2 Re(1/mu)
    turn = xr.apply_ufunc(_turn, xr.ufuncs.abs(ds["critical_mu"]), ds["critical_error"])
    bar = _of_maximum(2 * (1 / ds["critical_mu"]).real, turn, reach["critical"], over)
    stable = ds["abscissa"] + ds["abscissa_error"] < 0
    ds["critical_eps_error"] = bar.where(stable & ds["critical_eps"].notnull())
    return ds


def _of_maximum(values: xr.DataArray, error: xr.DataArray, reach: xr.DataArray, over: list[str]) -> xr.DataArray:
    """Return the error of the largest of several values.

    Args:
        values: Values of the blocks.
        error: Their absolute errors; NaN where unknown, which bounds nothing, so the result is unknown too.
        reach: How far up each block reaches.
        over: Dimensions of the blocks; the largest over none is the value itself.
    """
    largest = values.max(over, skipna=False)
    upper = reach.max(over, skipna=False) - largest
    lower = largest - (values - error).max(over, skipna=False)
    # subtracting a value that was added rounds to its last digit, which must not make the bar smaller than that
    rounding = np.finfo(np.float64).eps * xr.ufuncs.abs(largest)
    return xr.ufuncs.maximum(upper, lower) + rounding
