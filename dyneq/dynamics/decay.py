"""How a residual falls: exponentially, as a power law, to a plateau, or not at all.

A residual is no noisy sample: its misfits are smooth and correlated, so that an information criterion alone prefers
whichever curve has most parameters. Each candidate is therefore also fitted to the first two thirds of a stretch and
asked for the last third. A law is named only where both agree on it, over at least a decade.
"""

import enum
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dyneq.dynamics.fits import Fit, compare, line

Array = NDArray[np.float64]

#: A law is named only where the residual falls by at least this factor over the stretch it is fitted to.
DECADE = 10.0
#: Stretches that end with the record and begin at this share of it; the widest that decides is used.
BEGINS = (1 / 64, 1 / 16, 1 / 4, 1 / 2)
#: A residual that changes by less than this (its logarithm, over half of the record) may be called a plateau.
LEVEL = 0.05
#: Largest values taken over a stretch: few enough that each spans an oscillation.
BINS = 36


class DecayKind(enum.StrEnum):
    """What a residual does in the long run."""

    CONVERGED = "converged"
    """Within tolerance, or at the floor of rounding."""
    EXPONENTIAL = "exponential"
    """Falls at a constant rate: a stable root, or a stable cycle of period zero, is being approached."""
    POWER_LAW = "power-law"
    """Falls as a power of time: a marginal root (a real eigenvalue at 0), or the way into the ghost of a fold."""
    PLATEAU = "plateau"
    """Stays at a level: a cycle, an attractor that moves, or a ghost being passed."""
    GROWTH = "growth"
    UNDETERMINED = "undetermined"


@dataclass(frozen=True)
class Decay:
    """The long-run behaviour of one residual.

    Attributes:
        kind: What it does.
        rate: Rate of an exponential law, and otherwise minus the mean slope of log(residual) over the last half of the
            record, nats per step; positive where it falls. NaN where the residual is at its floor.
        rate_error: Standard error of the rate, with the disagreement of both halves of the stretch.
        exponent: p of residual ~ (step + offset)^-p; NaN unless a power law.
        exponent_error: Its standard error.
        level: Level of a plateau, else the largest residual in the last tenth of the record.
        decades: Decades by which the residual falls over the stretch that was judged.
        settled: Whether the end of the record is within tolerance.
        reason: One sentence: why this kind.
    """

    kind: DecayKind
    rate: float
    rate_error: float
    exponent: float
    exponent_error: float
    level: float
    decades: float
    settled: bool
    reason: str

    @property
    def falling(self) -> bool:
        """Whether the residual falls at all, beyond three errors and by more than a percent over half the record."""
        return self.decades > 0.005 and self.rate > 3 * self.rate_error > 0

    def steps_to(self, tol: float, steps: int) -> float:
        """Return the further steps until the residual is within ``tol``, if it goes on as it does; NaN if unknown.

        Args:
            tol: Residual to be reached.
            steps: Length of the record, steps.
        """
        if self.settled or self.level <= tol:
            return 0.0
        if self.kind is DecayKind.EXPONENTIAL and self.rate > 0:
            return math.log(self.level / tol) / self.rate
        if self.kind is DecayKind.POWER_LAW and self.exponent > 0:
            return steps * ((self.level / tol) ** (1 / self.exponent) - 1)
        return math.nan


def classify_decay(end: Array, high: Array, *, tol: float, rounding: float, period: float | None = None) -> Decay:
    """Say how a residual falls.

    Args:
        end: Step at the end of each block ``[row]``, increasing.
        high: Largest residual in each block ``[row]``; rows that are not finite are left out.
        tol: Residual called converged.
        rounding: Unit of rounding of the numbers, 2.2e-16 in double precision: differences below it mean nothing.
        period: Period of the oscillation, steps, where one is known: an envelope is taken over at least one.
    """
    good = np.isfinite(high)
    end, high = np.asarray(end, dtype=np.float64)[good], np.asarray(high, dtype=np.float64)[good]
    if len(high) < 8:
        return _undetermined(high, tol, f"the record has only {len(high)} rows, too few to tell how it falls")
    tail = float(high[end >= 0.9 * end[-1]].max())
    settled = tail <= tol
    if settled and (low := _lowest(end, high, period)) < tail / DECADE and tail > 1e3 * rounding:
        reason = f"the force residual fell to {low:.1e} and has grown to {tail:.1e} since: a saddle may be passed"
        return replace(_undetermined(high, tol, reason), kind=DecayKind.GROWTH, level=tail, settled=True)
    floor = max(tail * 3, 8 * rounding) if settled else 0.0
    # from the right: what the residual never exceeds again
    never_again = np.maximum.accumulate(high[::-1])[::-1]
    above = never_again > floor
    cut = int(above.sum())  # a decreasing series: the rows before it comes to rest
    if settled and (cut < 8 or end[cut - 1] < 16):
        reason = f"the force residual is within the tolerance of {tol:.0e} (at {tail:.1e})"
        return replace(_undetermined(high, tol, reason), kind=DecayKind.CONVERGED, rate=math.nan, rate_error=math.nan)
    end, high = end[:cut], high[:cut]
    late = _envelope(end, high, BEGINS[-1], period)
    slope, slope_error = _slope(*late)
    width = float(late[0][-1] - late[0][0])
    found = _law(end, high, period, rounding)
    base = Decay(
        kind=DecayKind.UNDETERMINED,
        rate=-slope,
        rate_error=slope_error,
        exponent=math.nan,
        exponent_error=math.nan,
        level=tail,
        decades=-slope * width / math.log(10),
        settled=settled,
        reason="",
    )
    if found is not None:
        return replace(_named(base, found, width), settled=settled)
    if settled:
        reason = f"the force residual is within the tolerance of {tol:.0e} (at {tail:.1e}), by no one law"
        return replace(base, kind=DecayKind.CONVERGED, reason=reason)
    change, doubt = slope * width, 3 * slope_error * width
    if change > max(doubt, LEVEL):
        reason = f"the force residual grows, by a factor of {math.exp(change):.3g} over the last half of the record"
        return replace(base, kind=DecayKind.GROWTH, reason=reason)
    steady = abs(change) + doubt < 6 * LEVEL and abs(change) <= max(doubt, LEVEL / 10)
    if steady and abs(change) < LEVEL:
        level = float(np.exp(late[1]).mean())
        reason = f"the force residual stays near {level:.2e}, within {math.expm1(abs(change) + doubt):.1%}"
        return replace(base, kind=DecayKind.PLATEAU, level=level, reason=reason)
    if change < -doubt:
        reason = (
            f"the force residual still falls, by a factor of {math.exp(-change):.3g} over the last half of the record, "
            "which fits no one law over a decade: record more steps"
        )
    else:
        reason = "the force residual neither falls, grows nor stays, but for its own unsteadiness: record more steps"
    return replace(base, reason=reason)


def _undetermined(high: Array, tol: float, reason: str) -> Decay:
    level = float(high.max()) if len(high) else math.nan
    return Decay(DecayKind.UNDETERMINED, math.nan, math.nan, math.nan, math.nan, level, 0.0, bool(level <= tol), reason)


def _lowest(end: Array, high: Array, period: float | None) -> float:
    """Return the least value of the envelope over the whole record."""
    return float(np.exp(_envelope(end, high, 0.0, period)[1].min(initial=math.inf)))


def _envelope(end: Array, high: Array, begin: float, period: float | None) -> tuple[Array, Array]:
    """Return step and log of the largest residual in each of equal bins of the stretch that begins at a share."""
    first = end[-1] * begin
    bins = BINS if period is None else int(min(BINS, max(4, (end[-1] - first) / (1.2 * period))))
    edges = np.linspace(first, end[-1], bins + 1)
    index = np.clip(np.searchsorted(edges, end, side="left") - 1, 0, bins - 1)
    inside = end > first
    # where in its bin the largest is matters: by the middle of a wide bin a steep fall would be put too late
    order = np.lexsort((high[inside], index[inside]))
    last = np.append(np.diff(index[inside][order]) > 0, True)
    at, top = end[inside][order][last], high[inside][order][last]
    return at[top > 0], np.log(top[top > 0])


def _slope(t: Array, y: Array) -> tuple[float, float]:
    """Return the slope of y over t with an error that knows of both halves' disagreement."""
    if len(t) < 4:
        return 0.0, math.inf
    slope, error = line(t, y)
    half = len(t) // 2
    (first, _), (second, _) = line(t[:half], y[:half]), line(t[half:], y[half:])
    return slope, math.hypot(error, (second - first) / 4)


def _law(end: Array, high: Array, period: float | None, rounding: float) -> Fit | None:
    """Return the law that decides, from the widest stretch on which one does."""
    for begin in BEGINS:
        t, y = _envelope(end, high, begin, period)
        if len(t) < 12 or y[0] - y[-1] < math.log(DECADE):
            continue
        best = compare(t, y, rounding)
        if best is not None:
            return best
    return None


def _named(base: Decay, law: Fit, width: float) -> Decay:
    """Return what a law says of the residual."""
    over = f"over {law.decades:.1f} decades"
    if law.name == "exponential":
        reason = f"the force residual falls exponentially, at {law.value:.3g} per step, {over}"
        # the last half knows the slowest rate best; what the whole stretch says else is part of the error
        rate, error = (base.rate, base.rate_error) if math.isfinite(base.rate_error) else (law.value, law.error)
        error = math.hypot(error, (rate - law.value) / 2)
        return replace(
            base, kind=DecayKind.EXPONENTIAL, rate=rate, rate_error=error, decades=law.decades, reason=reason
        )
    if law.name == "power-law":
        reason = f"the force residual falls as step^-{law.value:.2f} {over}: a marginal root, or the ghost of a fold"
        return replace(
            base,
            kind=DecayKind.POWER_LAW,
            exponent=law.value,
            exponent_error=law.error,
            decades=law.decades,
            reason=reason,
        )
    reason = f"the force residual falls to a level of {law.value:.2e} and stays there"
    return replace(base, kind=DecayKind.PLATEAU, level=law.value, reason=reason)
