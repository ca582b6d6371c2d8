"""The cumulative learning rate of a run: the sum over its updates, from its log, else from its recipe."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dyneq.errors import DyneqError
from dyneq.train.log import Record, read_log
from dyneq.train.recipe import resolve


@dataclass(frozen=True)
class Rates:
    """What is known of a run's learning rates.

    Attributes:
        source: ``log``, ``recipe``, or ``none``.
        note: What a reader has to know of it, empty if nothing; why there are none where the source is ``none``.
        rate: Learning rate of an update, counted from 1; None where it is not known.
        evaluations: Steps and validation losses the log recorded during training, after T1 steps on the pinned batch.
    """

    source: str
    note: str = ""
    rate: Callable[[int], float | None] = lambda step: None
    evaluations: Mapping[int, float] = field(default_factory=dict)

    def cumulative(self, step: int) -> float:
        """Return the sum over the updates 1 to ``step``, correctly rounded; NaN if one of them is unknown."""
        rates = [self.rate(k) for k in range(1, step + 1)]
        return math.nan if None in rates else math.fsum(r for r in rates if r is not None)


def rates_of(log: Path | None, recipe: Mapping[str, Any], evaluation: str, last: int) -> Rates:
    """Return the learning rates of a run.

    A log that is there is taken, or nothing is: a recipe beside a log that contradicts it is no second opinion.

    Args:
        log: The training log; None if there is none.
        recipe: What the snapshots say they were trained with.
        evaluation: Digest of their pinned batch, to recognise the log of another training.
        last: Step of the last snapshot.
    """
    if log is None:
        return _of_recipe(recipe)
    try:
        records = read_log(log)
    except DyneqError as error:
        return Rates("none", str(error))
    pinned = next((r["evaluation_sha256"] for r in records if "evaluation_sha256" in r), evaluation)
    if pinned != evaluation:
        return Rates("none", f"the log {log} is of a training with another evaluation batch; it is not used")
    return _of_log(log, records, last)


def _of_log(log: Path, records: list[Record], last: int) -> Rates:
    found: dict[int, float] = {}
    losses: dict[int, float] = {}
    for record in records:
        step = record.get("step")
        if type(step) is not int:
            continue
        if "lr" in record:
            rate = _number(record["lr"])
            if step in found or not math.isfinite(rate):
                what = "twice" if step in found else f"with the learning rate {record['lr']!r}"
                return Rates("none", f"the log {log} has the update {step} {what}; it is damaged and not used")
            found[step] = rate
        if "validation_loss" in record:
            losses[step] = _number(record["validation_loss"])
    lacking = next((k for k in range(1, last + 1) if k not in found), None)
    note = ""
    if lacking is not None:
        note = (
            f"the log {log} lacks the update {lacking}, so the cumulative learning rate is not known from there on; "
            "restore the log"
        )
    return Rates("log", note, found.get, losses)


def _of_recipe(recipe: Mapping[str, Any]) -> Rates:
    if "imported" in recipe or not recipe:
        return Rates(
            "none",
            "the run was trained elsewhere: neither a log nor a recipe of dyneq says its learning rates; put its "
            "log.jsonl (one JSON object with step and lr for every update) beside the snapshots",
        )
    try:
        resolved = resolve(recipe, "of the snapshots")
    except DyneqError as error:
        return Rates("none", f"there is no log, and no learning rates can be read out of the recipe: {error}")
    return Rates(
        "recipe",
        "there is no log: the learning rates are those of the recipe",
        lambda step: resolved.optimizer.lr_at(step, resolved.run.steps),
    )


def _number(value: Any) -> float:
    """Return a number of a log, where those that are not finite are texts."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
