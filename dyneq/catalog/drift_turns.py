"""When a run turns: stretches at which a condition holds, between which snapshots they begin, and which came first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import combinations, groupby

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.catalog.drift_parts import SETTLED, half_width

#: Cosine to the reference below which an estimator's direction counts as lost.
FAITHFUL = 0.9


class Answer(Enum):
    """Whether a condition holds at a snapshot, as far as the error bars tell."""

    YES = "yes"
    NO = "no"
    OPEN = "open"


@dataclass(frozen=True)
class Condition:
    """Something that holds at some snapshots of a run.

    Attributes:
        text: The condition as a clause, such as ``the abscissa is above 0``.
        answers: One answer a snapshot.
    """

    text: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Turn:
    """A stretch of snapshots at which a condition holds: when it began, and when it ended.

    Attributes:
        text: The condition.
        after: The last step before it at which the condition is known not to hold; None if there is none.
        by: The first step at which it is known to hold.
        last: The last step of the stretch at which it is known to hold.
        until: The first step after it at which it is known not to hold again; None if there is none.
        sure: Whether it is known to hold at every snapshot of the stretch, up to the last one where it does not end.
        earlier: The stretches before this one.
    """

    text: str
    after: int | None
    by: int
    last: int
    until: int | None
    sure: bool
    earlier: tuple["Turn", ...] = ()

    @property
    def where(self) -> str:
        """Return between which snapshots it began and ended."""
        begun = f"already at step {self.by}" if self.after is None else f"between steps {self.after} and {self.by}"
        if self.until is not None:
            begun += f", and no longer between steps {self.last} and {self.until}"
        elif not self.sure:
            begun += " (not known at every snapshot after that)"
        before = ", ".join(f"{t.by}" if t.by == t.last else f"{t.by} to {t.last}" for t in self.earlier)
        return f"{begun}; earlier also at step{'s' * (len(before.split()) > 1)} {before}" if before else begun

    def precedes(self, other: "Turn") -> bool:
        """Return whether this one is known to have begun before another."""
        return other.after is not None and self.by <= other.after


def turn(steps: Sequence[int], condition: Condition) -> Turn | None:
    """Return the last stretch at which a condition holds, with the earlier ones; None if it is not known to hold.

    Args:
        steps: Steps of the snapshots, increasing.
        condition: One answer for each.
    """
    found: list[Turn] = []
    known = [i for i, answer in enumerate(condition.answers) if answer is not Answer.OPEN]
    for holds, group in groupby(known, key=lambda i: condition.answers[i] is Answer.YES):
        members = list(group)
        if not holds:
            continue
        before, after = (known.index(i) + k for i, k in ((members[0], -1), (members[-1], 1)))
        until = steps[known[after]] if after < len(known) else None
        end = members[-1] + 1 if until is not None else len(steps)
        sure = len(members) == end - members[0]
        since = steps[known[before]] if before >= 0 else None
        found.append(Turn(condition.text, since, steps[members[0]], steps[members[-1]], until, sure))
    return replace(found[-1], earlier=tuple(found[:-1])) if found else None


def unordered(turns: Sequence[Turn]) -> list[list[Turn]]:
    """Return turns in groups that follow each other; within a group of several, some pair cannot be ordered."""
    groups: list[list[Turn]] = []
    reach = -1
    for one in sorted(turns, key=lambda t: (-1 if t.after is None else t.after, t.by)):
        if groups and (one.after is None or one.after < reach):
            groups[-1].append(one)
        else:
            groups.append([one])
        reach = max(reach, one.by)
    return groups


def unknown_pairs(group: Sequence[Turn]) -> list[tuple[Turn, Turn]]:
    """Return the pairs of a group of which neither is known to have come first."""
    return [(a, b) for a, b in combinations(group, 2) if not a.precedes(b) and not b.precedes(a)]


def conditions(ds: xr.Dataset) -> list[Condition]:
    """Return the conditions a drift of one run is watched for, as far as it has the series.

    Args:
        ds: The series of one run over ``step``.
    """
    found = []
    if "sample_loss" in ds:
        found.append(Condition("the validation loss is worse than its best", _worse(ds["sample_loss"].values)))
    if "unsettled" in ds:
        depth = ds["unsettled"].attrs.get("depth")
        where = "" if depth is None else f" at depth {depth}"
        text = f"some samples have a force residual above {SETTLED:g}{where}"
        found.append(Condition(text, tuple(_count(n) for n in ds["unsettled"].values)))
    if "abscissa" in ds:
        found.append(Condition("the abscissa is above 0", tuple(_unstable(ds, ("unstable",)))))
    if "spectral_radius" in ds:
        both = ("unstable", "step_unstable")
        found.append(Condition("the spectral radius is above 1", tuple(_unstable(ds, both))))
    if "cosine" in ds:
        found += _unfaithful(ds)
    return found + _followed(ds)


def _worse(loss: NDArray[np.float64]) -> tuple[Answer, ...]:
    """Return where the loss is above that of the best snapshot by more than the interval of the paired difference."""
    answers = [Answer.OPEN] * len(loss)
    rows = np.flatnonzero(np.isfinite(loss).any(axis=1))
    # only the samples that every measured snapshot has: means over different ones cannot be compared
    paired = loss[rows][:, np.isfinite(loss[rows]).all(axis=0)]
    if not paired.size:
        return tuple(answers)
    best = int(paired.mean(axis=1).argmin())
    for at, row in zip(rows, paired, strict=True):
        difference = row - paired[best]
        if at <= rows[best]:
            answers[at] = Answer.NO
        elif difference.mean() > half_width(difference):  # never for one sample, whose interval is NaN
            answers[at] = Answer.YES
    return tuple(answers)


def _count(value: float) -> Answer:
    return Answer.OPEN if np.isnan(value) else Answer.YES if value > 0 else Answer.NO


def _unstable(ds: xr.Dataset, names: Sequence[str]) -> list[Answer]:
    """Return where a fixed point is unstable: yes if one is known to be, no if all are known not to be."""
    some = sum(ds[name].values for name in names)
    others = ds["undecided"].values + ds["no_fixed_point"].values
    return [
        Answer.OPEN if np.isnan(n) else Answer.YES if n > 0 else Answer.NO if left == 0 else Answer.OPEN
        for n, left in zip(np.atleast_1d(some), others, strict=True)
    ]


def _followed(ds: xr.Dataset) -> list[Condition]:
    """Return what is watched of the gradient beside the cosine of one batch, by the intervals alone."""
    found = []
    for dim, name, text, yes, no in (
        (
            "navg_estimator",
            "navg_limit_cosine",
            f"the cosine of {{}} stays below {FAITHFUL:g} however many batches are averaged",
            lambda low, high: high < FAITHFUL,
            lambda low, high: low >= FAITHFUL,
        ),
        (
            "penalty",
            "penalty_ratio",
            "the gradient of the penalty {} is larger than the task's",
            lambda low, high: low > 1,
            lambda low, high: high <= 1,
        ),
    ):
        if name not in ds:
            continue
        for entry, ends in zip(ds[dim].values, _ends(ds, name, dim), strict=True):
            answers = (Answer.YES if yes(*e) else Answer.NO if no(*e) else Answer.OPEN for e in ends)
            found.append(Condition(text.format(entry), tuple(answers)))
    if "step_short" in ds:
        first = ds["step_lag"].attrs.get("reference", "the first gradient")
        for entry, values in zip(
            ds["gradient"].values, ds["step_short"].transpose("gradient", "step").values, strict=True
        ):
            if str(entry) != first:
                text = f"one step along {entry} falls short of one along {first} at any rate: for want of direction"
                found.append(Condition(text, tuple(_count(v) for v in values)))
    return found


def _ends(ds: xr.Dataset, name: str, dim: str) -> NDArray[np.float64]:
    ends: NDArray[np.float64] = ds[f"{name}_interval"].transpose(dim, "step", "bound").values
    return ends


def _unfaithful(ds: xr.Dataset) -> list[Condition]:
    found = []
    ends = _ends(ds, "cosine", "estimator")
    for name, values in zip(ds["estimator"].values, ends, strict=True):
        answers = tuple(
            Answer.YES if high < FAITHFUL else Answer.NO if low >= FAITHFUL else Answer.OPEN for low, high in values
        )
        found.append(Condition(f"the cosine of {name} is below {FAITHFUL:g}", answers))
    return found
