"""A relaxation in which samples that have converged are left out, and what the others still do at its end."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.relax import GROWTH, Relaxation, default_tolerance, relax
from dyneq.dynamics.residuals import SMALLEST, least_size, residuals_of, sample_norm
from dyneq.dynamics.status import Status
from dyneq.dynamics.trajectory import Trajectory
from dyneq.systems.protocol import System

#: Converged samples are taken out once in this many steps.
CHUNK = 100


@dataclass(frozen=True)
class Settling:
    """The end of a relaxation.

    Attributes:
        z: State ``[sample, ...]``; of converged samples the one in which they were first seen within tolerance.
        status: One a sample.
        steps: Steps taken, ``[sample]``.
        residual: Force residual of ``z``, ``[sample]``.
        mean: Time mean over the window, ``[sample, ...]``; of converged samples the state itself.
        halves: Largest force residual in the first and second half of the window, ``[sample, 2]``.
        token_halves: The same of every token's own force relative to the token, ``[sample, 2, token]``; None without
            tokens.
        depth: Steps asked for.
        window: Steps of the window at the end.
        tol: Force residual called converged.
    """

    z: Tensor
    status: list[Status]
    steps: Tensor
    residual: Tensor
    mean: Tensor
    halves: Tensor
    token_halves: Tensor | None
    depth: int
    window: int
    tol: float

    def where(self, status: Status) -> list[int]:
        """Return the samples of a status."""
        return [i for i, s in enumerate(self.status) if s is status]

    def relaxation(self, system: System, samples: list[int]) -> Relaxation:
        """Return the end state of some samples in the form that root finding starts from, with its time mean."""
        at = torch.tensor(samples, device=self.z.device)
        part, z = system.select(at), self.z[at]
        found = residuals_of(z, part.force(z), system.eps, least_size(part))
        empty = z.new_empty(0, len(samples))
        trajectory = Trajectory(system.eps, empty, z.new_empty(0, len(samples), 0), None, self.mean[at])
        status = [self.status[i] for i in samples]
        return Relaxation(z, self.depth, self.depth, found, status, self.tol, system.eps, False, trajectory)


@torch.no_grad()
def settle(
    system: System, depth: int, *, window: int = 200, start: Tensor | None = None, tol: float | None = None
) -> Settling:
    """Relax to a depth; samples within tolerance are left where they are, which saves most of the cost.

    Args:
        system: What is relaxed.
        depth: Steps.
        window: Steps at the end over which maxima and means are taken; at most the depth.
        start: Where to begin; the system's initial state if None.
        tol: Force residual called converged; :func:`dyneq.dynamics.relax.default_tolerance` if None.
    """
    z = (system.initial_state() if start is None else start).detach().clone()
    samples, tol = z.shape[0], default_tolerance(z.dtype) if tol is None else tol
    window = max(1, min(window, depth))
    status = [Status.MAX_STEPS] * samples
    steps = torch.zeros(samples, dtype=torch.int64)
    residual, halves = z.new_zeros(samples), z.new_zeros(samples, 2)
    tokens = z.shape[1] if system.structure.token_axis == 1 and z.ndim > 2 else None
    token_halves = None if tokens is None else z.new_zeros(samples, 2, tokens)
    mean = z.clone()
    alive, done = torch.arange(samples, device=z.device), 0
    while done < depth - window and len(alive):
        chunk = min(CHUNK, depth - window - done)
        part = system.select(alive) if len(alive) < samples else system
        relaxed = relax(part, chunk, start=z[alive], tol=tol)
        done += chunk
        z[alive] = relaxed.z
        steps[alive.cpu()] = done
        residual[alive] = relaxed.residuals.force
        seen = _with_tokens(part, relaxed.z, relaxed.status, tol)
        for i, s in zip(alive.tolist(), seen, strict=True):
            status[i] = s
        # a sample that diverges is left where it was seen to
        left = torch.tensor([s is Status.MAX_STEPS for s in seen], device=z.device)
        mean[alive], halves[alive] = relaxed.z, relaxed.residuals.force[:, None]
        alive = alive[left]
    if len(alive):
        part = system.select(alive) if len(alive) < samples else system
        end, average, peaks, token_peaks = _observe(part, z[alive], window)
        judged = relax(part, 0, start=end, tol=tol)
        z[alive], mean[alive], halves[alive] = end, average, peaks
        residual[alive] = judged.residuals.force
        steps[alive.cpu()] = depth
        if token_halves is not None and token_peaks is not None:
            token_halves[alive] = token_peaks
        for i, s in zip(alive.tolist(), _with_tokens(part, end, judged.status, tol), strict=True):
            status[i] = s
    return Settling(z, status, steps, residual, mean, halves, token_halves, depth, window, tol)


def _with_tokens(system: System, z: Tensor, status: list[Status], tol: float) -> list[Status]:
    """Return the status of samples with tokens: converged only where every token is, relative to its own size.

    Beside a large token the motion of a small one does not show in the residual of the sample.
    """
    if system.structure.token_axis != 1 or z.ndim < 3 or Status.CONVERGED not in status:
        return status
    size = torch.linalg.vector_norm(z.flatten(2), dim=2)
    least = SMALLEST * torch.linalg.vector_norm(system.initial_state().detach().flatten(2), dim=2)
    own = torch.linalg.vector_norm(system.force(z).flatten(2), dim=2)
    quiet = ((own == 0) | (own <= tol * size.maximum(least))).all(1).tolist()
    return [Status.MAX_STEPS if s is Status.CONVERGED and not q else s for s, q in zip(status, quiet, strict=True)]


def _observe(system: System, z: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the state after the window, its mean, and the largest residuals of samples and tokens in each half."""
    least = least_size(system)
    tokens = system.structure.token_axis == 1 and z.ndim > 2
    start = system.initial_state().detach()
    token_least = SMALLEST * torch.linalg.vector_norm(start.flatten(2), dim=2) if tokens else None
    total = torch.zeros_like(z)
    peaks = z.new_zeros(z.shape[0], 2)
    token_peaks = z.new_zeros(z.shape[0], 2, z.shape[1]) if tokens else None
    limit = GROWTH * sample_norm(start).clamp(min=1.0)
    for n in range(window):
        f, half = system.force(z), int(2 * n >= window)
        peaks[:, half] = torch.maximum(peaks[:, half], residuals_of(z, f, system.eps, least).force)
        if token_peaks is not None and token_least is not None:
            size = torch.linalg.vector_norm(z.flatten(2), dim=2).maximum(token_least)
            own = torch.linalg.vector_norm(f.flatten(2), dim=2) / size
            token_peaks[:, half] = torch.maximum(token_peaks[:, half], own)
        total += z
        moved = torch.add(z, f, alpha=system.eps)
        # a runaway state stays where it left all bounds: its infinities would tell nothing more
        z = torch.where((sample_norm(z) > limit).view(-1, *[1] * (z.ndim - 1)), z, moved)
    return z, total / window, peaks, token_peaks
