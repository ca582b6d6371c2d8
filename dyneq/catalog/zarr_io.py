"""Datasets as zarr v3 on disk, exactly; and a zarr store that gives no byte that was not written.

Any zarr reader sees the variables and their plain attributes. What zarr or xarray would take for an instruction, or has
no type for, is kept under names of ours: ``dyneq_attributes`` holds such attributes as JSON, ``dyneq_dtype`` says what
a variable of text or times was, for text is stored as variable-length UTF-8 and times as their counts, and
``dyneq_order`` the order of the variables.
"""

import asyncio
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore

from dyneq.catalog.manifest import damaged_file
from dyneq.catalog.plain import (
    as_dtype,
    check_text,
    decode_attributes,
    dtype_name,
    encode_attributes,
    text_dtype,
)
from dyneq.errors import DyneqError

DTYPE, REST, ORDER = "dyneq_dtype", "dyneq_attributes", "dyneq_order"
#: Names that xarray's or zarr's reading of the CF conventions would take for instructions.
_RESERVED = {
    *("_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned", "_Encoding", "dtype", "coordinates"),
    *("grid_mapping", "bounds", "calendar", "_ARRAY_DIMENSIONS", DTYPE, REST, ORDER),
}


def write_zarr(ds: xr.Dataset, target: Path) -> None:
    """Write a dataset as a new zarr v3 store.

    Every chunk is written, also one of zeros: a missing chunk is then always a loss, and a negative zero keeps its
    sign.

    Args:
        ds: Any dataset of numbers, complex numbers, booleans, times and text, with plain attributes.
        target: A folder that does not exist.

    Raises:
        DyneqError: If it holds something that would not be read back as it is.
        OSError: If it cannot be written.
    """
    out = _encoded(ds)
    plain = {name: {"_FillValue": None} for name in out.variables}
    try:
        out.to_zarr(target, mode="w-", zarr_format=3, consolidated=False, write_empty_chunks=True, encoding=plain)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DyneqError(
            f"the dataset cannot be stored as zarr ({error}); results hold numbers, text and times, with plain "
            "attributes"
        ) from error


def read_zarr(store: Path | LocalStore, chunks: Any = None) -> xr.Dataset:
    """Open what :func:`write_zarr` wrote, lazily: numbers are read when they are used, text and times at once.

    Args:
        store: A folder, or a zarr store.
        chunks: As in :func:`xarray.open_zarr`; None for no dask.

    Raises:
        ValueError: If its marks do not fit together.
    """
    # nothing is guessed from attributes: every value is as it is in the file, and our own marks say what it was
    ds = xr.open_zarr(
        store, consolidated=False, chunks=chunks, mask_and_scale=False, decode_times=False, decode_timedelta=False
    )
    restored = {}
    for name, variable in ds.variables.items():
        if DTYPE in variable.attrs:
            values = _restored(variable.values, as_dtype(variable.attrs.pop(DTYPE)))
            restored[name] = xr.Variable(variable.dims, values, variable.attrs)
    coords = {n: v for n, v in restored.items() if n in ds.coords}
    ds = ds.assign_coords(coords).assign({n: v for n, v in restored.items() if n not in coords})
    order = ds.attrs.pop(ORDER, None)
    if isinstance(order, list) and set(order) == set(ds.data_vars):
        # a folder lists its members in an order of its own
        ds = xr.Dataset({name: ds.variables[name] for name in order}, attrs=ds.attrs).assign_coords(ds.coords)
    for held in (ds, *ds.variables.values()):
        if REST in held.attrs:
            held.attrs.update(decode_attributes(json.loads(held.attrs.pop(REST))))
    return ds


def _encoded(ds: xr.Dataset) -> xr.Dataset:
    for dim in ds.dims:
        _require_name(dim, "dimension")
    variables = {}
    for name, variable in ds.variables.items():
        _require_name(name, "variable")
        if name in ds.coords and str(name).split() != [name]:
            raise DyneqError(f"the coordinate {name!r} has a space in its name, which zarr files cannot say; rename it")
        attributes = _for_zarr(variable.attrs, f"the variable {name!r}")
        values, mark = _storable(str(name), variable.values)
        variables[name] = xr.Variable(variable.dims, values, attributes | ({} if mark is None else {DTYPE: mark}))
    # without indexes, which would have their own idea of a dtype
    out = xr.Dataset(
        {n: v for n, v in variables.items() if n not in ds.coords},
        attrs={**_for_zarr(ds.attrs, "the dataset"), ORDER: [str(name) for name in ds.data_vars]},
    )
    return out.assign_coords(xr.Coordinates({n: variables[n] for n in ds.coords}, indexes={}))


def _require_name(name: Any, what: str) -> None:
    """Refuse a name that would be another one, another folder, or none on disk."""
    usable = isinstance(name, str) and name not in ("", ".", "..", "zarr.json") and not name.startswith("__")
    if not usable or any(c in "/\\" or not c.isprintable() for c in name) or len(name.encode()) > 200:
        raise DyneqError(
            f"the {what} {name!r} cannot be stored under that name; use 1 to 200 printable characters, no / or \\ and "
            "no __ at the start"
        )


def _storable(name: str, values: NDArray[Any]) -> tuple[NDArray[Any], str | None]:
    """Return an array as zarr can hold it, and what it was where that differs."""
    was = dtype_name(name, values.dtype)
    if text_dtype(values.dtype):
        check_text(name, values)
        if any("\ud800" <= c <= "\udfff" for text in values.ravel() for c in text):
            raise DyneqError(f"the variable {name!r} holds half of a surrogate pair, which is no text; remove it")
        return values.astype(np.dtypes.StringDType()), was
    if values.dtype.kind in "mM":
        return values.astype(as_dtype(was), copy=False).view(np.int64), was
    return values.astype(as_dtype(was), copy=False), None


def _restored(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return values.view(dtype) if dtype.kind in "mM" else values.astype(dtype)


def _for_zarr(attributes: dict[Any, Any], of: str) -> dict[str, Any]:
    encoded = encode_attributes(attributes, of)
    rest = {name: encoded[name] for name, value in attributes.items() if name in _RESERVED or not _native(value)}
    out = {name: value for name, value in attributes.items() if name not in rest}
    return out | ({REST: json.dumps(rest, allow_nan=False)} if rest else {})


def _native(value: Any) -> bool:
    """Whether a value is the same after a trip through standard JSON."""
    if type(value) is list:
        return all(_native(v) for v in value)
    if type(value) is dict:
        return all(type(key) is str for key in value) and all(_native(v) for v in value.values())
    return value is None or type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value))


class VerifiedStore(LocalStore):
    """A read-only zarr store that compares every file it reads with its manifest.

    Zarr itself takes a missing chunk for one of fill values and a flipped bit for a number.

    Args:
        folder: The result's folder, for messages.
        data: The zarr store in it.
        files: Size and SHA-256 of every file.
    """

    def __init__(self, folder: Path, data: Path, files: dict[str, tuple[int, str]]) -> None:
        super().__init__(data, read_only=True)
        self._folder, self._files = folder, files

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a file, or part of it, None for one that was never written.

        Raises:
            Damaged: If it is missing or differs from what was written.
        """
        expected = self._files.get(key)
        if expected is None:
            return None
        try:
            data = (self.root / key).read_bytes()
        except FileNotFoundError:
            raise damaged_file(self._folder, key, "is missing") from None
        except OSError as error:
            raise damaged_file(self._folder, key, f"cannot be read ({error.strerror or error})") from None
        if hashlib.sha256(data).hexdigest() != expected[1]:
            raise damaged_file(self._folder, key, "does not match its hash")
        return (prototype or default_buffer_prototype()).buffer.from_bytes(_part(data, byte_range))

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a file, or part of it, None for one that was never written; raises as :meth:`get_sync`."""
        return await asyncio.to_thread(self.get_sync, key, prototype=prototype, byte_range=byte_range)


def _part(data: bytes, wanted: ByteRequest | None) -> bytes:
    match wanted:
        case None:
            return data
        case RangeByteRequest(start, end):
            return data[start:end]
        case OffsetByteRequest(offset):
            return data[offset:]
        case SuffixByteRequest(suffix):
            return data[max(0, len(data) - suffix) :]
