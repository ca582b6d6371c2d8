"""How numbers with intervals, marks and lists are written in the results that compare gradients."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from dyneq.gradients.agreement import ROUNDING
from dyneq.gradients.base import Mark
from dyneq.probes.base import Finding
from dyneq.probes.triangulate_rules import Ends

#: Letter of each mark in tables.
LETTERS = {
    Mark.FREE_NOT_CONVERGED: "f",
    Mark.OUTSIDE_LINEAR_RESPONSE: "w",
    Mark.NUDGE_NOT_SETTLED: "s",
    Mark.NUDGE_DIVERGED: "d",
    Mark.ADJOINT_NOT_SOLVED: "a",
    Mark.ADJOINT_SINGULAR: "g",
    Mark.CLAMPED: "c",
}

#: Estimators named in one sentence about a mark.
LISTED = 4
#: Share of the squared norm of all batches above which one batch is said to dominate.
DOMINANT = 0.7


def number(x: float) -> str:
    """Return a number in at most four digits, ``-`` where there is none."""
    if not np.isfinite(x):
        return "-"
    if x == 0 or 1e-3 <= abs(x) < 1e4:
        return f"{x:.3f}" if abs(x) < 10 else f"{x:.4g}"
    return f"{x:.1e}"


def plus_minus(end: Ends) -> str:
    """Return ``0.987 +- 0.004``, in as many digits as its interval gives a meaning to."""
    if not np.isfinite(end.value):
        return "-"
    half = max(end.high - end.value, end.value - end.low)
    if not np.isfinite(half):
        return f"{end.value:.3f} +- ?"
    if half < 5e-4:
        return f"{_unrounded(end.value)} +- {half:.0e}"
    return f"{end.value:.3f} +- {half:.3f}" if half < 0.0995 else f"{end.value:.2f} +- {half:.2f}"


def between(end: Ends) -> str:
    """Return ``1.02 [0.98, 1.06]``."""
    if not np.isfinite(end.value):
        return "-"
    if not np.isfinite(end.low):
        return f"{number(end.value)} [?]"
    return f"{number(end.value)} [{number(end.low)}, {number(end.high)}]"


def cosine_text(end: Ends) -> str:
    """Return a cosine with its interval for a sentence; one that is 1 but for rounding of the print says how near."""
    return f"{_unrounded(end.value)}" if end.low > 0.9995 else between(end)


def names(items: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def marks_text(ds: xr.Dataset, estimator: int) -> str:
    """Return how many samples each mark applies to, as ``12f 3s``."""
    counts = ds["marked"].isel(estimator=estimator).values.sum(1)
    return " ".join(f"{n}{LETTERS[m]}" for m, n in zip(Mark, counts, strict=True) if n)


def legend(ds: xr.Dataset, estimators: Sequence[int]) -> list[str]:
    """Return what the letters of the marks that occur stand for."""
    some = ds["marked"].isel(estimator=list(estimators)).any(("estimator", "sample")).values.tolist()
    return [f"  {LETTERS[m]}: {m.value.partition(':')[0]}" for m, on in zip(Mark, some, strict=True) if on]


def mark_findings(ds: xr.Dataset, estimators: Sequence[int]) -> list[Finding]:
    """Return a warning for every mark that occurs: what it means, what to do, and which estimators it concerns."""
    used = int((ds["batch_of_sample"].values >= 0).sum())
    counts = ds["marked"].values.sum(2)
    found = []
    for i, mark in enumerate(Mark):
        which = [e for e in estimators if counts[i, e]]
        if which:
            listed = names(
                [
                    *(f"{ds['estimator'].values[e]} ({counts[i, e]} of {used} samples)" for e in which[:LISTED]),
                    *([f"{len(which) - LISTED} more"] if len(which) > LISTED else []),
                ]
            )
            found.append(Finding("warning", f"{listed}: {mark.value}"))
    return found


def sample_findings(ds: xr.Dataset) -> list[Finding]:
    """Return which samples were left out, and whether there are enough batches for intervals."""
    found = []
    diverged = np.flatnonzero(ds["free_status"].values == "diverged")
    if len(diverged):
        listed = ", ".join(map(str, diverged[:8])) + (", ..." if len(diverged) > 8 else "")
        text = f"left out: sample{'s' if len(diverged) > 1 else ''} {listed}, whose relaxation diverged"
        found.append(Finding("warning", f"{text} within {ds.attrs['t1']} steps; every number is about the others"))
    rest = int((ds["batch_of_sample"].values < 0).sum()) - len(diverged)
    if rest:
        text = f"{rest} sample{'s' if rest > 1 else ''} left over after dealing batches of equal size are not used"
        found.append(Finding("fact", text))
    found += _dominant(ds)
    if ds.sizes["batch"] < 3:
        text = "one batch gives no interval" if ds.sizes["batch"] == 1 else "two batches give hardly any interval"
        found.append(Finding("warning", f"{text}, so next to nothing can be said; ask for more --batches (4 or more)"))
    return found


def _dominant(ds: xr.Dataset) -> list[Finding]:
    """Return a warning where one batch holds most of the squared norm of all."""
    if ds.sizes["batch"] < 4:
        return []
    gram = ds["gram"].values.sum(0)
    square = np.einsum("ebeb->eb", gram)
    total = square.sum(1, keepdims=True)
    share = np.divide(square, total, out=np.zeros_like(square), where=total > 0)
    which = [e for e in range(len(share)) if share[e].max() > DOMINANT]
    if not which:
        return []
    batch = int(share[which[0]].argmax())
    samples = ", ".join(map(str, np.flatnonzero(ds["batch_of_sample"].values == batch)[:8]))
    listed = names([str(ds["estimator"].values[e]) for e in which])
    text = (
        f"batch {batch} (samples {samples}) alone holds {100 * share[which[0]].max():.0f} % of the squared norm of all"
    )
    advice = "cosine of means, bias and variance are about it alone: see whether those samples settle (dyneq diagnose)"
    return [Finding("warning", f"{listed}: {text}; {advice}")]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as aligned lines."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def median_text(values: np.ndarray) -> str:
    """Return the median over samples, and the largest where it is ten times that."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "-"
    median, most = float(np.median(finite)), float(finite.max())
    return number(median) if most <= 10 * median else f"{number(median)} (max {number(most)})"


def _unrounded(x: float) -> str:
    """Return a cosine so that what is nearly 1 is not printed as 1."""
    rest, sign = 1 - abs(x), "-" if x < 0 else ""
    if rest >= 5e-5:
        return f"{x:.4f}"
    return f"{sign}1" if rest <= ROUNDING else f"{sign}1-{rest:.0e}"
