"""Datasets and attributes as plain values that JSON holds exactly, and back."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.errors import DyneqError

FORMAT = "dyneq-dataset/1"
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
#: What numpy keeps for a time that is none.
_NOT_A_TIME = -(2**63)
#: Tags of attribute values that JSON has no type for.
_FLOAT, _COMPLEX, _TUPLE, _ARRAY, _DICT = "$float", "$complex", "$tuple", "$array", "$dict"


def to_plain(ds: xr.Dataset) -> dict[str, Any]:
    """Return a dataset as plain values: numbers, strings, lists and dicts.

    Numbers that are not finite are the words ``NaN``, ``Infinity`` and ``-Infinity``; complex ones ``[re, im]``; times
    ISO 8601, durations counts of their unit, either ``NaT``. Which of them it is, the ``dtype`` of the variable says.

    Args:
        ds: A dataset of numbers, complex numbers, booleans, text and times.

    Raises:
        DyneqError: If it holds anything else.
    """
    return {
        "format": FORMAT,
        "attrs": encode_attributes(ds.attrs, "the dataset"),
        "dims": {str(d): int(n) for d, n in ds.sizes.items()},
        "coords": {str(n): _variable(str(n), v.variable) for n, v in ds.coords.items()},
        "variables": {str(n): _variable(str(n), v.variable) for n, v in ds.data_vars.items()},
    }


def from_plain(document: dict[str, Any]) -> xr.Dataset:
    """Return the dataset of a :func:`to_plain` document.

    Raises:
        DyneqError: If it is no such document.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise DyneqError(f"a dataset of the format {FORMAT!r} was expected, but found {found!r}; export it again")
    try:
        sizes = {str(d): int(n) for d, n in document["dims"].items()}
        parts = {kind: {n: _read(n, v, sizes) for n, v in document[kind].items()} for kind in ("variables", "coords")}
        ds = xr.Dataset(parts["variables"], parts["coords"], decode_attributes(document["attrs"]))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DyneqError(
            f"the document is no dataset of the format {FORMAT!r} ({type(error).__name__}: {error}); export it again"
        ) from error
    unused = {d: n for d, n in sizes.items() if d not in ds.sizes}
    if unused:
        raise DyneqError(f"the document names dimensions that nothing has ({', '.join(unused)}); export it again")
    return ds


def text_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype can hold text."""
    return dtype.kind in "OU" or isinstance(dtype, np.dtypes.StringDType)


def dtype_name(name: str, dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype, from which :func:`as_dtype` makes it again in native byte order.

    Args:
        name: The variable, for the message.
        dtype: Its dtype.

    Raises:
        DyneqError: If values of that dtype cannot be written exactly.
    """
    if isinstance(dtype, np.dtypes.StringDType):
        return "string"
    if dtype.kind == "U":
        return f"<U{dtype.itemsize // 4}"
    if dtype.kind in "biufcmMO" and dtype not in (np.dtype(np.longdouble), np.dtype(np.clongdouble)):
        return dtype.name
    raise DyneqError(f"the variable {name!r} should hold numbers, text or times, but is of type {dtype}; convert it")


def as_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype of a :func:`dtype_name`.

    Raises:
        ValueError: If it is none that we write.
    """
    try:
        if not isinstance(name, str):
            raise TypeError
        if name != "string":
            dtype_name("value", np.dtype(name))
    except (TypeError, DyneqError):
        raise ValueError(f"{name!r} is no type of numbers, text or times") from None
    return np.dtypes.StringDType() if name == "string" else np.dtype(name)


def check_text(name: str, values: NDArray[Any]) -> None:
    """Verify that an array of objects holds nothing but text.

    Raises:
        DyneqError: If it does not.
    """
    for value in values.ravel():
        if not isinstance(value, str):
            raise DyneqError(
                f"the variable {name!r} should hold text or numbers, but holds {value!r} ({type(value).__name__}); "
                "convert it with str()"
            )


def encode_attributes(attributes: dict[Any, Any], of: str) -> dict[str, Any]:
    """Return attributes as plain values; what JSON has no type for is tagged, such as ``{"$float": "NaN"}``.

    Args:
        attributes: Names and values.
        of: What has them, for the message.

    Raises:
        DyneqError: If a name is not text or a value cannot be written exactly.
    """
    encoded = {}
    for name, value in attributes.items():
        if not isinstance(name, str):
            raise DyneqError(f"{of} has an attribute whose name is {name!r} instead of text; rename it")
        try:
            encoded[name] = encode_value(value)
        except (TypeError, DyneqError) as error:
            raise DyneqError(
                f"the attribute {name!r} of {of} should be a number, text, an array, or lists and dicts of them, but "
                f"is {type(value).__name__} ({error}); convert it"
            ) from error
    return encoded


def decode_attributes(encoded: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of :func:`encode_attributes`."""
    return {name: decode_value(value) for name, value in encoded.items()}


def encode_value(value: Any) -> Any:
    """Return one attribute value as plain values.

    Raises:
        TypeError: If it cannot be written exactly.
    """
    if value is None or type(value) in (bool, str, int):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {_FLOAT: _word(value)}
    if type(value) is complex:
        return {_COMPLEX: [_word(value.real), _word(value.imag)]}
    if type(value) is list:
        return [encode_value(v) for v in value]
    if type(value) is tuple:
        return {_TUPLE: [encode_value(v) for v in value]}
    if type(value) is dict:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: encode_value(v) for key, v in value.items()}
        return {_DICT: [[encode_value(k), encode_value(v)] for k, v in value.items()]}
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        scalar = {"scalar": True} if isinstance(value, np.generic) else {}
        form = {"dtype": dtype_name("value", array.dtype), "shape": list(array.shape), "data": _values("value", array)}
        return {_ARRAY: {**form, **_bits_of_nan(array, form), **scalar}}
    raise TypeError(f"no plain form of {value!r}")


def decode_value(value: Any) -> Any:
    """Return the attribute value of :func:`encode_value`.

    Raises:
        ValueError: If a tag is unknown.
    """
    if isinstance(value, list):
        return [decode_value(v) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not next(iter(value)).startswith("$"):
        return {key: decode_value(v) for key, v in value.items()}
    ((tag, held),) = value.items()
    if tag == _FLOAT:
        return _number(held)
    if tag == _COMPLEX:
        return complex(_number(held[0]), _number(held[1]))
    if tag == _TUPLE:
        return tuple(decode_value(v) for v in held)
    if tag == _DICT:
        return {decode_value(k): decode_value(v) for k, v in held}
    if tag == _ARRAY:
        array = _array(held["data"], held["dtype"], tuple(held["shape"]))
        if "bits" in held:
            array = np.frombuffer(bytes.fromhex(held["bits"]), array.dtype.newbyteorder("<")).reshape(array.shape)
            array = array.astype(array.dtype.newbyteorder("="))
        return array[()] if held.get("scalar") else array
    raise ValueError(f"unknown tag {tag!r}")


def _bits_of_nan(array: NDArray[Any], form: dict[str, Any]) -> dict[str, str]:
    """Return the little-endian bytes of numbers whose NaN have a sign or payload, which the word ``NaN`` leaves out."""
    if array.dtype.kind not in "fc" or not np.isnan(array).any():
        return {}
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    read = _array(form["data"], form["dtype"], array.shape)
    return {} if read.astype(read.dtype.newbyteorder("<")).tobytes() == little else {"bits": little.hex()}


def _variable(name: str, variable: xr.Variable) -> dict[str, Any]:
    values = variable.values
    return {
        "dims": [str(d) for d in variable.dims],
        "dtype": dtype_name(name, values.dtype),
        "attrs": encode_attributes(variable.attrs, f"the variable {name!r}"),
        "data": _values(name, values),
    }


def _read(name: str, held: dict[str, Any], sizes: dict[str, int]) -> tuple[list[str], NDArray[Any], dict[str, Any]]:
    shape = tuple(sizes[d] for d in held["dims"])
    try:
        return held["dims"], _array(held["data"], held["dtype"], shape), decode_attributes(held["attrs"])
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name!r}: {error}") from error


def _values(name: str, array: NDArray[Any]) -> Any:
    """Return an array as nested lists of plain values."""
    kind = "T" if text_dtype(array.dtype) else array.dtype.kind
    if kind in "biu":
        return array.tolist()
    if kind == "T":
        check_text(name, array) if array.dtype.kind == "O" else None
        flat: list[Any] = [str(v) for v in array.ravel()]
    elif kind == "f":
        flat = _floats(array)
    elif kind == "c":
        flat = [list(pair) for pair in zip(_floats(array.real), _floats(array.imag), strict=True)]
    elif kind == "M":
        flat = [str(v) for v in array.ravel()]
    else:
        flat = ["NaT" if v == _NOT_A_TIME else v for v in array.astype(array.dtype).ravel().view(np.int64).tolist()]
    return _nested(iter(flat), array.shape)


def _floats(array: NDArray[Any]) -> list[float | str]:
    """Return numbers in their shortest form that reads back exactly."""
    flat = np.ascontiguousarray(array).ravel()
    wide = flat.astype(np.float64)
    if flat.dtype.itemsize < 8:
        short = np.array([float(str(v)) for v in flat], dtype=np.float64)
        # rounding twice, to double and then to single, could miss by one unit
        wide = np.where(short.astype(flat.dtype) == flat, short, wide)
    return [_word(v) for v in wide.tolist()]


def _word(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _number(value: Any) -> float:
    if isinstance(value, str):
        if value not in _WORDS:
            raise ValueError(f"{value!r} is no number")
        return _WORDS[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _nested(flat: Iterator[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return next(flat)
    return [_nested(flat, shape[1:]) for _ in range(shape[0])]


def _flat(data: Any, shape: tuple[int, ...]) -> list[Any]:
    if not shape:
        return [data]
    if not isinstance(data, list) or len(data) != shape[0]:
        raise ValueError(f"a list of {shape[0]} entries was expected")
    return [value for part in data for value in _flat(part, shape[1:])]


def _array(data: Any, dtype_text: str, shape: tuple[int, ...]) -> NDArray[Any]:
    dtype = as_dtype(dtype_text)
    flat = _flat(data, shape)
    kind = "T" if text_dtype(dtype) else dtype.kind
    expected: dict[str, tuple[type, ...]] = {"b": (bool,), "i": (int,), "u": (int,), "T": (str,), "M": (str,)}
    for value in flat:
        if kind in expected and type(value) not in expected[kind]:
            raise ValueError(f"{value!r} is not of type {dtype_text}")
    if kind == "f":
        flat = [_number(v) for v in flat]
    if kind == "m":
        counts = [_NOT_A_TIME if v == "NaT" else v for v in flat]
        return np.array(counts, dtype=np.int64).view(dtype).reshape(shape)
    if kind == "c":
        parts = np.array([[_number(p) for p in pair] for pair in flat], dtype=np.float64).reshape(len(flat), 2)
        # not real + 1j * imag, which makes NaN of an infinite imaginary part
        array = np.empty(len(flat), dtype=dtype)
        array.real, array.imag = parts[:, 0], parts[:, 1]
        return array.reshape(shape)
    array = np.empty(len(flat), dtype=dtype)
    array[:] = flat
    return array.reshape(shape)
