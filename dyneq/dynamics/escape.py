"""Whether a state grows without bound. Crossing some size does not show it: a root may be large, a transient long."""

import enum

import torch
from torch import Tensor

from dyneq.dynamics.judgement import Judgement
from dyneq.dynamics.residuals import sample_norm
from dyneq.dynamics.verdict import Confidence, Verdict
from dyneq.systems.protocol import System, Time

#: Share of the step of a flow at which growth is looked for.
SHARE = 32
#: Steps it is looked for.
STEPS = 32000
#: A state that has grown by this factor is followed no further and called lost.
LOST = 1e16
#: A state that stops being finite at less than this many times its size has met a force that is not finite.
BLOWN = 1e6
#: A state of this size is not ordinary whatever it began with.
HUGE = 1e20
#: The host looks once in this many steps.
LOOK = 200


class Escape(enum.StrEnum):
    """What is seen of a sample."""

    LOST = "lost"
    """It grows by sixteen orders of magnitude, or to overflow."""
    NOT_FINITE = "not-finite"
    """The force is not finite at a state of ordinary size."""
    OPEN = "open"
    """Neither within the steps taken."""


@torch.no_grad()
def escapes(system: System, z: Tensor) -> list[Escape]:
    """Follow states at a much smaller step (a map as it is) and say what becomes of each.

    Args:
        system: The system.
        z: States ``[sample, ...]``; those that are not finite are followed from the initial state.
    """
    start = system.initial_state().detach()
    wide = (-1,) + (1,) * (z.ndim - 1)
    usable = torch.isfinite(z).flatten(1).all(1)
    y = torch.where(usable.view(wide), z, start)
    size = torch.maximum(sample_norm(y), sample_norm(start)).clamp(min=1.0)
    eps = system.eps / SHARE if system.time is Time.FLOW else 1.0
    last = sample_norm(y)
    alive = torch.ones(len(y), dtype=torch.bool, device=y.device)
    for n in range(STEPS):
        moved = y + eps * system.force(y)
        norm = sample_norm(moved)
        going = alive & torch.isfinite(norm) & (norm <= LOST * size)
        last = torch.where(alive & torch.isfinite(norm), norm, last)
        y = torch.where(going.view(wide), moved, y)
        alive = going
        if n % LOOK == 0 and not bool(alive.any()):
            break
    found = []
    for still, grown in zip(alive.tolist(), ((last > BLOWN * size) | (last > HUGE)).tolist(), strict=True):
        found.append(Escape.OPEN if still else Escape.LOST if grown else Escape.NOT_FINITE)
    return found


def enter_escape(judged: Judgement, seen: Escape, confidence: Confidence, flow: bool) -> None:
    """Enter what becomes of a diverging sample that is followed further.

    Args:
        judged: Where it is entered.
        seen: What is seen of it.
        confidence: What the verdict rests on if it is lost.
        flow: Whether the system is a flow.
    """
    if seen is Escape.LOST:
        judged.decide(
            Verdict.DIVERGED,
            confidence,
            why=f"it grows without bound{f', at a {SHARE} times smaller step too' if flow else ''}",
        )
    elif seen is Escape.NOT_FINITE:
        judged.undetermined(
            "the force is not finite at a state of ordinary size: it left its domain, or weights are broken"
        )
    else:
        judged.undetermined("it grows large, but not seen to be without bound: a large root or a transient is open")
