"""First-order error bars of what a spectrum says about a whole sample; NaN wherever one is not known."""

import numpy as np
import xarray as xr

from dyneq.systems.protocol import System, Time


def add_errors(ds: xr.Dataset, system: System) -> xr.Dataset:
    """Return one state's dataset with the error bars of the numbers derived from its blocks.

    The bars are those of the eigenvalues at the state as it is; how far the state is from a fixed point is not in them.

    Args:
        ds: Each block's pairs, with ``spectral_radius`` and, for flows, ``abscissa`` and ``critical_eps``.
        system: What was measured.
    """
    over = [d for d in ("token",) if d in ds["largest_mu"].dims]
    # of an unconverged pair it is not known that it is the one wanted, however small its residual
    error = {
        target: ds[f"{target}_error"].where(ds[f"{target}_converged"] == 1)
        for target in ("largest", "rightmost", "critical")
        if f"{target}_error" in ds
    }
    modulus = xr.ufuncs.abs(1 + system.eps * ds["largest_mu"])
    ds["spectral_radius_error"] = _of_maximum(modulus, system.eps * error["largest"], over)
    if system.time is Time.MAP:
        return ds
    ds["abscissa_error"] = _of_maximum(ds["rightmost_mu"].real, error["rightmost"], over)
    # the critical step of a block is -2 Re(1/mu); over the disc of mu's error, 1/mu moves by at most this
    distance = xr.ufuncs.abs(ds["critical_mu"])
    inside = error["critical"] < distance
    reach = (2 * error["critical"] / (distance * (distance - error["critical"]).where(inside))).where(inside)
    bar = _of_maximum(2 * (1 / ds["critical_mu"]).real, reach, over)
    stable = ds["abscissa"] + ds["abscissa_error"] < 0
    ds["critical_eps_error"] = bar.where(stable & ds["critical_eps"].notnull())
    return ds


def _of_maximum(values: xr.DataArray, error: xr.DataArray, over: list[str]) -> xr.DataArray:
    """Return the error of the largest of several values, each within its own error.

    Args:
        values: Values of the blocks.
        error: Their absolute errors; NaN where unknown, which bounds nothing, so the result is unknown too.
        over: Dimensions of the blocks; the largest over none is the value itself.
    """
    largest = values.max(over, skipna=False)
    upper = (values + error).max(over, skipna=False) - largest
    lower = largest - (values - error).max(over, skipna=False)
    # subtracting a value that was added rounds to its last digit, which must not make the bar smaller than that
    rounding = np.finfo(np.float64).eps * xr.ufuncs.abs(largest)
    return xr.ufuncs.maximum(upper, lower) + rounding
