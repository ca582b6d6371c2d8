"""Recording a relaxation without storing its states."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dyneq.dynamics.residuals import residuals_of


@dataclass
class Trajectory:
    """What was recorded of a relaxation, one row a step, never padded: ``steps`` rows and no more.

    Attributes:
        eps: Step size, so that row n is time n eps.
        force_residual: ``[step, sample]``, of the state before step n is taken, as :func:`dyneq.dynamics.relax.relax`
            judges it.
        projections: ``[step, sample, projection]``, inner products of the state with fixed random unit vectors;
            empty last axis if none were asked for.
        token_norm: ``[step, sample, token]``, norm of the force on each token; None without a token axis.
        mean: Time mean of the states recorded in the second half of the depth, ``[sample, ...]``; None if there are
            none, also because the relaxation became stationary before.
    """

    eps: float
    force_residual: Tensor
    projections: Tensor
    token_norm: Tensor | None
    mean: Tensor | None

    @property
    def steps(self) -> int:
        """Number of recorded steps."""
        return self.force_residual.shape[0]


@dataclass
class Recorder:
    """Collects a :class:`Trajectory` as a relaxation goes; costs one pass over the state a step.

    Args:
        eps: Step size of the relaxation.
        depth: Number of steps that will be taken at most; the time mean starts at half of it.
        directions: Random unit vectors ``[projection, state size]``, or None for no projections.
        tokens: Whether to record the norm of the force on each token.
    """

    eps: float
    depth: int
    directions: Tensor | None = None
    tokens: bool = False
    _residual: list[Tensor] = field(default_factory=list)
    _projection: list[Tensor] = field(default_factory=list)
    _token_norm: list[Tensor] = field(default_factory=list)
    _sum: Tensor | None = None
    _count: int = 0

    def add(self, step: int, z: Tensor, f: Tensor, least: Tensor | None = None) -> None:
        """Record the state and force before step number ``step``; ``least`` as in :func:`residuals_of`."""
        self._residual.append(residuals_of(z, f, self.eps, least).force)
        if self.directions is not None:
            self._projection.append(z.flatten(1) @ self.directions.T)
        if self.tokens:
            self._token_norm.append(torch.linalg.vector_norm(f.flatten(2), dim=2))
        if 2 * step >= self.depth:
            self._sum = z.clone() if self._sum is None else self._sum.add_(z)
            self._count += 1

    def finish(self, like: Tensor) -> Trajectory:
        """Return the record; ``like`` is a state, for the shapes of an empty record."""
        samples = like.shape[0]
        width = 0 if self.directions is None else self.directions.shape[0]
        rows = len(self._residual)
        residual = torch.stack(self._residual) if rows else like.new_empty(0, samples)
        projected = torch.stack(self._projection) if self._projection else like.new_empty(rows, samples, width)
        norms = None
        if self.tokens:
            norms = torch.stack(self._token_norm) if rows else like.new_empty(0, samples, like.shape[1])
        mean = None if self._sum is None else self._sum / self._count
        return Trajectory(self.eps, residual, projected, norms, mean)


def random_directions(state: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` random unit vectors ``[projection, state size]`` for states like ``state``."""
    size = state[0].numel()
    drawn = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return (drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)).to(state)
