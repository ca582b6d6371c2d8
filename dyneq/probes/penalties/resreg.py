"""``resreg``: the squared step residual at the state the relaxation reached, so that the weights feel that it is late.

Equilibrium gradients differentiate the root and never feel how far from it the relaxation stopped; BPTT does. This
term adds it back. At the very state it is a cliff: next to nothing until the spectral radius is near 1, and what it
asks for then is that this state be a fixed point, not that it be a stable one. Taken ``through`` further steps, it asks
that the residual shrink.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dyneq.dynamics.residuals import residuals
from dyneq.probes.penalties.base import Measured, Penalty, PenaltyParams
from dyneq.probes.residual_measure import resreg
from dyneq.systems.protocol import System


class ResregParams(PenaltyParams):
    """Options of resreg; its residuals are force residuals, which do not depend on eps."""

    weight: float = Field(0.2, gt=0, description="with scale=task, its largest share of the task gradient's norm")
    scale: Literal["absolute", "task"] = Field(
        "task", description="absolute: weight times the value; task: scaled to the norm of the task's gradient"
    )
    full: float = Field(0.2, gt=0, description="force residual from which a task-scaled term applies in full")
    dead: float = Field(7e-3, ge=0, description="force residual below which a sample adds nothing")
    through: int = Field(
        0, ge=0, description="relaxation steps after which the residual is taken and through which it is differentiated"
    )


class Resreg(Penalty):
    """norm(eps F(z))^2/norm(z)^2 at the relaxed state, where the force residual is above the dead band.

    Task-scaled, its norm is weight times the task gradient's, times the mean over samples of min(1, force
    residual/full), which is 0 within the dead band.
    """

    name = "resreg"
    Params = ResregParams
    params: ResregParams
    what = "squared step residual"
    units = "1"

    def measure(self, system: System, z: Tensor, generator: torch.Generator) -> Measured:
        """Return the term; its measure is the squared step residual the probe ``residual`` reports, so much deeper.

        A sample that overflows on the way has no measure (NaN) and adds nothing to the value.
        """
        with torch.no_grad():
            force = residuals(system, z).force
        with torch.enable_grad():
            squared = _finite_ones(system, z, self.params.through)
            late = force > self.params.dead
            value = torch.where(late & ~squared.isnan(), squared, torch.zeros_like(squared))
        reach = torch.where(late, (force / self.params.full).clamp(max=1.0), torch.zeros_like(force))
        return Measured(value, squared.detach(), reach.mean())


def _finite_ones(system: System, z: Tensor, through: int) -> Tensor:
    """Return the squared step residual ``[sample]``; NaN, without a derivative, where it is not finite."""
    squared = resreg(system, z, through)
    finite = squared.isfinite()
    if finite.all():
        return squared
    # left in the graph, such a sample would make the derivative of every other one NaN
    index = finite.nonzero().flatten()
    out = torch.full_like(squared, torch.nan)
    return out if not len(index) else out.index_put((index,), resreg(system.select(index), z[index], through))
