"""JSON that is the same text for the same value, exact for every float, and readable by SQLite's JSON functions."""

import functools
import hashlib
import json
import math
from dataclasses import fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from dyneq.errors import DyneqError

#: Stand-ins that no text of a user's contains; the encoder has no words for infinity that SQLite also reads.
_POSITIVE, _NEGATIVE = "\ue000+inf\ue000", "\ue000-inf\ue000"


def dumps(value: Any) -> str:
    """Return a plain value as compact JSON with sorted keys; infinity as ``9e999``, NaN as the string ``"NaN"``.

    Args:
        value: Dictionaries with text keys, lists, tuples, text, numbers, booleans and None.

    Raises:
        DyneqError: If it holds anything else.
    """
    try:
        text = json.dumps(_finite(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()  # half of a surrogate pair, as in a file name that is no UTF-8, is no text for SQLite either
    except (TypeError, ValueError) as error:
        raise DyneqError(
            f"the catalog keeps plain values only ({error}); convert them with float(), int() or str() first"
        ) from None
    return text.replace(f'"{_POSITIVE}"', "9e999").replace(f'"{_NEGATIVE}"', "-9e999")


def digest(value: Any) -> str:
    """Return the SHA-256 of a plain value, the same for equal values."""
    return hashlib.sha256(dumps(value).encode()).hexdigest()


def require_types(held: Any) -> None:
    """Verify that the plain fields of a dataclass read from a file are what its annotations say, and fit SQLite.

    Raises:
        ValueError: If one is not.
    """
    for name, kinds in _plain_fields(held.__class__).items():
        value = getattr(held, name)
        fits = not (isinstance(value, float) and math.isnan(value)) and (
            type(value) is not int or -(2**63) <= value < 2**63
        )
        if type(value) not in kinds or not fits:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{name} should be {expected}, but is {str(value)[:40]!r}")


@functools.cache
def _plain_fields(kind: Any) -> dict[str, tuple[type, ...]]:
    hints = get_type_hints(kind)
    found = {}
    for name in (field.name for field in fields(kind)):
        options = get_args(hints[name]) if get_origin(hints[name]) is UnionType else (hints[name],)
        kinds = tuple(get_origin(option) or option for option in options)
        if set(kinds) <= {str, int, float, bool, dict, type(None)}:
            found[name] = (*kinds, int) if float in kinds else kinds
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else _POSITIVE if value > 0 else _NEGATIVE
    if isinstance(value, str) and "\ue000" in value:
        raise ValueError("the private character U+E000 stands for infinity here")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"the keys {sorted(map(repr, value))} are not all text")
        return {_finite(key): _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
