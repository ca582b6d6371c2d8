"""What the analytic systems share: a start of a few samples, and a flow or a map on real vectors."""

from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.systems.protocol import System, Time

SAMPLES = 4


class AnalyticSystem(System):
    """A system on states ``[sample, component]`` that has no input: samples differ in their start only.

    Args:
        dimension: Number of components.
        z0: Start ``[sample, component]``.

    Raises:
        DyneqError: If the start has another shape.
    """

    def __init__(self, dimension: int, z0: Tensor) -> None:
        if z0.ndim != 2 or z0.shape[1] != dimension or not z0.shape[0] or not z0.is_floating_point():
            raise DyneqError(
                f"the start of {type(self).__name__} should be a floating tensor [sample, {dimension}], "
                f"but is {list(z0.shape)} of {z0.dtype}; pass one row a sample"
            )
        self.name, self._z0 = type(self).__name__, z0

    def initial_state(self) -> Tensor:
        """Return the start ``[sample, component]``."""
        return self._z0

    def select(self, samples: Tensor) -> Self:
        """Return the same system from some of the starts, indices ``[k]``."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._z0 = self._z0[samples]
        return copy


class AnalyticFlow(AnalyticSystem):
    """A flow dz/dt = rhs(z), relaxed by Euler steps of size ``eps``.

    Args:
        dimension: Number of components.
        z0: Start ``[sample, component]``.
        eps: Step size.

    Raises:
        DyneqError: If the step size is not positive.
    """

    time = Time.FLOW

    def __init__(self, dimension: int, z0: Tensor, eps: float) -> None:
        super().__init__(dimension, z0)
        if not eps > 0:
            raise DyneqError(f"eps of {self.name} must be positive, but {eps} was given; the usual value is 0.1")
        self.eps = float(eps)

    @abstractmethod
    def rhs(self, z: Tensor) -> Tensor:
        """Return dz/dt ``[sample, component]``."""

    def force(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return dz/dt ``[sample, component]``.

        Raises:
            DyneqError: If a context is given: there are no tokens.
        """
        if context is not None:
            self.require_causal("a force with a context")
        return self.rhs(z)


class AnalyticMap(AnalyticSystem):
    """A map z -> step(z), with F(z) = step(z) - z and eps = 1."""

    time = Time.MAP
    eps = 1.0

    @abstractmethod
    def step(self, z: Tensor) -> Tensor:
        """Return the image of ``z`` ``[sample, component]``."""

    def force(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return step(z) - z ``[sample, component]``.

        Raises:
            DyneqError: If a context is given: there are no tokens.
        """
        if context is not None:
            self.require_causal("a force with a context")
        return self.step(z) - z


def scattered(centre: list[float], spread: float) -> Tensor:
    """Return the default start ``[4, component]``, float64: uniform within ``spread`` of ``centre``, from seed 0."""
    generator = torch.Generator().manual_seed(0)
    offset = 2 * torch.rand(SAMPLES, len(centre), generator=generator, dtype=torch.float64) - 1
    return torch.tensor(centre, dtype=torch.float64) + spread * offset
