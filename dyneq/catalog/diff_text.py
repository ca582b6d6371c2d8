"""A comparison in words: the verdict, a table, and plain values for JSON."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dyneq.catalog.diff_values import Row

if TYPE_CHECKING:
    from dyneq.catalog.diff import Comparison


def verdict(comparison: "Comparison") -> str:
    """Return one sentence: what moved beyond its error bars, and of what it cannot be said."""
    rows = [r for r in comparison.rows if r.kind in ("measured", "exact")]
    beyond = [r.name for r in rows if r.beyond]
    changed = [r.name for r in rows if r.kind == "exact" and (r.moved or r.nan_in_one)]
    unsure = [r.name for r in rows if r.undetermined and not r.beyond]
    lost = [r.name for r in rows if r.kind == "measured" and r.nan_in_one]
    if not any(r.compared for r in rows):
        return "undetermined: the results have no values in common to compare" + _rest(comparison)
    if beyond:
        said = f"{len(beyond)} of {len(rows)} variables moved beyond their error bars: {_names(beyond)}"
    elif unsure:
        said = "nothing moved beyond the error bars there are"
    elif any(r.equal != r.compared for r in rows):
        said = "nothing moved beyond its error bars"
    else:
        said = "nothing moved: every value compared is equal bit for bit"
    if unsure:
        said += f"; {len(unsure)} moved without known error bars, which leaves it undetermined: {_names(unsure)}"
    if changed:
        said += f"; {len(changed)} {'differ' if len(changed) > 1 else 'differs'} outright: {_names(changed)}"
    if lost:
        said += f"; {len(lost)} {'are' if len(lost) > 1 else 'is'} undefined in only one result: {_names(lost)}"
    return said + _rest(comparison)


def _rest(comparison: "Comparison") -> str:
    said = ""
    if comparison.unlike:
        said += f"; not comparable: {_names(list(comparison.unlike))}"
    lone = [*comparison.only_a, *comparison.only_b]
    if lone:
        said += f"; in only one result: {_names(lone)}"
    counts = [f"{sum(n)} along {dim}" for dim, n in comparison.unmatched.items() if sum(n)]
    return said + (f"; entries without a counterpart: {', '.join(counts)}" if counts else "")


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def lines(comparison: "Comparison") -> list[str]:
    """Return the comparison as lines to print: the verdict, then tables."""
    out = [comparison.verdict, *comparison.notes]
    for dim, (first, second) in comparison.unmatched.items():
        if first or second:
            out.append(f"without a counterpart along {dim}: {first} of the first, {second} of the second result")
    for kind, title in (("measured", "measured values"), ("exact", "flags, counts and text")):
        rows = sorted((r for r in comparison.rows if r.kind == kind), key=_order)
        shown = [r for r in rows if kind == "measured" or r.moved or r.nan_in_one]
        if shown:
            out += ["", title, *_table(shown, bars=kind == "measured")]
            for row in shown:
                out += [f"  {row.name}: {e.a!r} became {e.b!r} at {_place(e.at)}" for e in row.examples]
    out += ["", *_in_brief(comparison)]
    for title, names in (
        ("only in the first result", comparison.only_a),
        ("only in the second result", comparison.only_b),
    ):
        out += ["", f"{title}: {', '.join(names)}"] if names else []
    out += [""] if comparison.unlike else []
    out += [f"not comparable: {name} has {reason}" for name, reason in comparison.unlike.items()]
    if comparison.parameters:
        width = max(map(len, comparison.parameters))
        pairs = comparison.parameters.items()
        out += ["", "parameters that differ", *(f"  {name:<{width}}  {a!r} | {b!r}" for name, (a, b) in pairs)]
    return out


def _order(row: Row) -> tuple[float, float, str]:
    """Order what moved most first, and the rest by name."""
    ratio, largest = (0.0 if e is None or math.isnan(e.value) else e.value for e in (row.ratio, row.largest))
    return -ratio, -largest, row.name


def _in_brief(comparison: "Comparison") -> list[str]:
    """Return one line for each kind of variable that is equal or not judged; the JSON document has them all."""
    out = []
    equal = [r for r in comparison.rows if r.kind == "exact" and not (r.moved or r.nan_in_one)]
    if equal:
        out.append(f"{len(equal)} flags, counts and texts are equal")
    titles = {"certificate": "residuals, conditions and error bars", "cost": "costs"}
    for kind, title in titles.items():
        rows = [r for r in comparison.rows if r.kind == kind]
        if rows:
            differing = sum(r.equal != r.compared or bool(r.nan_in_one) for r in rows)
            out.append(f"{differing} of {len(rows)} {title} differ, which is not judged")
    return out


def _table(rows: Sequence[Row], *, bars: bool) -> list[str]:
    """Return an aligned table; the place is that of the largest ratio, or of the largest difference without one."""
    head = ["variable", "compared", "equal", "moved", "NaN in one"] + (["no bars", "beyond bars"] if bars else [])
    head += ["|delta|", "|delta|/bars", "at"] if bars else ["|delta|", "at"]
    cells = [head]
    for row in rows:
        counts = [row.compared, row.equal, row.moved, row.nan_in_one] + ([row.without_bar, row.beyond] if bars else [])
        extremes = [row.largest, row.ratio] if bars else [row.largest]
        place = next((_place(e.at) for e in reversed(extremes) if e is not None), "")
        cells.append([row.name, *map(str, counts), *("-" if e is None else f"{e.value:.2e}" for e in extremes), place])
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    outer = (0, len(head) - 1)  # names and places; numbers stand to the right
    padded = [
        [c.ljust(w) if i in outer else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        for line in cells
    ]
    return [("  " + "  ".join(line)).rstrip() for line in padded]


def _place(at: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in at.items()) or "its only entry"


def plain(value: Any) -> Any:
    """Return a comparison, or anything in one, as JSON can hold it; None for numbers that are not finite."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        said = getattr(value, "verdict", None)
        return held if said is None else {"verdict": said, **held}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, complex):
        return [plain(value.real), plain(value.imag)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
