"""The product of tangent maps around a periodic orbit, as a chain of links and as an operator."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from dyneq.dynamics.orbits import Orbit
from dyneq.dynamics.shooting import DENSE_LIMIT, Segments, segments_of
from dyneq.dynamics.stepping import Stepper
from dyneq.linalg.operator import LinearOperator
from dyneq.systems.protocol import System

#: Token blocks up to this many channels have their tangent maps formed as matrices.
TOKEN_DENSE_LIMIT = 128
#: Most parts the period of a large state is cut into.
LINKS = 16
#: Most numbers in the tangent maps that are kept.
KEPT = 2**24


class Link(Protocol):
    """A part of the period: ``V -> G V`` on ``[batch, dim, k]``."""

    def __call__(self, vectors: Tensor, /) -> Tensor:
        """Return G V."""


class Monodromy(LinearOperator, ABC):
    """Tangent maps of a period, one after another; their product has the Floquet multipliers as eigenvalues."""

    @property
    @abstractmethod
    def cost(self) -> int:
        """Products with the Jacobian spent so far, of one vector each."""

    @abstractmethod
    def links(self) -> Iterator[Link]:
        """Return the parts of the period in order of time."""

    def _matvec(self, v: Tensor) -> Tensor:
        return self._matmat(v[:, :, None])[:, :, 0]

    def _matmat(self, v: Tensor) -> Tensor:
        for link in self.links():
            v = link(v)
        return v


class MatrixChain(Monodromy):
    """A period whose tangent maps are matrices.

    Args:
        maps: ``[link, batch, dim, dim]`` in order of time.
        cost: Products with the Jacobian that forming them took.
    """

    def __init__(self, maps: Tensor, cost: int) -> None:
        super().__init__(batch=maps.shape[1], dim=maps.shape[2], dtype=maps.dtype, device=maps.device)
        self.maps, self._cost = maps, cost

    @property
    def cost(self) -> int:
        """Products with the Jacobian that forming the matrices took."""
        return self._cost

    def links(self) -> Iterator[Link]:
        """Return the products with the matrices."""
        return (_product(g) for g in self.maps)

    def _rmatmat(self, v: Tensor) -> Tensor:
        for g in self.maps.flip(0):
            v = g.mT @ v
        return v

    def _rmatvec(self, v: Tensor) -> Tensor:
        return self._rmatmat(v[:, :, None])[:, :, 0]


def _product(matrix: Tensor) -> Link:
    def link(vectors: Tensor) -> Tensor:
        return matrix @ vectors

    return link


class StepChain(Monodromy):
    """A period whose orbit and tangent vectors are stepped anew for every product; nothing is stored.

    Args:
        system: A system of one sample.
        orbit: A periodic orbit of it.
        steps: Steps per period.
        tokens_only: Whether to take token-diagonal blocks: a batch of one operator a token, else of one.
        links: Number of parts; divides the steps.
    """

    def __init__(self, system: System, orbit: Orbit, steps: int, tokens_only: bool, links: int) -> None:
        z = orbit.z
        batch = z.shape[1] if tokens_only else 1
        super().__init__(batch=batch, dim=z.numel() // batch, dtype=z.dtype, device=z.device)
        step = orbit.period / steps if orbit.scheme == "rk4" else None
        self._stepper = Stepper(system, orbit.scheme, step, tokens_only=tokens_only)
        self._z, self._steps, self._links = z, steps, links
        self._cost = 0

    def links(self) -> Iterator[Link]:
        """Return the parts, to be applied in turn and each once: the orbit advances with them."""
        at, steps = [self._z], self._steps // self._links

        def link(vectors: Tensor) -> Tensor:
            k = vectors.shape[-1]
            y, v = at[0], vectors.permute(2, 0, 1).reshape(k, *self._z.shape)
            for _ in range(steps):
                y, v = self._stepper.advance_with(y, v)
            at[0] = y
            self._cost += k * steps * (4 if self._stepper.scheme == "rk4" else 1)
            return v.reshape(k, *vectors.shape[:2]).permute(1, 2, 0)

        return (link for _ in range(self._links))

    @property
    def cost(self) -> int:
        """Products with the Jacobian spent so far, of one vector each (for all tokens)."""
        return self._cost


@torch.no_grad()
def monodromy(system: System, orbit: Orbit, steps: int, tokens_only: bool) -> Monodromy:
    """Return the tangent maps around an orbit: as matrices where their size allows.

    Args:
        system: The system of the orbit, one sample.
        orbit: A periodic orbit of it.
        steps: Steps per period.
        tokens_only: Whether to take token-diagonal blocks.
    """
    dim = orbit.z.numel()
    tokens = orbit.z.shape[1] if tokens_only else 1
    width = dim // tokens
    fits = width <= TOKEN_DENSE_LIMIT and LINKS * dim * width <= KEPT if tokens_only else dim <= DENSE_LIMIT
    if not fits:
        return StepChain(system, orbit, steps, tokens_only, _parts(steps))
    segments = Segments(system, orbit.z, orbit.scheme)
    points = orbit.points.reshape(-1, dim)
    if steps % len(points) or len(points) == 1:
        path = segments.trace(orbit.z.reshape(1, -1), orbit.period, steps)
        points = path[:: steps // (_parts(steps) if tokens_only else segments_of(steps, dim))]
    maps = segments.tangents(points, orbit.period, steps, tokens=tokens if tokens_only else None)[1]
    return MatrixChain(maps.unflatten(1, (tokens, width)), steps * width * (4 if orbit.scheme == "rk4" else 1))


def _parts(steps: int) -> int:
    return max(n for n in range(1, LINKS + 1) if steps % n == 0)
