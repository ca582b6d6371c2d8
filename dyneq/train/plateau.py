"""Which plateau a run that has stalled is on, read off its latest log records.

A run counts as stalled when its training loss falls more slowly than :data:`SLOW`, and no fall can be told from the
noise of its batches: both ends of the interval of the slope say so (Theil and Sen's, widened where successive losses
resemble each other). Where the interval is wider than that, nothing is said. Of a stalled run there are three kinds to
tell apart, which ask for opposite cures:

- *invalid*: the relaxation is far from settling, so that gradients are those of no fixed point, or are skipped;
- *over-contracted*: it settles sooner than it needs to and the gradient is faithful: the penalties hold the loss up;
- *controller-fight*: most of the update belongs to penalties.
"""

import enum
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from dyneq.train.log import Record

#: Updates the slope is fitted to: the fewest that decide.
WINDOWS = (100, 200, 400)
#: Fall of the loss, nats an update, below which a run counts as stalled: 0.02 nats in 100 updates.
SLOW = 2e-4
#: Confidence of the interval of the slope.
LEVEL = 0.99
#: Evaluations within the window that the validation loss needs to be a witness.
EVALUATIONS = 4
#: Force residual (median over batches of medians over samples) from which it counts as high, and up to which as tiny.
HIGH, TINY = 0.2, 1e-3
#: Force residual up to which nothing is left to settle.
AT_REST = 1e-5
#: Share of the nudges skipped, and share of the update that belongs to penalties, above which it is most of them.
MOST = 0.5
#: Adjoint residual up to which a gradient counts as faithful.
FAITHFUL = 0.1
#: Leading multiplier, and contraction rate per time, below which the relaxation settles sooner than it needs to.
CONTRACTED_MODULUS, CONTRACTED_RATE = 0.95, -0.5
#: Updates from one reading to the next in the course of a run.
EVERY = 25


class Plateau(enum.StrEnum):
    """What a run that may have stalled is on."""

    NONE = "none"
    """It descends."""
    INVALID = "invalid"
    """The gradients are those of no fixed point, or skipped."""
    OVER_CONTRACTED = "over-contracted"
    """The relaxation settles sooner than it needs to, at the cost of the loss."""
    FIGHT = "controller-fight"
    """Most of the update belongs to penalties."""
    UNDETERMINED = "undetermined"
    """Too little, too noisy, or stalled for another reason."""


@dataclass(frozen=True)
class Reading:
    """What is said of a run.

    Attributes:
        plateau: The plateau.
        sentence: The same for a reader: the numbers behind it, and what to do.
        evidence: Those numbers by name.
    """

    plateau: Plateau
    sentence: str
    evidence: dict[str, float] = field(default_factory=dict)

    @property
    def told(self) -> bool:
        """Whether a run says so while it goes on: that it descends, or is too short to say, is no news."""
        return self.plateau in (Plateau.INVALID, Plateau.OVER_CONTRACTED, Plateau.FIGHT)


def reading(records: Iterable[Record]) -> Reading:
    """Return the plateau of a run from its latest log records, in their order.

    Records without a loss (the log's first line, say) are passed over; whatever comes before the last rollback, switch
    of the gradient or pre-warm belongs to another stretch and is left out.
    """
    taken = _stretch(records)
    slope = _slope(taken)
    if isinstance(slope, str):
        return Reading(Plateau.UNDETERMINED, slope)
    fall, falls = -100 * slope.value, f"the loss fell by {_interval(slope)} nats in 100 updates (of the last {slope.n})"
    evidence = {"updates": float(slope.n), "fall": fall, "loss": slope.loss}
    if slope.high < 0:
        return Reading(Plateau.NONE, falls, evidence)
    latest = taken[-slope.n :]
    if (improved := _validation_falls(latest)) is not None:
        evidence["validation_fall"] = improved
        return Reading(
            Plateau.NONE, f"the validation loss still falls, by {improved:.3g} nats in 100 updates", evidence
        )
    if slope.low < -SLOW:
        return Reading(Plateau.UNDETERMINED, f"{falls}: too noisy to say whether it descends", evidence)
    measured = {**_measured(latest), "pinned": _pinned(taken)}
    evidence |= {name: value for name, value in measured.items() if value is not None}
    return _told(measured, slope.loss, falls, evidence)


def _told(m: dict[str, float | None], loss: float, falls: str, evidence: dict[str, float]) -> Reading:
    """Return the reading of a stalled run."""
    residual, skipped, share, adjoint = m["force_residual"], m["skipped"], m["penalty_share"], m["adjoint_residual"]
    modulus, rate = m["modulus"], m["contraction_rate"]
    known = [
        None if residual is None else f"force residual {residual:.1e}",
        None if skipped is None else f"{100 * skipped:.0f} % of the nudges skipped",
        None if share is None else f"{100 * share:.0f} % of the update from penalties",
        None if adjoint is None else f"adjoint residual {adjoint:.1e}",
        None if modulus is None else f"leading multiplier {modulus:.3f}",
        None if rate is None else f"contraction rate {rate:.2g} per time",
        f"a controller pinned at {m['pinned']:g}" if m["pinned"] is not None else None,
    ]
    numbers = ", ".join(part for part in known if part) or "no residual in the log"

    def said(plateau: Plateau, words: str) -> Reading:
        return Reading(plateau, f"{words} (stalled at a loss of {loss:.3f}: {falls}; {numbers})", evidence)

    equilibrium = adjoint is not None or skipped is not None
    if (skipped or 0) > MOST or (equilibrium and residual is not None and residual >= HIGH):
        return said(
            Plateau.INVALID,
            "invalid plateau, the gradients are those of no fixed point: go back to a snapshot that settles "
            "(`dyneq diagnose` finds it) and add --reg floss or the guard; a heavier jacreg will not bring it back",
        )
    if share is not None and share > MOST:
        return said(
            Plateau.FIGHT,
            "controller fight, the update is mostly the penalties': lower their weights or the controller's ceiling "
            "(jacreg: ceiling, or controller=frozen); `dyneq decompose` tells them apart",
        )
    contracted = residual is not None and residual <= AT_REST  # where increments are rounding, there is no rate
    if modulus is not None or rate is not None:
        contracted = (modulus or 0) < CONTRACTED_MODULUS and (-1 if rate is None else rate) < CONTRACTED_RATE
    settled, faithful = residual is not None and residual <= TINY, adjoint is None or adjoint <= FAITHFUL
    if settled and faithful and contracted:
        return said(
            Plateau.OVER_CONTRACTED,
            "over-contracted, the relaxation settles sooner than it needs to and the gradient is faithful: unless the "
            "loss is as low as hoped for, ask for less contraction (floss: margin; spectral: bound; jacreg: weight)",
        )
    return said(
        Plateau.UNDETERMINED,
        "none of the three plateaus fits: it may be finished, or the learning rate too large or too small"
        if not settled or contracted
        else "it settles, and how strongly it contracts is as it should be or not in the log: it may be finished, or "
        "the learning rate too large or too small",
    )


class Watch:
    """Reads a run as it goes on.

    Args:
        before: The records of the run so far, of which the latest count.
    """

    def __init__(self, before: Sequence[Record] = ()) -> None:
        self._records: deque[Record] = deque(before, maxlen=max(WINDOWS))
        told = [record["plateau"] for record in before if "plateau" in record]
        self._last: str = told[-1] if told else Plateau.UNDETERMINED

    def observe(self, record: Record) -> Reading | None:
        """Take note of a record; return the reading when it is another than the last one.

        Args:
            record: The record of an update, with whatever was measured after it.
        """
        self._records.append(record)
        if record["step"] % EVERY:
            return None
        found = reading(self._records)
        if found.plateau == self._last:
            return None
        self._last = found.plateau
        return found


def number(record: Record, name: str) -> float | None:
    """Return a number of a record, which may be the string a log keeps for one that is not finite; None without one."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def penalty_share(record: Record) -> float | None:
    """Return the share of an update's squared norm that belongs to penalties, <penalties, update>/norm(update)^2.

    Where the record does not state it, it follows from the norm ratios and cosines, with different penalties taken to
    be orthogonal. 0 in an update without penalties; None where it is not defined.
    """
    stated = number(record, "penalty_share")
    if stated is None:
        names = [
            name.removesuffix("_ratio") for name in record if name.startswith("penalty_") and name.endswith("_ratio")
        ]
        pairs = [(number(record, f"{name}_ratio"), number(record, f"{name}_cosine")) for name in names]
        known = [(r, 0.0 if r == 0 else c) for r, c in pairs if r is not None and (r == 0 or c is not None)]
        if len(known) < len(pairs):
            return None
        with_task = sum(r * (c or 0.0) for r, c in known)
        own = sum(r * r for r, _ in known)
        whole = 1 + 2 * with_task + own
        if not math.isfinite(whole) or whole <= 0:
            return None
        stated = (with_task + own) / whole
    return stated if math.isfinite(stated) else None


@dataclass(frozen=True)
class _Slope:
    """Slope of the training loss, nats an update: value and interval, over ``n`` updates; and their median loss."""

    value: float
    low: float
    high: float
    n: int
    loss: float


def _stretch(records: Iterable[Record]) -> list[Record]:
    """Return the latest records with a finite loss that belong together."""
    taken: deque[Record] = deque(maxlen=max(WINDOWS))
    for record in records:
        act = record.get("act")
        if "switch" in record or "penalty_prewarm" in record or (isinstance(act, str) and "rolls back" in act):
            taken.clear()
            continue
        loss, step = number(record, "loss"), number(record, "step")
        if loss is not None and step is not None and math.isfinite(loss) and math.isfinite(step):
            taken.append(record)
    return list(taken)


def _slope(taken: list[Record]) -> _Slope | str:
    """Return the slope over the fewest updates that decide, else over all; a sentence where there are too few."""
    found = None
    for n in WINDOWS:
        if len(taken) < n:
            break
        found = _fit(taken[-n:])
        if found is not None and (found.high < 0 or found.low >= -SLOW):
            return found
    if found is None:
        return f"whether the loss descends takes {WINDOWS[0]} updates of one kind in a row, and there are {len(taken)}"
    return found


def _fit(taken: list[Record]) -> _Slope | None:
    step = np.array([number(record, "step") for record in taken], dtype=float)
    loss = np.array([number(record, "loss") for record in taken], dtype=float)
    if not np.all(np.diff(step) > 0) or not np.abs(loss).max() < 1e100:
        return None
    slope, intercept, low, high = (float(v) for v in stats.theilslopes(loss, step, LEVEL))
    rest = loss - intercept - slope * step
    rest = rest - rest.mean()
    power = float(rest @ rest)
    alike = min(max(float(rest[1:] @ rest[:-1]) / power, 0.0), 0.95) if power > 0 else 0.0
    wider = math.sqrt((1 + alike) / (1 - alike))  # of an autoregressive noise of the first order
    return _Slope(
        slope, slope - wider * (slope - low), slope + wider * (high - slope), len(taken), float(np.median(loss))
    )


def _validation_falls(latest: list[Record]) -> float | None:
    """Return by how much the validation loss falls in 100 updates, None if no fall can be told from its noise."""
    pairs = [(number(r, "step"), number(r, "validation_loss")) for r in latest]
    known = [(s, v) for s, v in pairs if s is not None and v is not None and abs(v) < 1e100]
    if len(known) < EVALUATIONS:
        return None
    step, loss = np.array(known).T
    fit = stats.linregress(step, loss)
    quantile = float(stats.t.ppf(0.5 + LEVEL / 2, len(known) - 2))
    falls = fit.slope + quantile * fit.stderr < 0
    return -100 * float(fit.slope) if falls and fit.slope < -1e-9 else None


def _measured(latest: list[Record]) -> dict[str, float | None]:
    """Return the numbers that tell the plateaus apart, over the window; None where the log has none."""

    def values(*names: str) -> list[float]:
        found = []
        for record in latest:
            value = next((v for name in names if (v := number(record, name)) is not None), None)
            if value is not None:
                found.append(math.inf if math.isnan(value) else value)
        return found

    def middle(found: list[float]) -> float | None:
        return float(np.median(found)) if found else None

    # medians are of numbers that may be infinite; a share is one of counts
    skipped = values("nudge_skipped")
    shares = [s for record in latest if (s := penalty_share(record)) is not None]
    penalised = any(name == "penalty_share" or name.endswith("_ratio") for record in latest for name in record)
    adjoint = [v for record in latest if (v := number(record, "adjoint_residual")) is not None and not math.isnan(v)]
    rates = [v for record in latest if (v := number(record, "penalty_floss_measure")) is not None and math.isfinite(v)]
    moduli = [
        v
        for record in latest
        for name in ("guard_modulus", "penalty_spectral_measure")
        if (v := number(record, name)) is not None and math.isfinite(v)
    ]
    return {
        "force_residual": middle(values("force_residual_t1", "force_residual")),
        "skipped": float(np.mean(np.array(skipped) > 0)) if skipped else None,
        "penalty_share": float(np.mean(np.clip(shares, 0.0, 1.0))) if shares and penalised else None,
        "adjoint_residual": middle(adjoint),
        "modulus": middle(moduli),
        "contraction_rate": middle(rates),
    }


def _pinned(taken: list[Record]) -> float | None:
    """Return the weight of a penalty that moved and then stayed exactly where it is, as one at its bound does."""
    for name in sorted({n for r in taken for n in r if n.startswith("penalty_") and n.endswith("_weight")}):
        weights = [v for r in taken if (v := number(r, name)) is not None]
        stayed = next((i for i, w in enumerate(reversed(weights)) if w != weights[-1]), len(weights))
        if len(weights) // 2 <= stayed < len(weights):
            return weights[-1]
    return None


def _interval(slope: _Slope) -> str:
    return f"{-100 * slope.value:.3f} [{-100 * slope.high:.3f}, {-100 * slope.low:.3f}]"
