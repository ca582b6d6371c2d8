"""Drawing a census: the map of samples and tokens, and the pairs at the roots."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dyneq.dynamics.verdict import Verdict
from dyneq.probes.census_reading import headline, overall

#: Colour and marker of every verdict, in all figures.
STYLE = {
    Verdict.FIXED_POINT: ("#9e9e9e", "."),
    Verdict.SLOW: ("#e6a817", "v"),
    Verdict.UNDETERMINED: ("#000000", "x"),
    Verdict.FOLD: ("#8c510a", "P"),
    Verdict.DISCRETE_INSTABILITY: ("#2166ac", "s"),
    Verdict.SADDLE: ("#762a83", "D"),
    Verdict.LIMIT_CYCLE: ("#b2182b", "o"),
    Verdict.TORUS: ("#1b7837", "h"),
    Verdict.CHAOS: ("#d6218b", "*"),
    Verdict.ABSORBED: ("#4d4d4d", "8"),
    Verdict.DIVERGED: ("#4d4d4d", "X"),
}
_SHADES = ListedColormap(["#ffffff", "#fbe7b2", "#fbe7b2", "#d9dee6"])


def plot_census(ds: xr.Dataset, ax: Any = None) -> Figure:
    """Draw a census; ``ax`` is a pair of axes, or None for a new figure."""
    if ax is None:
        figure = Figure(figsize=(12, 5.2), layout="constrained")
        ax = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.25, 1]})
    left, right = ax
    if "token_state" in ds:
        draw_map(ds, left)
    else:
        draw_counts(ds, left)
    draw_pairs(ds, right)
    figure = left.figure
    figure.suptitle(_wrapped(headline(ds)), fontsize=10)
    return figure


def _wrapped(text: str, width: int = 130) -> str:
    lines, line = [], ""
    for part in text.split("; "):
        if line and len(line) + len(part) > width:
            lines.append(line + ";")
            line = ""
        line = f"{line}; {part}" if line else part
    return "\n".join([*lines, line])


def draw_map(ds: xr.Dataset, ax: Axes) -> None:
    """Draw which tokens settle, where motion starts, and what it drives."""
    state = ds["token_state"].values
    ax.imshow(state, aspect="auto", cmap=_SHADES, vmin=-0.5, vmax=3.5, interpolation="nearest", origin="upper")
    found = overall(ds)
    handles: list[Any] = [
        Patch(facecolor=_SHADES(1), edgecolor="#bbbbbb", label="still decaying"),
        Patch(facecolor=_SHADES(3), edgecolor="#bbbbbb", label="moves because an earlier token does"),
    ]
    token = ds["origin"].values
    for verdict, which in found.samples.items():
        colour, marker = STYLE[verdict]
        rows = [i for i in which if token[i] >= 0]
        if verdict is Verdict.FIXED_POINT or not rows:
            continue
        ax.plot(token[rows], rows, marker, color=colour, ms=6, mec="white", mew=0.4 if marker != "x" else 1.2)
        handles.insert(
            0, Line2D([], [], marker=marker, color=colour, ls="", ms=6, label=f"{verdict.value} starts here")
        )
    ax.set_xlabel("token")
    ax.set_ylabel("sample")
    ax.set_title("where each sample does not settle (white: settled)", fontsize=9)
    ax.legend(handles=handles, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)


def draw_counts(ds: xr.Dataset, ax: Axes) -> None:
    """Draw how many samples have each verdict."""
    found = overall(ds)
    names = list(found.samples)[::-1]
    ax.barh([v.value for v in names], [len(found.samples[v]) for v in names], color=[STYLE[v][0] for v in names])
    ax.set_xlabel(f"samples of {found.total}")
    ax.set_title("verdicts", fontsize=9)
    ax.margins(x=0.1)


def draw_pairs(ds: xr.Dataset, ax: Axes) -> None:
    """Draw the deciding eigenvalues at the roots with the disc in which Euler's step is stable."""
    eps = float(ds.attrs["eps"])
    angle = np.linspace(0, 2 * np.pi, 721)
    circle = (np.exp(1j * angle) - 1) / eps
    flow = ds.attrs["time"] == "flow"
    label = f"step {eps:g} stable inside" if flow else "map stable inside"
    ax.plot(circle.real, circle.imag, color="#2166ac", lw=1, label=label)
    if flow:
        ax.axvline(0, color="#b2182b", lw=1, label="flow stable to the left")
    drawn: list[complex] = []
    for verdict, which in overall(ds).samples.items():
        mu = ds["mu"].values[which]
        if verdict is Verdict.DISCRETE_INSTABILITY:
            mu = np.where(np.isnan(ds["critical_mu"].values[which].real), mu, ds["critical_mu"].values[which])
        mu = mu[np.isfinite(mu.real)]
        if len(mu):
            colour, marker = STYLE[verdict]
            ax.plot(mu.real, np.abs(mu.imag), marker, color=colour, ms=6, mec="white", mew=0.4, label=verdict.value)
            drawn += mu.tolist()
    ax.set_xlabel("Re mu at the root, per unit time")
    ax.set_ylabel("abs Im mu, per unit time")
    if drawn:
        points = np.array(drawn)
        top = float(np.abs(points.imag).max())
        width = max(0.15, float(np.ptp(points.real)), 0.15 * top)
        ax.set_xlim(min(points.real.min(), 0) - 0.2 * width, max(points.real.max(), 0) + 0.2 * width)
        ax.set_ylim(-0.04 * max(top, width), 1.15 * max(top, width))
        ax.set_title("the pairs that decide (upper half plane)", fontsize=9)
    else:
        ax.set_title("no root had to be looked at: everything settled", fontsize=9)
    ax.legend(fontsize=7, loc="best")
