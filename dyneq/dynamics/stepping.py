"""Steps of a system and of its tangent vectors: Euler's relaxation step, or the classical Runge-Kutta step of its flow.

The relaxation map is Euler's step, or the map itself. Runge-Kutta steps follow the flow, of which Euler's step is a
discretisation of first order: what the two do differently is made by the step.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dyneq.errors import UsageError
from dyneq.systems.protocol import Product, System, Time

Scheme = Literal["euler", "rk4"]


class Stepper:
    """Advances states ``[sample, ...]`` and tangent vectors ``[vector, sample, ...]`` by one step.

    Args:
        system: What is stepped.
        scheme: ``euler`` is the relaxation itself (the map, for a map); ``rk4`` the classical Runge-Kutta step of
            fourth order (Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, table 1.2).
        step: Step size in time units; the system's eps if None.
        tokens_only: Whether tangent vectors are advanced by the token-diagonal blocks of the Jacobian, so that each
            token's part of a vector is a vector of its own.

    Raises:
        UsageError: If Runge-Kutta steps or another step size are asked for a map.
        DyneqError: If ``tokens_only`` is asked for a system that is not causal.
    """

    def __init__(
        self, system: System, scheme: Scheme = "euler", step: float | None = None, *, tokens_only: bool = False
    ) -> None:
        if system.time is Time.MAP and (scheme != "euler" or step not in (None, 1.0)):
            asked = scheme if scheme != "euler" else f"a step of {step}"
            raise UsageError(
                f"{system.name} is a map and is stepped as it is, but {asked} was asked for; leave scheme and step out"
            )
        if tokens_only:
            system.require_causal("a tangent map token by token")
        self.system, self.scheme, self.tokens_only = system, scheme, tokens_only
        self.step = system.eps if step is None else step

    def _product(self, z: Tensor) -> Product:
        return (self.system.linearize_tokens(z) if self.tokens_only else self.system.linearize(z))[0]

    @torch.no_grad()
    def advance(self, z: Tensor) -> Tensor:
        """Return the state one step later."""
        h, f = self.step, self.system.force
        if self.scheme == "euler":
            return z + h * f(z)
        k1 = f(z)
        k2 = f(z + h / 2 * k1)
        k3 = f(z + h / 2 * k2)
        k4 = f(z + h * k3)
        return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    @torch.no_grad()
    def advance_with(self, z: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state and the tangent vectors ``[vector, sample, ...]`` one step later."""
        h, f = self.step, self.system.force
        if self.scheme == "euler":
            return z + h * f(z), vectors + h * _columns(self._product(z), vectors)
        state, tangent = torch.zeros_like(z), torch.zeros_like(vectors)
        at, moved = z, vectors
        for weight, ahead in ((1, h / 2), (2, h / 2), (2, h), (1, 0.0)):
            k, dk = f(at), _columns(self._product(at), moved)
            state, tangent = state + weight * k, tangent + weight * dk
            at, moved = z + ahead * k, vectors + ahead * dk
        return z + h / 6 * state, vectors + h / 6 * tangent


def _columns(product: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
    return torch.stack([product(v) for v in vectors])
