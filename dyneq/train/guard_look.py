"""One look of the guard: how far a deep relaxation of a few samples settles, and its leading multiplier there."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from dyneq.dynamics.relax import Relaxation, relax
from dyneq.dynamics.trajectory import Recorder
from dyneq.probes.leading import leading_modulus
from dyneq.systems.protocol import System

#: Force residual up to which a sample is at rest, whether it falls further or not.
REST = 1e-4
#: Largest residual of the last quarter of a relaxation over that of the quarter before, below which it is falling.
#: A cycle keeps it at 1, and its period, 2 pi/(eps Im mu), fits into a quarter.
FALLING = 0.9
#: Force residual at which a relaxation is deep enough for the multipliers, whatever depth was asked for.
DEEP = 1e-5
#: Steps between two looks at whether it is.
STRETCH = 50


@dataclass(frozen=True)
class Look:
    """What was seen of the weights.

    Attributes:
        at: When, in updates along the way that led to these weights: what a rollback undid does not count.
        modulus: Largest modulus of the leading multipliers over samples and tokens; NaN if no state was finite.
        residual: Force residual after the deep relaxation, the worst sample's; infinite if one was not finite.
        restless: Samples neither at rest nor falling.
        samples: Samples looked at.
        depth: Relaxation steps taken.
        t1: Force residual of the worst sample of a training batch, the median since the look before; None if there
            were none.
        loss: Mean loss of its samples at the deeply relaxed state; infinite if it is not finite.
    """

    at: int
    modulus: float
    residual: float
    restless: int
    samples: int
    depth: int
    t1: float | None = None
    loss: float = math.inf

    @property
    def stable(self) -> bool:
        """Whether every sample settles and every multiplier is below 1."""
        return self.restless == 0 and self.modulus < 1

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, the inverse of :meth:`of`."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """Return the look that :meth:`to_plain` described."""
        return cls(**plain)

    def __str__(self) -> str:
        settles = "all settle" if not self.restless else f"{self.restless} of {self.samples} samples do not settle"
        training = "" if self.t1 is None else f"{self.t1:.1e} in training and "
        return (
            f"leading multiplier {self.modulus:.4f}, worst force residual {training}{self.residual:.1e} after "
            f"{self.depth} steps, {settles}"
        )


@torch.no_grad()
def take_look(system: System, depth: int, generator: torch.Generator, at: int = 0, t1: float | None = None) -> Look:
    """Look at a system.

    The relaxation starts at z_0 and ends before ``depth`` where every sample is at a force residual of :data:`DEEP`.

    Args:
        system: A few samples, bound.
        depth: Relaxation steps.
        generator: Randomness of Krylov starts, where blocks are too large for dense algebra.
        at: When the look is taken, in updates.
        t1: Worst force residual of the training batches since the look before.
    """
    relaxed, heights = _deep(system, depth)
    residual = relaxed.residuals.force
    finite = torch.isfinite(relaxed.z).flatten(1).all(1) & torch.isfinite(residual)
    quarter = max(1, len(heights) // 4)
    last, before = heights[-quarter:].amax(0), heights[-2 * quarter : -quarter].amax(0)
    settled = finite & ((residual <= REST) | (last < FALLING * before))
    modulus = leading_modulus(system, relaxed.z, generator)
    worst = float(residual.max()) if bool(finite.all()) else math.inf
    loss = float(system.loss(relaxed.z).mean())
    loss = loss if math.isfinite(loss) else math.inf
    return Look(at, modulus, worst, int((~settled).sum()), len(residual), relaxed.steps, t1, loss)


def _deep(system: System, depth: int) -> tuple[Relaxation, Tensor]:
    """Return a deeply relaxed state and the force residual of every step ``[step, sample]``."""
    heights, relaxed = [], None
    for until in range(min(STRETCH, depth), depth + STRETCH, STRETCH):
        recorder = Recorder(system.eps, depth)
        relaxed = relax(system, min(until, depth), start=relaxed, recorder=recorder)
        assert relaxed.trajectory is not None
        heights.append(relaxed.trajectory.force_residual)
        if relaxed.stationary or bool((relaxed.residuals.force <= DEEP).all()):
            break
    assert relaxed is not None
    return relaxed, torch.cat(heights)
