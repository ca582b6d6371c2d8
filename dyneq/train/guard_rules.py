"""What the guard makes of a look: calm, a warning, or a run that is broken already."""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dyneq.train.guard_look import REST, Look
from dyneq.train.guard_pulse import JUMP
from dyneq.train.guard_trend import Forecast, forecast
from dyneq.train.sections import GuardSection

#: Leading multiplier from which its trend counts: early growth, as in warm-up, ends below it by itself.
NEAR = 0.95
#: Share of their bounds from which trends of residuals count, for the same reason.
NEAR_SHARE = 0.1
#: Force residual after the deep relaxation at which it counts as no longer settling, for the forecast of its trend.
LATE = 1e-2
#: Force residual of the worst sample of training batches at which a gradient through it can be anything.
LATE_T1 = 0.1
#: Growth of that residual over the last stable look's that is a strong one, if it is at LATE as well.
GROWN = 10.0
#: Share of the samples that must not settle for a run to be broken; fewer are a warning.
LOST = 0.5


class Mood(enum.StrEnum):
    """How a run stands."""

    CALM = "calm"
    """Nothing is foreseen within the horizon."""
    WARNING = "warning"
    """A multiplier will be at 1 within the horizon, is there, or a sample does not settle."""
    BROKEN = "broken"
    """The fixed points are lost, or the loss or the gradient is."""


@dataclass(frozen=True)
class Verdict:
    """How a run stands, and why.

    Attributes:
        mood: How.
        why: The reason with its numbers, to go on after "because"; empty when calm.
        multiplier: When the leading multiplier will be at 1.
        residual: When the deep force residual will be at :data:`LATE`.
        t1: When the worst force residual of training batches will be at :data:`LATE_T1`.
        soon: Whether it is there already, or will be before the next look.
    """

    mood: Mood
    why: str
    multiplier: Forecast
    residual: Forecast
    t1: Forecast
    soon: bool = False


def judge(section: GuardSection, looks: Sequence[Look], stable: Look | None, blown: str = "") -> Verdict:
    """Return how a run stands.

    Args:
        section: The guard of the recipe.
        looks: Those the trend is fitted to, the last one is now.
        stable: The last stable one; None if there was none yet.
        blown: What tells without a look that it is broken, from :func:`blown_up`; empty if nothing does.
    """
    now, at = looks[-1], [float(look.at) for look in looks]
    multiplier = forecast(at, [look.modulus for look in looks], 1.0)
    # residuals grow by factors, so their logarithms are what a line fits; at rest there is no trend to be told
    heights = [math.log10(max(look.residual, REST)) for look in looks]
    residual = forecast(at, heights, math.log10(LATE)) if now.residual > REST else Forecast(math.inf)
    lengths = [math.log10(look.t1) if look.t1 is not None and look.t1 > 0 else math.nan for look in looks]
    late = forecast(at, lengths, math.log10(LATE_T1))

    def verdict(mood: Mood, why: str, soon: bool = False) -> Verdict:
        return Verdict(mood, why, multiplier, residual, late, soon)

    if blown:
        return verdict(Mood.BROKEN, f"{blown} ({now})", soon=True)
    crossed = not now.modulus < 1
    grown = stable is not None and now.residual >= max(LATE, GROWN * stable.residual)
    if stable is not None and now.restless >= LOST * now.samples and (crossed or grown):
        then = f"at the last stable look the multiplier was {stable.modulus:.4f}, the residual {stable.residual:.1e}"
        return verdict(Mood.BROKEN, f"the relaxation no longer settles: {now}; {then}", soon=True)
    if crossed or now.restless:
        return verdict(Mood.WARNING, str(now), soon=True)
    watched = [
        ("leading multiplier", 1, multiplier, now.modulus >= NEAR),
        ("force residual after the deep relaxation", LATE, residual, now.residual >= NEAR_SHARE * LATE),
        ("worst force residual in training", LATE_T1, late, now.t1 is not None and now.t1 >= NEAR_SHARE * LATE_T1),
    ]
    coming = [
        (told.updates, f"the {what} {_coming(told, bound)}")
        for what, bound, told, near in watched
        if near and told.rises and told.updates is not None and told.updates <= section.horizon
    ]
    before = [look.t1 for look in looks[:-1] if look.t1 is not None]
    if now.t1 is not None and now.t1 >= LATE_T1 and before and now.t1 >= JUMP * max(before):
        coming.append((0.0, f"the worst force residual in training jumped from {before[-1]:.1e} to {now.t1:.1e}"))
    if not coming:
        return verdict(Mood.CALM, "")
    why = f"{' and '.join(sentence for _, sentence in coming)} ({now})"
    return verdict(Mood.WARNING, why, soon=min(updates for updates, _ in coming) <= section.every)


def blown_up(section: GuardSection, losses: Mapping[str, tuple[float, float]], spike: str) -> str:
    """Return what tells without a look that a run is broken; empty if nothing does.

    Args:
        section: The guard of the recipe.
        losses: By their names, losses as they are and the lowest there were.
        spike: What happened to the gradient's norm; empty if nothing did.
    """
    return "; ".join(
        [
            *(
                f"the {name} is {loss:.3f}, more than {section.blow_up:g} above its best, {best:.3f}"
                for name, (loss, best) in losses.items()
                if not loss <= best + section.blow_up
            ),
            *([spike] if spike else []),
        ]
    )


def _coming(told: Forecast, bound: float) -> str:
    return f"is above {bound:g} and rises" if told.latest == 0 else f"will be at {bound:g} {told}"
