"""One or several drifts as text, plain values and a figure."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from dyneq.catalog.drift import Drift
from dyneq.catalog.drift_compare import join
from dyneq.catalog.drift_findings import comparison, findings, turns_of
from dyneq.catalog.drift_plot import plot_drift, plot_runs
from dyneq.catalog.drift_text import comparison_rows, comparison_table, rows_of, table, turn_rows
from dyneq.probes.base import Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARK = {"fact": "-", "warning": "!", "undetermined": "?"}


class Report:
    """What is said of one run or several.

    Args:
        drifts: What became of each run.

    Attributes:
        dataset: The series of the one run, or all of them along ``run`` with their comparison.

    Raises:
        UsageError: If two runs have the same name.
    """

    def __init__(self, drifts: Sequence[Drift]) -> None:
        self.drifts = list(drifts)
        self.several = len(self.drifts) > 1
        self.dataset: xr.Dataset = self.drifts[0].dataset
        self.compared: list[Finding] = []
        if self.several:
            self.dataset, reasons = join([d.dataset for d in self.drifts])
            self.compared = comparison(self.dataset, reasons)

    def text(self) -> str:
        """Return everything as it is printed."""
        parts = []
        for one in self.drifts:
            found = findings(one.dataset, one.notes)
            count = f"  {one.measured + one.found} results: {one.measured} computed, {one.found} found in the store"
            parts.append("\n".join([_heading(one.dataset), "", table(one.dataset), "", *_lines(found), count]))
        if self.several:
            body = comparison_table(self.dataset)
            parts.append("\n".join([*([body, ""] if body else []), *_lines(self.compared)]))
        return "\n\n".join(parts)

    def document(self) -> dict[str, Any]:
        """Return everything as plain values; NaN may be among them."""
        runs = []
        for one in self.drifts:
            ds = one.dataset
            runs.append(
                {
                    "run": ds.attrs["run"],
                    "probes": json.loads(ds.attrs["params"]),
                    "learning_rates": ds.attrs["learning_rates"],
                    "snapshots": rows_of(ds),
                    "turns": turn_rows(turns_of(ds)),
                    "findings": _plain(findings(ds, one.notes)),
                    "stored": {"computed": one.measured, "found": one.found},
                }
            )
        if not self.several:
            return {"results": runs}
        return {"results": runs, "comparison": comparison_rows(self.dataset), "findings": _plain(self.compared)}

    def figure(self) -> "Figure":
        """Return the panels of one run, or the losses of several against cumulative learning rate."""
        return plot_runs(self.dataset) if self.several else plot_drift(self.dataset, turns_of(self.dataset))


def _heading(ds: xr.Dataset) -> str:
    rates = {
        "log": "learning rates of its log",
        "recipe": "learning rates of its recipe",
        "none": "learning rates unknown",
    }
    pinned = ds.attrs["pinned_samples"]
    samples = f", {ds.sizes['sample']} of {pinned} samples (see --batch)" if "sample" in ds.dims else ""
    samples = f", {pinned} samples" if ds.sizes.get("sample") == pinned else samples
    return f"run {ds.attrs['run']}, {ds.sizes['step']} snapshots{samples}, {rates[ds.attrs['learning_rates']]}"


def _lines(found: Sequence[Finding]) -> list[str]:
    return [f"  {_MARK[f.level]} {f.text}" for f in found]


def _plain(found: Sequence[Finding]) -> list[dict[str, str]]:
    return [{"level": f.level, "text": f.text} for f in found]
