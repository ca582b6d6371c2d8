"""Which type holds the values of several results together, and what stands in their gaps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.catalog.plain import text_dtype
from dyneq.errors import DyneqError, UsageError


def common_dtype(name: str, held: Sequence[xr.Variable], complete: bool) -> np.dtype[Any]:
    """Return the type of a variable that can hold all of it, and its gaps where it has some.

    Raises:
        UsageError: If numbers and text meet.
    """
    dtypes = [v.dtype for v in held]
    if all(map(text_dtype, dtypes)):
        return np.dtype(object)
    try:
        if any(map(text_dtype, dtypes)):
            raise TypeError
        common = np.result_type(*dtypes)
    except TypeError:
        listed = ", ".join(sorted({str(d) for d in dtypes}))
        raise UsageError(f"the variable {name!r} has values of types {listed}; select results of one kind") from None
    return common if complete or common.kind not in "biu" else np.dtype(np.float64)


def nothing_of(dtype: np.dtype[Any]) -> Any:
    """Return what stands where there is no value: NaN, NaT or empty text."""
    fills = {"O": "", "f": np.nan, "c": complex(np.nan, np.nan)}
    if dtype.kind in "mM":
        return np.array("NaT", dtype=dtype)[()]
    return fills.get(dtype.kind, 0)  # whole numbers have no gaps


def cast(variable: xr.Variable, dtype: np.dtype[Any], why: str) -> xr.Variable:
    """Return a variable as another type, lazily.

    Args:
        variable: Any variable.
        dtype: The type, as :func:`common_dtype` chose it.
        why: What it is converted for, for the message.

    Raises:
        DyneqError: If a whole number would be rounded.
    """
    if variable.dtype == dtype:
        return variable
    if dtype.kind in "fc" and variable.dtype.kind in "iu" and variable.dtype.itemsize == 8:
        given = {"to": dtype, "why": why}
        return xr.apply_ufunc(_exact_floats, variable, kwargs=given, dask="parallelized", output_dtypes=[dtype])
    return variable.astype(dtype)


def _exact_floats(values: NDArray[Any], to: np.dtype[Any], why: str) -> NDArray[Any]:
    if ((values > 2**53) | (values < -(2**53))).any():
        raise DyneqError(
            f"whole numbers above 2^53 would become floating point numbers, which do not hold them exactly, in {why}; "
            "select results that all have it, as whole numbers of one type"
        )
    return values.astype(to)
