"""JSON that is the same text for the same value, exact for every float, and readable by SQLite's JSON functions."""

import hashlib
import json
import math
from typing import Any

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
    except (TypeError, ValueError) as error:
        raise DyneqError(
            f"the catalog keeps plain values only ({error}); convert them with float(), int() or str() first"
        ) from None
    return text.replace(f'"{_POSITIVE}"', "9e999").replace(f'"{_NEGATIVE}"', "-9e999")


def digest(value: Any) -> str:
    """Return the SHA-256 of a plain value, the same for equal values."""
    return hashlib.sha256(dumps(value).encode("utf-8", "surrogatepass")).hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else _POSITIVE if value > 0 else _NEGATIVE
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"the keys {sorted(map(repr, value))} are not all text")
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
