"""The free phase: the relaxation before any nudge, to a given depth or on to a given force residual."""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from dyneq.dynamics.relax import relax
from dyneq.gradients.base import EstimatorParams, Mark
from dyneq.systems.protocol import System

#: Force residual up to which a state counts as a root where the options name no other. The error of an equilibrium
#: gradient is of this size times the condition of J.
FREE_TOLERANCE = 1e-4
#: Steps between two looks at the residual while a free phase is refined.
REFINE_EVERY = 20


class FreeParams(EstimatorParams):
    """Options of the free phase, shared by all estimators that begin with one."""

    t1: int = Field(60, gt=0, description="steps of the free relaxation")
    t1_tol: float | None = Field(
        None,
        gt=0,
        description="force residual to which the free phase is refined after t1 steps; no refinement if None",
    )
    t1_max: int = Field(2000, gt=0, description="most steps of the free phase when it is refined")


@dataclass(frozen=True)
class FreePhase:
    """A relaxed state and the loss there.

    Attributes:
        z: State ``[sample, ...]``, detached.
        residual: Force residual norm(F)/norm(z) ``[sample]`` at :attr:`z`.
        residual_t1: The same after ``t1`` steps, before any refinement: what a controller reads.
        steps: Steps taken.
        loss: Loss ``[sample]`` at :attr:`z`.
        g: dL/dz ``[sample, ...]``, L the mean of the loss over samples.
        tolerance: Force residual up to which a sample counts as converged.
        z_t1: State after ``t1`` steps, before any refinement; None where that is :attr:`z`.
    """

    z: Tensor
    residual: Tensor
    residual_t1: Tensor
    steps: int
    loss: Tensor
    g: Tensor
    tolerance: float
    z_t1: Tensor | None = None

    @property
    def marks(self) -> dict[Mark, Tensor]:
        """Which samples have not converged, bool ``[sample]``; NaN counts as not."""
        return {Mark.FREE_NOT_CONVERGED: ~(self.residual <= self.tolerance)}


def free_phase(system: System, t1: int, t1_tol: float | None = None, t1_max: int = 2000) -> FreePhase:
    """Relax ``t1`` steps, and on, if a tolerance is given, until every sample's force residual is within it.

    Args:
        system: What is relaxed; it has a loss.
        t1: Steps.
        t1_tol: Force residual at which the refinement ends; no refinement if None.
        t1_max: Most steps in all.
    """
    relaxed = relax(system, t1)
    at_t1, z_t1 = relaxed.residuals.force, relaxed.z.detach()
    if t1_tol is not None:
        # a sample that diverged never gets there, and must not keep the others going
        while relaxed.depth < t1_max and bool((relaxed.residuals.force > t1_tol).any()) and not relaxed.stationary:
            relaxed = relax(system, min(relaxed.depth + REFINE_EVERY, t1_max), start=relaxed)
    z = relaxed.z.detach()
    loss, g = loss_and_gradient(system, z)
    tolerance = FREE_TOLERANCE if t1_tol is None else t1_tol
    return FreePhase(z, relaxed.residuals.force, at_t1, relaxed.steps, loss, g, tolerance, z_t1)


def loss_and_gradient(system: System, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each sample ``[sample]`` and the gradient of its mean with respect to ``z``, detached."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        loss = system.loss(leaf)
        (g,) = torch.autograd.grad(loss.mean(), leaf)
    return loss.detach(), g
