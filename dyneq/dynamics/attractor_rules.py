"""The rules by which evidence becomes a verdict: each kind needs everything that is asked for it, or none is given."""

import math

import numpy as np

from dyneq.dynamics.attractor_kinds import AttractorKind, Evidence, Verdict
from dyneq.dynamics.decay import DecayKind
from dyneq.dynamics.period import PERIODIC, PERIODS, SAME_AMPLITUDE, Oscillation

#: Standard errors a leading exponent must be away from 0.
SIGMAS = 3.0
#: Nats by which a perturbation must have grown over the record before its exponent is called positive: a thousandfold.
#: Means over a record of n steps are off by a few nats over n, which batch means of a regular signal do not see.
NATS = 7.0
#: Relative difference up to which a rate of decay and an exponent are the same, and so well each must be known.
SAME_RATE = 0.1
#: Drift of the mean, relative to the amplitude, above which a state passes by rather than oscillates.
PASSING = 1.0


def judge(e: Evidence) -> Verdict:
    """Return the kind of attractor that the evidence supports, with its reasons."""
    if e.lost >= 0:
        return Verdict(AttractorKind.DIVERGED, [f"the state was lost after {e.lost} steps: it grew beyond any root"])
    if e.residual <= e.tol:
        return _at_rest(e)
    if e.frozen:
        return Verdict(
            AttractorKind.UNDETERMINED,
            [f"steps return the state bit for bit at a force residual of {e.residual:.1e}: absorbed by rounding"],
            ["whether there is a root near: use float64"],
        )
    slow = _slow(e)
    if slow is not None:
        return slow
    return _moving(e)


def threshold(e: Evidence, index: int) -> float:
    """Return how far an exponent must be from 0 to count as different from it, nats per step."""
    assert e.errors is not None
    error = float(e.errors[index])
    return max(SIGMAS * error, NATS / max(e.averaged, 1)) if math.isfinite(error) else math.inf


def _at_rest(e: Evidence) -> Verdict:
    found = Verdict(AttractorKind.FIXED_POINT, [f"the force residual is {e.residual:.1e}, within {e.tol:.0e}"])
    if e.decay.kind is DecayKind.GROWTH:
        return Verdict(
            AttractorKind.UNDETERMINED, found.evidence, ["the force residual grows: the root may be unstable; continue"]
        )
    if e.decay.reason:
        found.evidence.append(e.decay.reason)
    found.against.append("whether the root is stable was not measured: see its spectrum")
    return found


def _slow(e: Evidence) -> Verdict | None:
    """Return the verdict that a fixed point is still being approached, None where that is not shown.

    A residual that falls is not enough: it falls too on the way past a saddle, or into the ghost of a fold. The leading
    exponent must be negative as well, and be the rate of the fall where no exponential law is seen over a decade.
    """
    d, first = e.decay, e.first
    if not (first.fading or d.falling) or e.exponents is None or e.errors is None:
        return None
    leading, error = float(e.exponents[0]), float(e.errors[0])
    if not leading < -SIGMAS * error or d.kind is DecayKind.POWER_LAW:
        return None
    rate, doubt = d.rate, d.rate_error
    if d.kind is not DecayKind.EXPONENTIAL and first.fading and first.drift < PASSING:
        rate, doubt = -first.trend / e.steps, first.trend_error / e.steps
    gap = abs(leading + rate)
    # a rate that is not constant has a large error: a power law, over less than a decade
    sure = SIGMAS * math.hypot(doubt, error) <= SAME_RATE * rate
    if d.kind is DecayKind.EXPONENTIAL:
        text = [d.reason, f"the leading exponent is negative ({leading:+.2e} per step)"]
    elif sure and gap <= SAME_RATE * rate:
        text = [f"the state falls at {rate:.2e} per step, the rate of its leading exponent {leading:+.2e}"]
    else:
        return None
    found = Verdict(AttractorKind.SLOW, text)
    # the slower of both is left in the end; where they are far apart nothing is foretold
    slower = min(rate, -leading)
    if gap <= 0.2 * max(rate, -leading):
        found.predicted_steps = math.log(max(d.level, e.tol) / e.tol) / slower
    return found


def _moving(e: Evidence) -> Verdict:
    """Judge a sample that is neither at rest nor seen to come to rest."""
    undetermined = Verdict(AttractorKind.UNDETERMINED, [e.decay.reason] if e.decay.reason else [])
    o, missing = e.first, undetermined.against
    if e.decay.kind is DecayKind.POWER_LAW:
        undetermined.predicted_steps = e.decay.steps_to(e.tol, e.steps)
        missing.append(
            "a power law ends at a marginal root, or passes the ghost of a fold where there is none: look at the "
            "spectrum of the root (dyneq spectrum --at root)"
        )
        return undetermined
    if not math.isfinite(o.period) or o.drift > PASSING:
        missing.append(
            "the state passes on without returning: a ghost of a fold looks like this, and so does a slow mode; "
            "record more steps, and look at the spectrum of the root"
        )
        return undetermined
    if e.exponents is None or e.errors is None or not np.isfinite(e.exponents[0]):
        missing.append("Lyapunov exponents were not measured")
        return undetermined
    leading, limit = float(e.exponents[0]), threshold(e, 0)
    sign = f"leading exponent {leading:+.2e} per step, standard error {float(e.errors[0]):.0e}"
    if leading > limit:
        return _chaos(e, undetermined, sign)
    undetermined.evidence.append(f"{sign}: not positive")
    if leading > 0 and leading > SIGMAS * float(e.errors[0]) and leading * e.averaged > 2:
        missing.append("the leading exponent may be positive: average it over more steps")
        return undetermined
    if e.zero_one is not None and e.zero_one.chaotic:
        missing.append(f"the 0-1 test sees chaos (K = {e.zero_one.k:.2f}), the exponents do not")
        return undetermined
    if not _steady(e, missing):
        return undetermined
    two = len(e.exponents) > 1 and math.isfinite(float(e.exponents[1]))
    if e.dimension > 1 and not two:
        missing.append("a second exponent, which tells a cycle from a torus, was not measured")
        return undetermined
    if not two or float(e.exponents[1]) < -threshold(e, 1):
        return _cycle(e, undetermined)
    return _torus(e, undetermined)


def _chaos(e: Evidence, so_far: Verdict, sign: str) -> Verdict:
    """Chaos needs a positive exponent, the 0-1 test beside it, and that the state stays bounded."""
    so_far.evidence.append(f"{sign}: positive beyond {SIGMAS:g} errors")
    if e.zero_one is None or not math.isfinite(e.zero_one.k):
        samples = 0 if e.zero_one is None else e.zero_one.samples
        so_far.against.append(
            f"the record is too short for the 0-1 test ({samples} samples of its oscillation): record more steps"
        )
    elif not e.zero_one.chaotic:
        so_far.against.append(f"the 0-1 test does not see chaos (K = {e.zero_one.k:.2f} +- {e.zero_one.spread:.2f})")
    elif e.decay.kind is DecayKind.GROWTH or e.first.drift > PASSING / 2:
        so_far.against.append("the motion is not seen to stay bounded: record more steps")
    elif e.second_end:
        so_far.against.append(f"the second start {e.second_end}: a transient, or one attractor of several")
    else:
        so_far.kind = AttractorKind.CHAOS
        so_far.evidence.append(f"the 0-1 test sees chaos too (K = {e.zero_one.k:.2f}), and the motion is bounded")
    return so_far


def _steady(e: Evidence, missing: list[str]) -> bool:
    """Say whether the amplitude stands still, from two starts; else name what is missing."""
    o = e.first
    if o.periods < PERIODS:
        missing.append(f"the record holds {o.periods:.1f} periods, {PERIODS} are needed: record more steps")
    elif not o.stationary:
        missing.append(
            f"the amplitude does not stand still: parts of the record differ by {o.spread:.1%}, "
            f"trend {o.trend:+.1%} +- {o.trend_error:.1%}: relax deeper first, or record more steps"
        )
    elif e.second is None:
        missing.append(f"the second start {e.second_end}" if e.second_end else "a second start was not followed")
    else:
        return _agree(o, e.second, missing)
    return False


def _agree(a: Oscillation, b: Oscillation, missing: list[str]) -> bool:
    """Say whether two starts led to the same amplitude and period."""
    gap = abs(a.amplitude - b.amplitude) / max(a.amplitude, b.amplitude)
    if not gap <= SAME_AMPLITUDE:
        missing.append(
            f"two starts end with amplitudes that differ by {gap:.1%}: several attractors, a neutral family of orbits, "
            "or a slow approach; record more steps"
        )
        return False
    if a.misfit < PERIODIC:  # of a torus the strongest frequency need not be the same
        shift, error = abs(a.period - b.period), math.hypot(a.period_error, b.period_error)
        if not shift <= SIGMAS * error + 1e-3 * a.period:
            missing.append(f"two starts end with periods {a.period:.6g} and {b.period:.6g} steps")
            return False
    return True


def _cycle(e: Evidence, so_far: Verdict) -> Verdict:
    """A cycle: stationary amplitude from two starts, a signal of one frequency, all but one exponent negative."""
    o = e.first
    if not o.misfit <= PERIODIC:
        so_far.against.append(
            f"{o.misfit:.0%} of the signal is not periodic, although the exponents are those of a cycle: record more"
        )
        return so_far
    so_far.kind = AttractorKind.CYCLE
    so_far.evidence.append(
        f"the amplitude stands still over {o.periods:.0f} periods (parts agree within {o.spread:.1e}), and a second "
        f"start comes to the same"
    )
    if o.lock:
        so_far.evidence.append(f"the state returns exactly after {o.lock} steps")
    else:
        so_far.evidence.append(
            f"the signal is periodic but for {o.misfit:.1e} of it, with a period of {o.period:.8g} +- "
            f"{o.period_error:.0e} steps"
        )
    if e.exponents is not None and len(e.exponents) > 1:
        so_far.evidence.append(f"the second exponent is negative ({float(e.exponents[1]):+.2e} per step)")
    return so_far


def _torus(e: Evidence, so_far: Verdict) -> Verdict:
    """A torus: two exponents of 0, the third negative, no single period, and a 0-1 test that sees no chaos."""
    assert e.exponents is not None
    assert e.errors is not None
    o, missing = e.first, so_far.against
    second = f"second exponent {float(e.exponents[1]):+.2e}, standard error {float(e.errors[1]):.0e}"
    if o.misfit <= PERIODIC:
        missing.append(
            f"the signal has one period, but no exponent beside the first is seen to be negative ({second}): a weakly "
            "attracting cycle or a torus; average over more steps"
        )
    elif len(e.exponents) < 3 or not float(e.exponents[2]) < -threshold(e, 2):
        missing.append(f"two exponents are near 0 ({second}), and a third that is negative was not seen: no attractor")
    elif e.zero_one is None or not math.isfinite(e.zero_one.k):
        missing.append("the record is too short for the 0-1 test: record more steps")
    elif not e.zero_one.regular:
        missing.append(f"the 0-1 test leaves chaos open (K = {e.zero_one.k:.2f} +- {e.zero_one.spread:.2f})")
    elif abs(float(e.exponents[0])) > threshold(e, 0):
        missing.append("the first exponent is not 0 within its error")
    else:
        so_far.kind = AttractorKind.TORUS
        so_far.evidence.append(
            f"two exponents are 0 within their errors ({second}), the third is {float(e.exponents[2]):+.2e}; "
            f"{o.misfit:.0%} of the signal has another frequency; the 0-1 test sees no chaos (K = {e.zero_one.k:.2f})"
        )
    return so_far
