"""Truncated back-propagation through the equilibration: only the last K steps of the relaxation are differentiated."""

import torch
from pydantic import Field
from torch import Tensor

from dyneq.dynamics.relax import relax
from dyneq.dynamics.residuals import residuals, sample_norm
from dyneq.gradients.base import Estimator, EstimatorParams, Gradient, ParameterList
from dyneq.gradients.unroll import PER_STEP, differentiate_steps
from dyneq.systems.protocol import System


class TbpteParams(EstimatorParams):
    """Options of :class:`Tbpte`."""

    steps: int = Field(10, gt=0, description="steps K that are differentiated, the last of the t1")
    t1: int = Field(60, gt=0, description="steps of the free relaxation, the K among them")
    segment: int | None = Field(None, gt=0, description="steps whose graph is held at once; ceil(sqrt K) if None")


class Tbpte(Estimator):
    """Relax t1 steps and differentiate the last K of them; what came before counts as given.

    With K >= t1 nothing is cut off, the path through z_0 is included, and the result is that of ``bptt``. The error of
    a truncation is what the cotangent at the cut would still have passed on, so that is reported.

    Diagnostics: ``force_residual`` at z_t1; ``loss_gradient_norm``, norm(dL/dz_t1); ``cut_cotangent_norm``,
    norm(dL/dz) where the path was cut, 0 where it was not.
    """

    name = "tbpte"
    main = "steps"
    depth = "t1"
    Params = TbpteParams
    params: TbpteParams

    def gradient(self, system: System) -> Gradient:
        """Return the truncated gradient of the loss after t1 steps.

        Raises:
            DyneqError: If the system has no loss or no parameters, or a parameter takes no part in it.
        """
        parameters = ParameterList(system)
        steps, before = min(self.params.steps, self.params.t1), max(self.params.t1 - self.params.steps, 0)
        z, cost = system.initial_state().detach(), PER_STEP * steps + 1
        if before:
            relaxed = relax(system, before)
            z, cost = relaxed.z, cost + relaxed.steps + 1
        found = differentiate_steps(system, parameters, z, steps, system.eps, self.params.segment)
        cut: Tensor = sample_norm(found.cotangent)
        if not before:
            with torch.enable_grad():
                parameters.add(system.initial_state(), found.cotangent)
            cut = torch.zeros_like(cut)
        with torch.no_grad():
            residual = residuals(system, found.state).force
        diagnostics = {
            "force_residual": residual,
            "loss_gradient_norm": sample_norm(found.loss_gradient),
            "cut_cotangent_norm": cut,
        }
        return Gradient(parameters.grouped(), found.state, found.loss, diagnostics, cost=cost)
