"""Datasets as netCDF-4 and back: what netCDF has no type for is kept visibly, and marked by an attribute.

A complex variable ``x`` becomes ``x_real`` and ``x_imag``; a boolean one bytes; text numpy's variable-length strings.
The attribute ``dyneq_dtype`` names what a variable was, ``dyneq_part`` which half of which complex one it is. Attribute
values that netCDF cannot hold (None, booleans, lists, dicts) are JSON after ``json:``; attributes whose names mean
something to netCDF or xarray are together in the JSON of ``dyneq_attributes``.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.catalog.plain import (
    as_dtype,
    check_text,
    decode_attributes,
    decode_value,
    dtype_name,
    encode_attributes,
    encode_value,
    text_dtype,
)
from dyneq.errors import DyneqError

DTYPE, PART, REST = "dyneq_dtype", "dyneq_part", "dyneq_attributes"
_JSON = "json:"
#: Names that netCDF, HDF5 or xarray's reading of the CF conventions would take for instructions.
_RESERVED = {
    *("_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned", "dtype", "coordinates", "grid_mapping"),
    *("bounds", "calendar", "CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_NCProperties", "_Netcdf4Dimid"),
    *("_Netcdf4Coordinates", "_nc3_strict", "_Encoding", DTYPE, PART, REST),
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.+@-]{0,200}")


def write_netcdf(ds: xr.Dataset, target: Path) -> None:
    """Write a dataset as netCDF-4.

    Raises:
        DyneqError: If h5netcdf is missing, or the dataset holds something netCDF cannot hold.
    """
    _require()
    out = _encoded(ds)
    try:
        out.to_netcdf(target, engine="h5netcdf", encoding={n: {"_FillValue": None} for n in out.variables})
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DyneqError(f"the dataset cannot be written as netCDF ({error}); write .zarr or .json instead") from error


def read_netcdf(path: Path) -> xr.Dataset:
    """Return the dataset that :func:`write_netcdf` wrote.

    Raises:
        DyneqError: If h5netcdf is missing, or the file's marks do not fit together.
    """
    _require()
    # nothing is guessed from attributes: every value is as it is in the file, and our own marks say what it was
    with xr.open_dataset(
        path, engine="h5netcdf", mask_and_scale=False, decode_times=False, decode_timedelta=False
    ) as file:
        ds = file.load()
    return _decoded(ds, path)


def _require() -> None:
    try:
        import h5netcdf  # noqa: F401
        import h5py  # noqa: F401
    except ImportError:
        raise DyneqError(
            "netCDF needs the packages h5netcdf and h5py; install dyneq[netcdf], or use .zarr instead"
        ) from None


def _encoded(ds: xr.Dataset) -> xr.Dataset:
    variables: dict[str, xr.Variable] = {}
    taken = {str(n) for n in ds.variables}
    coords = []
    for given, variable in ds.variables.items():
        name = str(given)
        attributes = _for_netcdf(variable.attrs, f"the variable {name!r}")
        values, mark = _storable(name, variable.values)
        if mark is not None:
            attributes[DTYPE] = mark
        parts: dict[str, tuple[NDArray[Any], dict[str, str]]] = {name: (values, {})}
        if values.dtype.kind == "c":
            parts = {}
            for part in ("real", "imag"):
                free = f"{name}_{part}"
                while free in taken:
                    free += "_"
                taken.add(free)
                parts[free] = (getattr(values, part), {PART: f"{part} {name}"})
        for stored, (array, marks) in parts.items():
            variables[stored] = xr.Variable(variable.dims, array, {**attributes, **marks})
            coords += [stored] if given in ds.coords else []
    # without indexes: a coordinate that was split is none any more
    out = xr.Dataset(
        {n: v for n, v in variables.items() if n not in coords}, attrs=_for_netcdf(ds.attrs, "the dataset")
    )
    return out.assign_coords(xr.Coordinates({n: variables[n] for n in coords}, indexes={}))


def _storable(name: str, values: NDArray[Any]) -> tuple[NDArray[Any], str | None]:
    """Return an array as netCDF can hold it, and what it was where that differs."""
    was = dtype_name(name, values.dtype)
    if text_dtype(values.dtype):
        check_text(name, values)
        for text in values.ravel():
            if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
                raise DyneqError(
                    f"the variable {name!r} holds {text!r}, and netCDF text can hold no NUL or half of a surrogate "
                    "pair; write .json instead"
                )
        return values.astype("U"), was
    if values.dtype.kind == "b":
        return values.astype(np.int8), was
    if values.dtype.kind in "mM":
        return values.view(np.int64), was
    if values.dtype == np.float16:
        return values.astype(np.float32), was
    return values, was if values.dtype.kind == "c" else None


def _decoded(ds: xr.Dataset, path: Path) -> xr.Dataset:
    variables: dict[str, xr.Variable] = {}
    coords: set[str] = set()
    halves: dict[str, dict[str, xr.Variable]] = {}
    for given, variable in ds.variables.items():
        name, attributes = str(given), dict(variable.attrs)
        was, part = attributes.pop(DTYPE, None), attributes.pop(PART, None)
        try:
            attributes = _from_netcdf(attributes)
            if part is None:
                values = variable.values if was is None else _restored(variable.values, as_dtype(str(was)))
                variables[name] = xr.Variable(variable.dims, values, attributes)
            else:
                half, _, name = str(part).partition(" ")
                halves.setdefault(name, {})[half] = xr.Variable(variable.dims, variable.values, attributes)
                if len(halves[name]) == 2:
                    real, imag = halves[name]["real"], halves[name]["imag"]
                    joined = np.empty(real.shape, dtype=as_dtype(str(was)))
                    joined.real, joined.imag = real.values, imag.values
                    variables[name] = xr.Variable(real.dims, joined, real.attrs)
        except (KeyError, TypeError, ValueError) as error:
            raise DyneqError(
                f"the variable {given!r} of {path} has damaged marks ({error}); export it again"
            ) from error
        if given in ds.coords:
            coords.add(name)
    if lone := [name for name in halves if name not in variables]:
        raise DyneqError(f"{path} holds only half of the complex {', '.join(lone)}; export it again")
    out = xr.Dataset({n: v for n, v in variables.items() if n not in coords}, attrs=_from_netcdf(ds.attrs))
    return out.assign_coords({n: v for n, v in variables.items() if n in coords})


def _restored(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return values.astype(np.int64).view(dtype) if dtype.kind in "mM" else values.astype(dtype)


def _for_netcdf(attributes: dict[Any, Any], of: str) -> dict[str, Any]:
    encoded = encode_attributes(attributes, of)
    out, rest = {}, {}
    for name, value in attributes.items():
        if name in _RESERVED or not _NAME.fullmatch(name):
            rest[name] = encoded[name]
        elif _native(value):
            out[name] = value
        else:
            out[name] = _JSON + json.dumps(encode_value(value), allow_nan=False)
    if rest:
        out[REST] = json.dumps(rest, allow_nan=False)
    return out


def _native(value: Any) -> bool:
    """Whether netCDF gives an attribute value back as it was."""
    if type(value) is str:
        return value.isprintable() and bool(value) and not value.startswith(_JSON)
    return type(value) is float or (type(value) is int and -(2**63) <= value < 2**63)


def _from_netcdf(attributes: dict[Any, Any]) -> dict[str, Any]:
    out = {}
    for name, value in attributes.items():
        if name == REST:
            out.update(decode_attributes(json.loads(value)))
        elif isinstance(value, str) and value.startswith(_JSON):
            out[str(name)] = decode_value(json.loads(value.removeprefix(_JSON)))
        else:
            # numbers come back as numpy's; one of these types can only have been a plain one
            out[str(name)] = value.item() if isinstance(value, np.int64 | np.float64) else value
    return out
