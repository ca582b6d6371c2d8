"""What moved between two results, and by how much relative to their error bars."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.catalog.diff_text import lines, plain, verdict
from dyneq.catalog.diff_values import Extreme, Kind, Row, Text, distances, is_nan, same_bits, unequal
from dyneq.catalog.plain import text_dtype
from dyneq.errors import DyneqError, UsageError
from dyneq.probes.base import CERTIFICATE, COST, EXACT, Probe, align


@dataclass(frozen=True)
class Comparison:
    """Two results of one probe, compared entry by entry.

    Attributes:
        rows: One a variable that both have.
        only_a: Variables and coordinates that only the first has.
        only_b: Those that only the second has.
        unlike: Variables that both have, but that cannot be compared, with the reason.
        parameters: Parameters and attributes that differ; None where one has none.
        unmatched: Entries along each dimension that have no counterpart: in the first, in the second.
        notes: What else a reader should know.
    """

    rows: tuple[Row, ...]
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    unlike: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    unmatched: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """One sentence: what moved beyond its error bars, and of what it cannot be said."""
        return verdict(self)

    def to_plain(self) -> dict[str, Any]:
        """Return the comparison as JSON can hold it; None for numbers that are not finite."""
        return plain(self)

    def lines(self) -> list[str]:
        """Return the comparison as lines to print, the verdict first."""
        return lines(self)


def compare(a: xr.Dataset, b: xr.Dataset, probe: Probe | None = None) -> Comparison:
    """Compare two results entry by entry.

    Args:
        a: A result.
        b: Another one of the same probe.
        probe: The probe that made them, which knows what belongs together. If None it is looked up by the attribute
            ``probe``; where there is none, or it is not installed, entries are aligned by their coordinates alone.

    Raises:
        UsageError: If they are of different probes, or have no entries in common.
    """
    made = [ds.attrs.get("probe") for ds in (a, b)]
    if made[0] != made[1] or (probe is not None and made[0] not in (None, probe.name)):
        by = f" by the probe {probe.name!r}" if probe is not None and made[0] == made[1] else ""
        raise UsageError(
            f"results of the probes {made[0]!r} and {made[1]!r} cannot be compared{by}; name two results of one probe"
        )
    notes: tuple[str, ...] = ()
    if probe is None and isinstance(made[0], str):
        probe, notes = _installed(made[0])
    first, second = (align if probe is None else probe.match)(a, b)
    names = [_names(ds) for ds in (a, b)]
    rows: list[Row] = []
    unlike: dict[str, str] = {}
    bars = {bar for ds in (a, b) for v in ds.data_vars.values() if (bar := _bar_name(ds, v)) is not None}
    for name in (n for n in names[0] if n in names[1]):
        matched = name in first.variables and name in second.variables
        reason = _unlike(first[name], second[name]) if matched else "no entries that match"
        if reason is None:
            rows.append(_row(name, first, second, bars))
        else:
            unlike[name] = reason
    left = [ds.attrs.get("unmatched", {}) for ds in (first, second)]
    return Comparison(
        rows=tuple(rows),
        only_a=tuple(n for n in [*names[0], *map(str, a.indexes)] if n not in b.variables),
        only_b=tuple(n for n in [*names[1], *map(str, b.indexes)] if n not in a.variables),
        unlike=unlike,
        parameters=_parameters(a, b),
        unmatched={d: (left[0].get(d, 0), left[1].get(d, 0)) for d in {**left[0], **left[1]}},
        notes=notes,
    )


def _installed(name: str) -> tuple[Probe | None, tuple[str, ...]]:
    from dyneq.probes.registry import get_probe

    try:
        return get_probe(name), ()
    except UsageError:
        return None, (f"the probe {name!r} is not installed; entries were aligned by their coordinates alone",)


def _names(ds: xr.Dataset) -> list[str]:
    """Return what is compared: data variables, and coordinates that are no index."""
    return [str(n) for n in ds.variables if n not in ds.indexes]


def _unlike(a: xr.DataArray, b: xr.DataArray) -> str | None:
    if set(a.dims) != set(b.dims):
        return f"dimensions {_tuple(a.dims)} and {_tuple(b.dims)}"
    if text_dtype(a.dtype) != text_dtype(b.dtype) or (a.dtype.kind in "mM") != (b.dtype.kind in "mM"):
        return f"values of type {a.dtype} and {b.dtype}"
    return None


def _tuple(dims: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, dims))})"


def _bar_name(ds: xr.Dataset, variable: xr.DataArray) -> str | None:
    named = variable.attrs.get("ancillary_variables")
    listed = named.split() if isinstance(named, str) else []
    return next((name for name in listed if name in ds.data_vars), None)


def _kind(a: xr.DataArray, b: xr.DataArray, bars: set[str]) -> Kind:
    role = a.attrs.get("role", b.attrs.get("role"))
    if role == COST:
        return "cost"
    if role == CERTIFICATE or a.name in bars:
        return "certificate"
    return "measured" if role != EXACT and (a.dtype.kind in "fc" or b.dtype.kind in "fc") else "exact"


def _row(name: str, first: xr.Dataset, second: xr.Dataset, bars: set[str]) -> Row:
    kind = _kind(first[name], second[name], bars)
    dims = first[name].dims
    x, y = first[name].values, second[name].transpose(*dims).values
    if text_dtype(first[name].dtype):
        old, new = x.astype(object), y.astype(object)
        differ = np.asarray(old != new, dtype=bool)
        places = [tuple(map(int, at)) for at in np.argwhere(differ)]
        examples = tuple(Text(_place(first, dims, at), str(old[at]), str(new[at])) for at in places[:3])
        return Row(name, kind, x.size, x.size - len(places), len(places), examples=examples)
    nan_x, nan_y = is_nan(x), is_nan(y)
    both = ~nan_x & ~nan_y
    delta = distances(x, y, both)
    moved = both & unequal(x, y)

    def extreme(of: NDArray[np.float64], where: NDArray[np.bool_]) -> Extreme | None:
        if not where.any():
            return None
        at = np.unravel_index(int(np.where(where, of, -1.0).argmax()), of.shape)
        place = tuple(map(int, at))
        return Extreme(float(of[place]), _place(first, dims, place), x[place].item(), y[place].item())

    largest = extreme(delta, moved)
    equal = int(same_bits(x, y).sum())
    nan_in_one = int((nan_x != nan_y).sum())
    if kind != "measured":
        return Row(name, kind, x.size, equal, int(moved.sum()), nan_in_one, largest=largest)
    bars_x, bars_y = _bar(name, first, dims), _bar(name, second, dims)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        bar = bars_x + bars_y
        known = np.isfinite(bar) | (np.isposinf(bar) & np.isfinite(delta))
        # of a sum that is too large for its type, the halves are not
        quotient = np.where(np.isfinite(bar), delta / bar, (delta / 2) / (bars_x / 2 + bars_y / 2))
        ratio = np.where(moved & known, quotient, 0.0)
    return Row(
        name,
        kind,
        x.size,
        equal,
        int(moved.sum()),
        nan_in_one,
        beyond=int((ratio > 1).sum()),
        undetermined=int((moved & ~known).sum()),
        without_bar=int((both & np.isnan(bar)).sum()),
        largest=largest,
        ratio=extreme(ratio, moved & known),
    )


def _bar(name: str, ds: xr.Dataset, dims: tuple[Any, ...]) -> NDArray[np.float64]:
    """Return a variable's error bar at each of its entries, NaN where it is not known."""
    shape = tuple(ds.sizes[d] for d in dims)
    bar = _bar_name(ds, ds[name])
    if bar is None:
        return np.full(shape, np.nan)
    held = ds[bar]
    if not set(held.dims) <= set(dims) or held.dtype.kind not in "fiu":
        raise DyneqError(
            f"the error bar {bar!r} of {name!r} should be real numbers over {_tuple(dims)}, but is {held.dtype} over "
            f"{_tuple(held.dims)}; correct the probe that made the result"
        )
    spread = held.variable.set_dims({d: ds.sizes[d] for d in dims}).transpose(*dims).values.astype(np.float64)
    return np.where(spread >= 0, spread, np.nan)  # less than nothing is no error bar


def _place(ds: xr.Dataset, dims: tuple[Any, ...], at: tuple[int, ...]) -> dict[str, Any]:
    """Return the coordinates of an entry: of its dimensions, and those that depend on several of them."""
    position = dict(zip(dims, at, strict=True))
    place: dict[str, Any] = {str(d): _scalar(ds[d].values[i]) if d in ds.coords else i for d, i in position.items()}
    for name, held in ds.coords.items():
        # one that depends on a single dimension is told by that dimension's own
        if name not in place and len(held.dims) > 1 and set(held.dims) <= set(dims):
            place[str(name)] = _scalar(held.values[tuple(position[d] for d in held.dims)])
    return place


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


#: Attributes that differ between any two results and mean nothing for them.
_BOOKKEEPING = ("created_at", "duration_s", "params", "unmatched")


def _parameters(a: xr.Dataset, b: xr.Dataset) -> dict[str, tuple[Any, Any]]:
    held = []
    for ds in (a, b):
        attributes = {str(k): v for k, v in ds.attrs.items() if k not in _BOOKKEEPING}
        try:
            given = json.loads(ds.attrs.get("params", "{}"))
        except (TypeError, ValueError):
            given = None
        if not isinstance(given, dict):
            given = {"": ds.attrs["params"]}  # not ours to read, but to compare
        held.append({**{f"params.{k}".rstrip("."): v for k, v in given.items()}, **attributes})
    return {
        name: (held[0].get(name), held[1].get(name))
        for name in {**held[0], **held[1]}
        if not _alike(held[0].get(name), held[1].get(name))
    }


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        x, y = np.asarray(a), np.asarray(b)
        return x.shape == y.shape and bool(
            np.array_equal(x, y, equal_nan=x.dtype.kind in "fc" and y.dtype.kind in "fc")
        )
    return bool(a == b) or (a != a and b != b)
