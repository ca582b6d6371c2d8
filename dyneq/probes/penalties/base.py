"""What a penalty is: a probe's measure made into a term beside the loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from dyneq.settings import Settings
from dyneq.systems.protocol import System


class PenaltyParams(Settings):
    """What every penalty can be told; unknown options are errors, and they never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weight: float = Field(
        1.0, gt=0, description="factor of the term; with scale=task, its share of the task gradient's norm"
    )
    scale: Literal["absolute", "task"] = Field(
        "absolute", description="absolute: weight times the value; task: scaled to the norm of the task's gradient"
    )
    limit: float | None = Field(
        None, gt=0, description="largest norm of the term's gradient, as a share of the task gradient's; none if None"
    )
    samples: int | None = Field(None, gt=0, description="samples of the batch it is taken over; all if None")
    pick: Literal["random", "worst"] = Field(
        "random", description="which samples: drawn anew, or those with the largest force residuals"
    )
    every: int = Field(1, gt=0, description="updates from one application to the next")
    start: int = Field(0, ge=0, description="updates before the first application")
    ramp: int = Field(0, ge=0, description="updates over which its weight then rises linearly")
    until: int | None = Field(None, gt=0, description="last update it is applied in; no end if None")

    @model_validator(mode="after")
    def _acts(self) -> Self:
        if self.until is not None and self.until <= self.start:
            raise ValueError(f"until={self.until} should be above start={self.start}, or it is never applied")
        return self

    def share(self, step: int) -> float:
        """Return the share of its weight that the schedule has in the update number ``step``, counted from 1."""
        since = step - self.start
        if since < 1 or (self.until is not None and step > self.until):
            return 0.0
        return min(1.0, since / self.ramp) if self.ramp else 1.0

    def factor(self, step: int) -> float:
        """Return :meth:`share` in an update it is applied in, and 0 in those between."""
        return 0.0 if (step - self.start - 1) % self.every else self.share(step)


@dataclass(frozen=True)
class Measured:
    """A penalty's value on some samples.

    Attributes:
        value: The term ``[sample]``, 0 within its dead band; differentiable in the parameters, the state held fixed
            unless the penalty says otherwise.
        measure: The probe's measure behind it ``[sample]``, detached; NaN where it is not defined.
        severity: How much of a task-scaled term applies, in [0, 1], a scalar.
    """

    value: Tensor
    measure: Tensor
    severity: Tensor


class Penalty(ABC):
    """A term beside the loss.

    Args:
        params: Its options; the defaults if None.

    Attributes:
        name: Its name in specs such as ``floss:weight=0.1``; the name of its entry point.
        random: Whether it draws random vectors, so that one value is an estimate.
        what: What its value is, a few words.
        units: Units of the value.
    """

    name: ClassVar[str]
    Params: ClassVar[type[PenaltyParams]]
    random: ClassVar[bool] = False
    what: ClassVar[str]
    units: ClassVar[str]

    def __init__(self, params: PenaltyParams | None = None) -> None:
        self.params = self.Params.model_validate({}) if params is None else params

    @abstractmethod
    def measure(self, system: System, z: Tensor, generator: torch.Generator) -> Measured:
        """Return the term on a bound batch.

        Args:
            system: The system, bound while gradients were enabled.
            z: State ``[sample, ...]`` the free relaxation reached; detached.
            generator: Source of random vectors, on the CPU.

        Raises:
            DyneqError: If the system has not what the penalty needs.
        """

    def apply(self, system: System, z: Tensor, generator: torch.Generator) -> Measured:
        """Return the term in the course of a training, where a penalty may reuse what it found in earlier updates.

        By default it is measured afresh; arguments and errors as for :meth:`measure`.
        """
        return self.measure(system, z, generator)

    @property
    def weight(self) -> float:
        """The weight before the schedule; a controller may move it."""
        return self.params.weight

    @property
    def controlled(self) -> bool:
        """Whether a controller moves the weight."""
        return False

    def observe(self, residual: float) -> None:
        """Take note of a batch's step residual at eps 0.1 (a tenth of its force residual, median over samples)."""
        return

    def state(self) -> dict[str, Any]:
        """Return what it must remember to continue, plain values and tensors."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` gave."""
        return

    def to_plain(self) -> dict[str, Any]:
        """Return its options as plain values, the inverse of :func:`dyneq.probes.penalties.registry.build`."""
        return self.params.model_dump(exclude_none=True)


def hinge(excess: Tensor) -> Tensor:
    """Return max(excess, 0), 0 where it is NaN; the derivative within the dead band is exactly 0."""
    active = excess > 0
    return torch.where(active, excess, torch.zeros_like(excess))
