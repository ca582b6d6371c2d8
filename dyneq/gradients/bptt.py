"""Back-propagation through the unrolled relaxation, recomputed in segments.

The states at segment boundaries are stored on the way forward; on the way back each segment is run again with its
graph. With segments of sqrt(N) steps, N steps cost one extra forward pass and O(sqrt N) memory (Chen et al.,
arXiv:1604.06174).
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from dyneq.dynamics.residuals import residuals, sample_norm
from dyneq.gradients.base import Estimator, EstimatorParams, Gradient, ParameterList
from dyneq.systems.protocol import System


class BpttParams(EstimatorParams):
    """Options of :class:`Bptt`."""

    steps: int = Field(60, gt=0, description="unrolled steps N, all of them differentiated")
    segment: int | None = Field(None, gt=0, description="steps whose graph is held at once; ceil(sqrt N) if None")


class Bptt(Estimator):
    """Differentiate N unrolled steps of z <- z + eps F(z) exactly, including the path through z_0.

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
        steps = self.params.steps
        segment = self.params.segment or math.isqrt(steps - 1) + 1
        starts = list(range(0, steps, segment))
        boundaries = []
        with torch.no_grad():
            z = system.initial_state().detach()
            for start in starts:
                boundaries.append(z)
                z = _unroll(system, z, min(segment, steps - start))
        with torch.enable_grad():
            leaf = z.requires_grad_()
            loss = system.loss(leaf)
            (cotangent,) = parameters.add(loss.mean(), also=[leaf])
            loss_gradient = cotangent
            for start, boundary in zip(reversed(starts), reversed(boundaries), strict=True):
                leaf = boundary.requires_grad_()
                out = _unroll(system, leaf, min(segment, steps - start))
                (cotangent,) = parameters.add(out, cotangent, also=[leaf])
            parameters.add(system.initial_state(), cotangent)
        state = z.detach()
        with torch.no_grad():
            residual = residuals(system, state).force
        diagnostics = {
            "force_residual": residual,
            "loss_gradient_norm": sample_norm(loss_gradient),
            "input_cotangent_norm": sample_norm(cotangent),
        }
        return Gradient(parameters.grouped(), state, loss.detach(), diagnostics)


def _unroll(system: System, z: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        z = torch.add(z, system.force(z), alpha=system.eps)
    return z
