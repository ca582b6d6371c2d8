"""Back-propagation through the unrolled relaxation: the exact gradient of the loss after N steps."""

import torch
from pydantic import Field

from dyneq.dynamics.residuals import residuals, sample_norm
from dyneq.gradients.base import Estimator, EstimatorParams, Gradient, ParameterList
from dyneq.gradients.unroll import PER_STEP, differentiate_steps
from dyneq.systems.protocol import System


class BpttParams(EstimatorParams):
    """Options of :class:`Bptt`."""

    steps: int = Field(60, gt=0, description="unrolled steps N, all of them differentiated")
    segment: int | None = Field(None, gt=0, description="steps whose graph is held at once; ceil(sqrt N) if None")


class Bptt(Estimator):
    """Differentiate N unrolled steps of z <- z + eps F(z) exactly, including the path through z_0.

    It is the gradient of the loss after N steps wherever the state has got to by then, so it carries no mark.

    Diagnostics: ``force_residual`` at z_N; ``loss_gradient_norm``, norm(dL/dz_N); ``input_cotangent_norm``,
    norm(dL/dz_0), which grows where the trajectory is unstable.
    """

    name = "bptt"
    main = "steps"
    depth = "steps"
    Params = BpttParams
    params: BpttParams

    def gradient(self, system: System) -> Gradient:
        """Return the gradient of the loss after N steps; equal to plain unrolling up to rounding.

        Raises:
            DyneqError: If the system has no loss or no parameters, or a parameter takes no part in it.
        """
        parameters = ParameterList(system)
        steps, z = self.params.steps, system.initial_state().detach()
        found = differentiate_steps(system, parameters, z, steps, system.eps, self.params.segment)
        with torch.enable_grad():
            parameters.add(system.initial_state(), found.cotangent)
        with torch.no_grad():
            residual = residuals(system, found.state).force
        diagnostics = {
            "force_residual": residual,
            "loss_gradient_norm": sample_norm(found.loss_gradient),
            "input_cotangent_norm": sample_norm(found.cotangent),
        }
        return Gradient(parameters.grouped(), found.state, found.loss, diagnostics, cost=PER_STEP * steps + 1)
