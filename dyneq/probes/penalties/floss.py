"""``floss``: a hinge on the contraction rate over a few relaxation steps, the early linear signal of instability."""

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dyneq.dynamics.residuals import sample_norm
from dyneq.probes.contraction import flow_rate, tangent_rates
from dyneq.probes.penalties.base import Measured, Penalty, PenaltyParams, hinge
from dyneq.systems.protocol import System


class FlossParams(PenaltyParams):
    """Options of floss."""

    weight: float = Field(0.3, gt=0, description="factor of the term; with scale=task, its share of the task gradient")
    limit: float | None = Field(
        1.0, gt=0, description="largest norm of the term's gradient, as a share of the task gradient's; none if None"
    )
    every: int = Field(3, gt=0, description="updates from one application to the next")
    samples: int | None = Field(8, gt=0, description="samples of the batch it is taken over, drawn anew; all if None")
    steps: int = Field(12, gt=0, description="relaxation steps q the rate is taken over and differentiated through")
    margin: float = Field(0.3, description="contraction asked for: the hinge opens above a rate of -margin per time")
    rest: float = Field(
        1e-3, ge=0, description="force residual up to which a sample rests and adds nothing along the flow"
    )
    full: float = Field(
        1e-2, gt=0, description="force residual from which a sample counts in full; its share is linear in between"
    )
    tangents: int = Field(0, ge=0, description="tangent vectors k; 0 takes the rate along the flow")

    @model_validator(mode="after")
    def _ordered(self) -> "FlossParams":
        if self.rest >= self.full:
            raise ValueError(f"a sample rests below rest={self.rest:g}, which should be below full={self.full:g}")
        return self


class Floss(Penalty):
    """max(0, rate + margin) over the last q steps, differentiated through them from a fixed start.

    Along the flow the rate is that of the increments of z. The closer a sample is to rest, the less its increments say
    about the weights and the larger the derivative of their logarithm is, with no bound; so a sample's hinge is
    multiplied by a share that is 0 up to a force residual of ``rest`` and 1 from ``full`` on. Along k tangent vectors,
    which do not shrink with the residual, it is the mean of their hinges, with a QR at every step.
    """

    name = "floss"
    Params = FlossParams
    params: FlossParams
    what = "hinge on the contraction rate"
    units = "1/time"

    def measure(self, system: System, z: Tensor, generator: torch.Generator) -> Measured:
        """Return the term; its measure is the contraction rate the probe ``ftle`` reports (the largest of k).

        Raises:
            UsageError: If more tangents are asked for than the state has dimensions.
        """
        params = self.params
        with torch.enable_grad():
            if params.tangents:
                rates = tangent_rates(system, z, params.steps, params.tangents, generator)
            else:
                rates = flow_rate(system, z, params.steps)[None]
            value = hinge(rates + params.margin).mean(0)
            if not params.tangents:
                # both factors are differentiated, so that the gradient is that of the value
                beyond = (sample_norm(system.force(z)) / sample_norm(z) - params.rest) / (params.full - params.rest)
                value = value * hinge(beyond).clamp(max=1.0)
        worst = rates.detach().nan_to_num(nan=-torch.inf, posinf=torch.inf).amax(0)
        active = (value.detach() > 0).to(value.dtype).mean()
        return Measured(value, torch.where(worst.isinf(), torch.nan, worst), active)
