"""``jacreg``: the norm of the Jacobian of the branches, with a weight that a controller moves by the residual."""

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dyneq.probes.branch_norm import ALL, branch_jacobian_norm
from dyneq.probes.penalties.base import Measured, Penalty, PenaltyParams
from dyneq.systems.protocol import System


class JacregParams(PenaltyParams):
    """Options of jacreg; ``target`` is a step residual at eps 0.1, a tenth of the force residual."""

    weight: float = Field(0.1, gt=0, description="lambda_j: what it stays at (frozen), or starts from (residual)")
    controller: Literal["frozen", "residual"] = Field(
        "frozen", description="residual: multiplied by (residual/target)^gain in every update"
    )
    target: float = Field(2e-3, gt=0, description="step residual at eps 0.1 that the controller steers to")
    gain: float = Field(0.3, gt=0, description="exponent of the controller")
    smoothing: float = Field(0.9, ge=0, lt=1, description="decay of the moving mean of the residual it reads")
    floor: float = Field(0.1, gt=0, description="smallest lambda_j of the controller")
    ceiling: float = Field(16.0, gt=0, description="largest lambda_j of the controller")
    vectors: int = Field(1, gt=0, description="random vectors of the estimate")

    @model_validator(mode="after")
    def _ordered(self) -> "JacregParams":
        if self.controller == "residual" and not self.floor <= self.weight <= self.ceiling:
            raise ValueError(
                f"the controller moves lambda_j between floor {self.floor} and ceiling {self.ceiling}, but the weight "
                f"it starts from is {self.weight}"
            )
        return self


class Jacreg(Penalty):
    """norm_F of the Jacobian of the branches (J without its decay), by Hutchinson's estimate, at the relaxed state.

    Under the controller, lambda_j <- clip(lambda_j (r/target)^gain) with r the moving mean of the step residual. A
    residual that is not finite drives it as one of 1 would.
    """

    name = "jacreg"
    Params = JacregParams
    params: JacregParams
    random = True
    what = "norm_F of the Jacobian of the branches"
    units = "1/time"

    def __init__(self, params: JacregParams | None = None) -> None:
        super().__init__(params)
        self._weight, self._smoothed = self.params.weight, None

    _smoothed: float | None

    def measure(self, system: System, z: Tensor, generator: torch.Generator) -> Measured:
        """Return the term; its measure is the norm the probe ``nonnormality`` reports.

        Raises:
            UsageError: If the system declares no branches.
        """
        norm = branch_jacobian_norm(system, z.detach(), generator, self.params.vectors)[ALL]
        return Measured(norm, norm.detach(), norm.new_ones(()))

    @property
    def controlled(self) -> bool:
        """Whether lambda_j follows the residual."""
        return self.params.controller != "frozen"

    @property
    def weight(self) -> float:
        """lambda_j as the controller has it."""
        return self._weight

    def observe(self, residual: float) -> None:
        """Move lambda_j by the residual."""
        params = self.params
        if not self.controlled:
            return
        residual = residual if 0 <= residual < 1 else 1.0  # infinite and NaN come out as 1 here
        old = residual if self._smoothed is None else self._smoothed
        self._smoothed = params.smoothing * old + (1 - params.smoothing) * residual
        moved = self._weight * (self._smoothed / params.target) ** params.gain
        self._weight = min(max(moved, params.floor), params.ceiling)

    def state(self) -> dict[str, Any]:
        """Return lambda_j and the moving mean."""
        return {"weight": self._weight, "smoothed": self._smoothed}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from them."""
        self._weight, self._smoothed = state["weight"], state["smoothed"]
