"""What the comparison of one variable finds, and entry-by-entry differences of two arrays of equal shape."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["measured", "exact", "certificate", "cost"]


@dataclass(frozen=True)
class Extreme:
    """The entry where something is largest.

    Attributes:
        value: How large.
        at: Coordinates of the entry.
        a: The first result's value there.
        b: The second's.
    """

    value: float
    at: dict[str, Any]
    a: Any
    b: Any


@dataclass(frozen=True)
class Text:
    """An entry whose text differs: its coordinates and the two texts."""

    at: dict[str, Any]
    a: str
    b: str


@dataclass(frozen=True)
class Row:
    """The comparison of one variable.

    Attributes:
        name: Name of the variable.
        kind: ``measured`` values have error bars or should; ``exact`` ones (text, flags, integers) differ or do not;
            ``certificate`` (residuals, conditions, the error bars themselves) and ``cost`` do not enter the verdict.
        compared: Entries compared.
        equal: Of these equal bit for bit; NaN is equal to NaN.
        moved: Of these with two different values (for complex ones, by the modulus of the difference).
        nan_in_one: Of these NaN in only one of the results.
        beyond: Moved by more than the sum of the two error bars.
        undetermined: Moved, but an error bar is missing or NaN.
        without_bar: Entries with a value in both and no error bar in one of them, moved or not.
        largest: The largest abs(delta), None where nothing moved.
        ratio: The largest abs(delta)/(error_a + error_b), None where nothing with error bars moved.
        examples: For text, up to three entries that differ.
    """

    name: str
    kind: Kind
    compared: int
    equal: int
    moved: int
    nan_in_one: int = 0
    beyond: int = 0
    undetermined: int = 0
    without_bar: int = 0
    largest: Extreme | None = None
    ratio: Extreme | None = None
    examples: tuple[Text, ...] = ()


def is_nan(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where a value is no number, or no time."""
    if values.dtype.kind in "mM":
        return np.isnat(values)
    return np.isnan(values) if values.dtype.kind in "fc" else np.zeros(values.shape, dtype=bool)


def unequal(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where two arrays differ as exact numbers; 2^53 + 1 is not the floating point number 2^53."""
    found = np.asarray(x != y)
    at = _rounded(x, y)
    found[at] = [a != b for a, b in zip(x[at].tolist(), y[at].tolist(), strict=True)]
    return found


def _rounded(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where NumPy would round a whole number to compare it with a number of another type."""
    at = np.zeros(x.shape, dtype=bool)
    if x.dtype.kind in "mM" or y.dtype.kind in "mM" or np.result_type(x, y).kind not in "fc":
        return at
    for v in (x, y):
        if v.dtype.kind in "iu" and v.dtype.itemsize == 8:
            at |= (v > 2**53) | (v < -(2**53))
    return at & np.isfinite(x) & np.isfinite(y)


def same_bits(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where two arrays are equal, zeros with their sign; any NaN equals any other."""
    equal = ~unequal(x, y) | (is_nan(x) & is_nan(y))
    for part in ("real", "imag") if "c" in (x.dtype.kind, y.dtype.kind) else ("real",):
        first, second = (np.asarray(getattr(v, part) if v.dtype.kind in "fc" else v) for v in (x, y))
        if first.dtype.kind == "f" and second.dtype.kind == "f":
            equal &= (np.signbit(first) == np.signbit(second)) | (is_nan(x) & is_nan(y))
    return equal


def distances(x: NDArray[Any], y: NDArray[Any], both: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return abs(y - x), zero where they are equal, infinite where one is infinite and the other is not it.

    Args:
        x: Numbers or times.
        y: As many.
        both: Where neither is NaN; elsewhere the distance is zero.
    """
    differ = both & unequal(x, y)
    if x.dtype.kind in "mM":
        ticks = [v.astype(np.promote_types(x.dtype, y.dtype)).view(np.int64) for v in (x, y)]
        return np.where(differ, _integer_distance(*ticks), 0.0)
    if x.dtype.kind in "biu" and y.dtype.kind in "biu":
        whole = [v.astype(np.uint8) if v.dtype.kind == "b" else v for v in (x, y)]
        if np.result_type(*whole).kind != "f":
            common = np.result_type(*whole)
            return np.where(differ, _integer_distance(*(v.astype(common) for v in whole)), 0.0)
    wide = np.complex128 if "c" in (x.dtype.kind, y.dtype.kind) else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        delta = np.abs(y.astype(wide) - x.astype(wide))
    delta = np.where(np.isfinite(delta), delta, np.inf)
    at = differ & _rounded(x, y)
    delta[at] = [_exact_distance(a, b) for a, b in zip(x[at].tolist(), y[at].tolist(), strict=True)]
    return np.where(differ, delta, 0.0)


def _exact_distance(a: complex, b: complex) -> float:
    return math.hypot(*(float(Fraction(q) - Fraction(p)) for p, q in ((a.real, b.real), (a.imag, b.imag))))


def _integer_distance(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    return (np.maximum(x, y).astype(unsigned) - np.minimum(x, y).astype(unsigned)).astype(np.float64)
