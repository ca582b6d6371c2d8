"""The axes a result is drawn on: those that were given, or those of a new figure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyneq.errors import UsageError

_WORDS = {2: ("two", "a pair"), 3: ("three", "three"), 4: ("four", "four")}


def panels(
    ax: Any, count: int, size: tuple[float, float], what: str, widths: tuple[float, ...] | None = None
) -> Sequence[Axes]:
    """Return ``count`` axes side by side; their figure is ``panels(...)[0].figure``.

    Args:
        ax: Axes to draw on, in any nesting; new ones if None.
        count: How many a drawing takes.
        size: Width and height of a new figure, inches.
        what: The beginning of the sentence said when another number is given, such as "a spectrum is".
        widths: Relative widths of new axes; equal if None.

    Raises:
        UsageError: If another number of axes is given.
    """
    if ax is None:
        made: Sequence[Axes] = Figure(figsize=size, layout="constrained").subplots(1, count, width_ratios=widths)
        return made
    given = list(np.ravel(np.asarray(ax, dtype=object)))
    if len(given) != count:
        number, pass_ = _WORDS.get(count, (str(count), str(count)))
        raise UsageError(f"{what} drawn on {number} axes, but {len(given)} were given; pass {pass_}")
    return given


def figure_of(axes: Sequence[Axes]) -> Figure:
    """Return the figure that axes belong to."""
    figure = axes[0].get_figure(root=True)
    assert figure is not None
    return figure
