"""The one-page figure of a diagnosis."""

import textwrap
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyneq.dynamics.verdict import Verdict
from dyneq.probes.census_plot import STYLE, draw_counts, draw_map, draw_pairs
from dyneq.probes.census_reading import headline, overall
from dyneq.probes.diagnose_reading import cure


def plot_diagnose(ds: xr.Dataset, ax: Any = None) -> Figure:
    """Draw a diagnosis; ``ax`` is a sequence of four axes, or None for a new figure."""
    if ax is None:
        figure = Figure(figsize=(12.5, 9), layout="constrained")
        ax = figure.subplots(2, 2).ravel()
    words, where, pairs, residuals = ax
    _words(ds, words)
    if "token_state" in ds:
        draw_map(ds, where)
    else:
        draw_counts(ds, where)
    draw_pairs(ds, pairs)
    _traces(ds, residuals)
    return words.figure


def _words(ds: xr.Dataset, ax: Axes) -> None:
    ax.set_axis_off()
    found = overall(ds)
    name = ds.attrs.get("checkpoint", ds.attrs.get("system", ""))
    ax.text(0, 1, f"{name}: {found.verdict.value}", fontsize=17, weight="bold", va="top", transform=ax.transAxes)
    blocks = [
        ("", headline(ds)),
        ("what it means", found.verdict.meaning),
        ("what cures it", cure(ds, found)),
        ("measure next", found.verdict.measure),
    ]
    y = 0.87
    for title, text in blocks:
        wrapped = textwrap.fill(text, 68)
        if title:
            ax.text(0, y, title, fontsize=9, color="#666666", va="top", transform=ax.transAxes)
            y -= 0.055
        ax.text(0, y, wrapped, fontsize=11, va="top", transform=ax.transAxes)
        y -= 0.062 * (wrapped.count("\n") + 1) + 0.035


def _traces(ds: xr.Dataset, ax: Axes) -> None:
    """Draw the force residual of some samples against depth."""
    labelled = set()
    for i, sample in enumerate(ds["trace"].values.tolist()):
        verdict = Verdict.of(str(ds["verdict"].values[sample]))
        label = verdict.value if verdict not in labelled else None
        labelled.add(verdict)
        ax.semilogy(ds["step"], ds["trace_residual"].values[i], color=STYLE[verdict][0], lw=1, alpha=0.85, label=label)
    ax.set_xlabel("relaxation step")
    ax.set_ylabel("force residual norm(F)/norm(z)")
    ax.set_title("force residual, up to two samples of each verdict", fontsize=9)
    ax.legend(fontsize=7, loc="best")
