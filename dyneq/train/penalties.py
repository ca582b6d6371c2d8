"""The seam for penalties: what the trainer adds to an estimator's gradient before the step."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dyneq.gradients.base import Gradient, Grouped
from dyneq.systems.protocol import System


@dataclass(frozen=True)
class Contribution:
    """What a penalty adds to one update.

    Attributes:
        value: The measure, a scalar, for the log.
        parameters: Its gradient ``{group: {name: tensor}}``; parameters it leaves alone may be absent.
    """

    value: Tensor
    parameters: Grouped


class Penalty(Protocol):
    """A term beside the loss. The task's gradient is at hand, so that a penalty can be scaled to it."""

    name: str

    def contribution(self, system: System, gradient: Gradient) -> Contribution:
        """Return value and gradient of the term for a bound batch.

        Args:
            system: The system the task's gradient was taken of.
            gradient: The task's gradient, with the state it was read out at.
        """


def combine(gradient: Grouped, contribution: Contribution) -> Grouped:
    """Return the sum of a gradient and a contribution."""
    return {
        group: {
            name: value + extra if (extra := contribution.parameters.get(group, {}).get(name)) is not None else value
            for name, value in members.items()
        }
        for group, members in gradient.items()
    }
