"""A long relaxation watched with bounded memory: never whole states over time, and nothing that grows with its length.

Two records are kept: the last steps one by one (a ring), and the whole past in blocks whose length doubles whenever
there would be too many of them, each with the largest, least and mean value in it. The largest value of a block is the
envelope of an oscillation whatever the length of the block; values picked out at a stride would alias instead.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.blocks import Blocks
from dyneq.dynamics.relax import GROWTH, default_tolerance
from dyneq.dynamics.residuals import least_size, sample_norm
from dyneq.dynamics.trajectory import random_directions
from dyneq.errors import UsageError
from dyneq.systems.protocol import System

#: Steps between two looks at what is recorded; the host waits for the device once in this many steps.
CHUNK = 64
#: Blocks of the whole past kept at most.
CAPACITY = 512
#: Blocks of the branch norms kept at most; a branch costs about a force, so it is taken once in a chunk.
BRANCH_CAPACITY = 128


@dataclass(frozen=True)
class History:
    """The whole past in blocks of equal length (the last may be shorter).

    Attributes:
        start: First step of every block ``[row]``.
        count: Steps in it ``[row]``.
        residual_max: Largest force residual in it ``[row, sample]``.
        residual_min: Least ``[row, sample]``.
        residual_mean: Mean ``[row, sample]``.
        token_max: Largest norm of the force on each token ``[row, sample, token]``; None without tokens.
        projection_mean: Mean of the projections ``[row, sample, projection]``.
    """

    start: Tensor
    count: Tensor
    residual_max: Tensor
    residual_min: Tensor
    residual_mean: Tensor
    token_max: Tensor | None
    projection_mean: Tensor


@dataclass(frozen=True)
class Record:
    """What is known of a long relaxation. Rows of lost samples are NaN from the step they were lost at.

    Attributes:
        z: State after ``steps`` steps ``[sample, ...]``; that of a lost sample is the last one looked at before.
        eps: Step size.
        steps: Steps taken; fewer than asked for only where a step returned every state bit for bit.
        every: Steps between two rows of the window.
        mean: Time mean over the last ``averaged`` steps ``[sample, ...]``.
        spread: Root mean square distance from that mean ``[sample]``, state units.
        token_spread: The same of each token ``[sample, token]``; None without tokens.
        averaged: Steps the mean is taken over.
        lost: Step at which a sample stopped being finite or grew beyond any fixed point, -1 where it did not
            ``[sample]``.
        frozen: Whether the last step returned the state bit for bit ``[sample]``.
        history: The whole past.
        window_steps: Step number of every row of the window ``[row]``.
        residual: Force residual ``[row, sample]``, relative to a thousandth of norm(z_0) where the state is smaller.
        projections: Inner products of the state with fixed random unit vectors ``[row, sample, projection]``.
        token_norm: Norm of the force on each token ``[row, sample, token]``; None without tokens.
        branch_start: First step of every block of the branch norms ``[row]``.
        branches: Mean norm of each branch in a block, and of the state under ``state`` ``[row, sample]``; empty for
            systems without branches.
        directions: The unit vectors ``[projection, state size]``.
        evaluations: Forces evaluated, a set of branches counted as one.
    """

    z: Tensor
    eps: float
    steps: int
    every: int
    mean: Tensor
    spread: Tensor
    token_spread: Tensor | None
    averaged: int
    lost: Tensor
    frozen: Tensor
    history: History
    window_steps: Tensor
    residual: Tensor
    projections: Tensor
    token_norm: Tensor | None
    branch_start: Tensor
    branches: dict[str, Tensor]
    directions: Tensor
    evaluations: int

    @property
    def elements(self) -> int:
        """Numbers held; the same for every run long enough to fill window and history."""
        held = [
            *(v for v in vars(self.history).values() if isinstance(v, Tensor)),
            *(v for v in vars(self).values() if isinstance(v, Tensor)),
            *self.branches.values(),
        ]
        return sum(v.numel() for v in held)


@torch.no_grad()
def observe(
    system: System,
    z: Tensor,
    steps: int,
    *,
    generator: torch.Generator | None = None,
    eps: float | None = None,
    window: int = 4096,
    every: int = 1,
    projections: int = 8,
    directions: Tensor | None = None,
    capacity: int = CAPACITY,
    progress: Callable[[float], None] | None = None,
) -> Record:
    """Take Euler steps z <- z + eps F(z) and record them with bounded memory.

    Args:
        system: What is relaxed.
        z: Where to begin ``[sample, ...]``.
        steps: Steps to take.
        generator: Draws the directions; seed 0 if None.
        eps: Step size; the system's own if None.
        window: Rows of the last steps kept.
        every: Steps between two of these rows.
        projections: How many random unit vectors the state is projected on.
        directions: Unit vectors ``[projection, state size]`` of an earlier record, to be used again.
        capacity: Blocks of the whole past kept at most.
        progress: Told the share of the steps that is done.

    Raises:
        UsageError: If a number is not positive, or another step size is asked for a map.
    """
    for name, value in (("steps", steps), ("window", window), ("every", every), ("projections", projections)):
        if value < 1:
            raise UsageError(f"a record of a relaxation needs {name} of at least 1, but {name}={value} was given")
    system = system if eps is None or eps == system.eps else system.with_eps(eps)
    if directions is None:
        directions = random_directions(z, projections, generator or torch.Generator().manual_seed(0))
    watch = _Watch(system, z.detach(), steps, window, every, directions, capacity)
    done = 0
    while done < steps and not watch.still:
        done += watch.advance(min(CHUNK, steps - done))
        if progress is not None:
            progress(done / steps)
    return watch.finish()


class _Watch:
    """The state of a record that is being made."""

    def __init__(
        self, system: System, z: Tensor, steps: int, window: int, every: int, directions: Tensor, capacity: int
    ) -> None:
        self.system, self.z, self.directions = system, z, directions
        self.samples, width = z.shape[0], directions.shape[0]
        self.tokens = z.shape[1] if system.structure.token_axis == 1 and z.ndim > 2 else 0
        self.least, self.limit = least_size(system), GROWTH * sample_norm(system.initial_state().detach()).clamp(min=1)
        self.done, self.every, self.window, self.evaluations = 0, every, window, 0
        self.mean_from = max(0, steps - window * every)
        columns = 1 + self.tokens + width
        self.chunk = z.new_empty(CHUNK, self.samples, 1 + columns)  # norm(F), norm(z), tokens, projections
        self.ring = z.new_full((min(window, -(-steps // every)), self.samples, columns), torch.nan)
        self.ring_steps = torch.full((self.ring.shape[0],), -1, dtype=torch.int64)
        self.past = Blocks(capacity, z.new_empty(self.samples, columns))
        self.branch_names = [*system.branches(z), "state"] if system.branches(z) else []
        self.branch_past = Blocks(BRANCH_CAPACITY, z.new_empty(self.samples, len(self.branch_names)))
        self.lost = torch.full((self.samples,), -1, dtype=torch.int64, device=z.device)
        self.alive = torch.ones(self.samples, dtype=torch.bool, device=z.device)
        self.shape = (-1,) + (1,) * (z.ndim - 1)
        self.held = False  # whether some sample is lost and must be kept where it is
        self.still = False
        self.frozen = torch.zeros_like(self.alive)
        self.origin: Tensor | None = None  # what the moments are taken about: no cancellation
        self.sum = self.square = z.new_zeros(0)
        self.averaged = 0

    def advance(self, count: int) -> int:
        """Take ``count`` steps and look at them; returns how many were taken."""
        before, rows = self.z, self.chunk[:count]
        z, eps, flat = self.z, self.system.eps, self.directions.mT
        for i in range(count):
            f = self.system.force(z)
            row = rows[i]
            row[:, 0], row[:, 1] = sample_norm(f), sample_norm(z)
            if self.tokens:
                row[:, 2 : 2 + self.tokens] = torch.linalg.vector_norm(f.flatten(2), dim=2)
            row[:, 2 + self.tokens :] = z.flatten(1) @ flat
            if self.done + i >= self.mean_from:
                self._average(z)
            moved = torch.add(z, f, alpha=eps)
            z = torch.where(self.alive.view(self.shape), moved, z) if self.held else moved
        self.evaluations += count
        self._look(rows, before, z)
        # the last step of a chunk tells for all later ones: they would return the same bits
        self.frozen = (torch.add(self.z, self.system.force(self.z), alpha=eps) == self.z).flatten(1).all(1)
        self.evaluations += 1
        self.still = bool((self.frozen | ~self.alive).all())
        self._keep(rows)
        self.done += count
        return count

    def _average(self, z: Tensor) -> None:
        if self.origin is None:
            self.origin = z.clone()
            self.sum = torch.zeros_like(z)
            self.square = z.new_zeros(z.shape[: 2 if self.tokens else 1])
        off = z - self.origin
        self.sum += off
        self.square += (off * off).flatten(self.square.ndim).sum(-1)
        self.averaged += 1

    def _look(self, rows: Tensor, before: Tensor, z: Tensor) -> None:
        """Find the samples lost in these steps, mark them, and hold them where they were before."""
        size, force = rows[..., 1], rows[..., 0]
        end = sample_norm(z)
        bad = ~torch.isfinite(force) | ~torch.isfinite(size)
        # a fixed point may be large; what grows without one is lost
        bad |= (size > self.limit) & (force > size * default_tolerance(z.dtype))
        last = ~torch.isfinite(end)
        gone = (bad.any(0) | last) & self.alive
        if bool(gone.any()):
            first = torch.where(bad.any(0), bad.to(torch.int8).argmax(0), rows.shape[0])
            self.lost = torch.where(gone, self.done + first, self.lost)
            self.alive = self.alive & ~gone
            z = torch.where(self.alive.view(self.shape), z, before)
            self.held = True
        self.z = z
        if self.held:
            step = self.done + torch.arange(rows.shape[0], device=rows.device)
            late = (self.lost >= 0) & (step[:, None] >= self.lost)
            rows.masked_fill_(late[..., None], torch.nan)

    def _keep(self, rows: Tensor) -> None:
        """Put the steps into the ring and into the blocks of the past."""
        residual = rows[..., 0] / torch.maximum(rows[..., 1], self.least)
        residual = torch.where(rows[..., 0] == 0, torch.zeros_like(residual), residual)
        columns = torch.cat([residual[..., None], rows[..., 2:]], -1)
        self.past.add(columns)
        step = torch.arange(self.done, self.done + rows.shape[0])
        chosen = step % self.every == 0
        if bool(chosen.any()):
            kept = step[chosen]
            # of what would be written to the same place only the last
            kept, values = kept[-len(self.ring) :], columns[chosen.to(columns.device)][-len(self.ring) :]
            place = (kept // self.every) % len(self.ring)
            self.ring[place.to(self.ring.device)] = values
            self.ring_steps[place] = kept
        if self.branch_names:
            norms = [sample_norm(b) for b in self.system.branches(self.z).values()]
            values = torch.stack([*norms, sample_norm(self.z)], -1)
            values = torch.where(self.alive[:, None], values, torch.nan)
            self.branch_past.add(values[None])
            self.evaluations += 1

    def finish(self) -> Record:
        """Return the record."""
        order = self.ring_steps.argsort()
        order = order[self.ring_steps[order] >= 0]
        ring, tokens = self.ring[order.to(self.ring.device)], self.tokens
        start, count, high, low, mean = self.past.rows()
        branch_start, _, _, _, branch_mean = self.branch_past.rows()
        if self.origin is None:  # it came to rest before the steps of the mean began
            centre, spread = self.z, self.z.new_zeros(self.z.shape[: 2 if tokens else 1])
        else:
            off = self.sum / self.averaged
            centre = self.origin + off
            variance = self.square / self.averaged - (off * off).flatten(self.square.ndim).sum(-1)
            spread = variance.clamp(min=0).sqrt()
        spread = torch.where(self.alive.view(-1, *[1] * (spread.ndim - 1)), spread, torch.nan)
        return Record(
            z=self.z,
            eps=self.system.eps,
            steps=self.done,
            every=self.every,
            mean=centre,
            spread=torch.linalg.vector_norm(spread, dim=1) if tokens else spread,
            token_spread=spread if tokens else None,
            averaged=self.averaged,
            lost=self.lost,
            frozen=self.frozen & self.alive,
            history=History(
                start=start,
                count=count,
                residual_max=high[..., 0],
                residual_min=low[..., 0],
                residual_mean=mean[..., 0],
                token_max=high[..., 1 : 1 + tokens] if tokens else None,
                projection_mean=mean[..., 1 + tokens :],
            ),
            window_steps=self.ring_steps[order],
            residual=ring[..., 0],
            projections=ring[..., 1 + tokens :],
            token_norm=ring[..., 1 : 1 + tokens] if tokens else None,
            branch_start=branch_start * CHUNK,
            branches={name: branch_mean[..., i] for i, name in enumerate(self.branch_names)},
            directions=self.directions,
            evaluations=self.evaluations,
        )
