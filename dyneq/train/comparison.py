"""The table of a comparison: arms by learning rate, with how many runs broke and intervals over seeds."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

Run = Mapping[str, Any]
"""A run as :func:`dyneq.train.comparison_result.summary` gives it."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval by Student's t, independent and normal values supposed.

    Attributes:
        mean: NaN if there is no value.
        half_width: NaN below two values.
        count: Values.
    """

    mean: float
    half_width: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Interval":
        """Return the interval of the values that are finite."""
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return cls(math.nan, math.nan, 0)
        mean = statistics.fmean(finite)
        if len(finite) < 2:
            return cls(mean, math.nan, 1)
        t = float(stats.t.ppf(0.975, len(finite) - 1))
        return cls(mean, t * statistics.stdev(finite) / math.sqrt(len(finite)), len(finite))


def rows(runs: Sequence[Run], against: str | None = None) -> list[dict[str, Any]]:
    """Return the table as plain values: a row for every arm and learning rate, and one for every arm with several.

    Args:
        runs: The runs.
        against: Arm that the others' losses are compared with, run by run of the same seed, learning rate and task.

    Returns:
        Rows with ``arm``, ``lr`` (None: all of the arm's), ``runs``, ``broke``, ``loss`` (mean of the last finite
        validation loss, broken runs included) with ``loss_half_width`` and ``loss_runs`` (how many had one),
        ``best_loss`` (mean of each run's best), ``force_residual`` and ``force_residual_worst`` (median and largest
        over runs of the median over samples at the end), ``unsettled`` (largest share of samples that did not settle in
        a deep evaluation, mean over runs), ``multiplier`` (of the last deep evaluation, median over runs),
        ``seconds_per_update`` (median over runs of means), ``seconds`` (median over runs of all
        updates together), ``acts`` (how many) and ``rollbacks`` among them, and with ``against`` ``difference``,
        ``difference_half_width`` and ``pairs``. Intervals are over seeds, also in a row of several learning rates: runs
        of one seed have their initial weights and batches in common, so that their mean counts as one value.
    """
    found = []
    for arm in dict.fromkeys(run["arm"] for run in runs):
        own = [run for run in runs if run["arm"] == arm]
        lrs = list(dict.fromkeys(run["lr"] for run in own))
        for lr in [*lrs, None] if len(lrs) > 1 else lrs:
            part = [run for run in own if lr is None or run["lr"] == lr]
            row = {"arm": arm, "lr": lr, **_row(part)}
            if against is not None:
                row |= _difference(part, [run for run in runs if run["arm"] == against])
            found.append(row)
    return found


def _row(runs: Sequence[Run]) -> dict[str, Any]:
    loss = _over_seeds([(run["seed"], run["final_loss"]) for run in runs])
    residuals = [run["force_residual"] for run in runs]
    return {
        "runs": len(runs),
        "broke": sum(run["broken"] is not None for run in runs),
        "loss": loss.mean,
        "loss_half_width": loss.half_width,
        "loss_runs": loss.count,
        "best_loss": _mean([run["best_loss"] for run in runs]),
        "force_residual": _median(residuals),
        "force_residual_worst": max((r for r in residuals if not math.isnan(r)), default=math.nan),
        "unsettled": _mean([run["unsettled_worst"] for run in runs]),
        "multiplier": _median([run["multiplier"] for run in runs]),
        "seconds_per_update": _median([run["seconds_per_update"] for run in runs]),
        "seconds": _median([run["seconds"] for run in runs]),
        "acts": sum(len(run["acts"]) for run in runs),
        "rollbacks": sum("rolled_back_to" in act for run in runs for act in run["acts"]),
    }


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are finite, NaN if none is."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def _difference(runs: Sequence[Run], reference: Sequence[Run]) -> dict[str, Any]:
    """Return the loss minus the reference's over the pairs of runs with the same seed, learning rate and task."""
    losses = {(run["seed"], run["lr"], run["task"]): run["final_loss"] for run in reference}
    found = _over_seeds(
        [(run["seed"], run["final_loss"] - losses.get((run["seed"], run["lr"], run["task"]), math.nan)) for run in runs]
    )
    return {"difference": found.mean, "difference_half_width": found.half_width, "pairs": found.count}


def _over_seeds(values: Sequence[tuple[int, float]]) -> Interval:
    """Return mean and interval of values, those of one seed taken together.

    Where some are not finite, the seeds have unequal shares in different learning rates, and there is no interval.

    Args:
        values: Seeds and values.
    """
    finite = [(seed, value) for seed, value in values if math.isfinite(value)]
    if not finite:
        return Interval(math.nan, math.nan, 0)
    groups = [[value for other, value in finite if other == seed] for seed in dict.fromkeys(s for s, _ in finite)]
    whole = Interval.of(statistics.fmean(group) for group in groups)
    alike = len({len(group) for group in groups}) == 1
    return Interval(statistics.fmean(v for _, v in finite), whole.half_width if alike else math.nan, len(finite))


def _median(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan
