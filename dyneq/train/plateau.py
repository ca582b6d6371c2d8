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
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dyneq.train.log import Record
from dyneq.train.plateau_evidence import SLOW, WINDOWS, Slope, measured_of, pinned, slope_of, stretch, validation_falls

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
    taken = stretch(records)
    slope = slope_of(taken)
    if isinstance(slope, str):
        return Reading(Plateau.UNDETERMINED, slope)
    fall, falls = -100 * slope.value, f"the loss fell by {_interval(slope)} nats in 100 updates (of the last {slope.n})"
    evidence = {"updates": float(slope.n), "fall": fall, "loss": slope.loss}
    if slope.high < 0:
        return Reading(Plateau.NONE, falls, evidence)
    latest = taken[-slope.n :]
    if (improved := validation_falls(latest)) is not None:
        evidence["validation_fall"] = improved
        return Reading(
            Plateau.NONE, f"the validation loss still falls, by {improved:.3g} nats in 100 updates", evidence
        )
    if slope.low < -SLOW:
        return Reading(Plateau.UNDETERMINED, f"{falls}: too noisy to say whether it descends", evidence)
    measured = {**measured_of(latest), "pinned": pinned(taken)}
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


def _interval(slope: Slope) -> str:
    return f"{-100 * slope.value:.3f} [{-100 * slope.high:.3f}, {-100 * slope.low:.3f}]"
