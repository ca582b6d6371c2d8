"""Anderson acceleration of the relaxation, one history a sample, safeguarded by the best state seen."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.relax import default_tolerance
from dyneq.dynamics.residuals import least_size, residuals_of
from dyneq.dynamics.status import Status
from dyneq.errors import UsageError
from dyneq.systems.protocol import System

#: A step that multiplies the force residual of the best state by more than this is undone.
TOLERATED_GROWTH = 2.0


@dataclass(frozen=True)
class AndersonResult:
    """The best state of every sample.

    Attributes:
        z: ``[sample, ...]``.
        force_residual: Of ``z``, ``[sample]``, judged as in :class:`dyneq.dynamics.relax.Relaxation`; never larger than
            that of the start.
        first_within: Force evaluations after which the tolerance was first met, -1 if never, ``[sample]``.
        evaluations: Force evaluations used.
        rejected: Steps undone by the safeguard, ``[sample]``.
        status: One a sample.
    """

    z: Tensor
    force_residual: Tensor
    first_within: Tensor
    evaluations: int
    rejected: Tensor
    status: list[Status]


@torch.no_grad()
def anderson(
    system: System,
    *,
    memory: int = 5,
    max_evaluations: int = 400,
    tol: float | None = None,
    start: Tensor | None = None,
) -> AndersonResult:
    """Accelerate z <- z + eps F(z) by Anderson mixing (type II; Walker and Ni, SIAM J. Numer. Anal. 49, 2011).

    A step after which the force residual exceeds twice the best one is undone: the sample returns to its best state,
    forgets its history and takes a plain step. The best state is returned, so the result is never worse than the start.

    Args:
        system: What is relaxed; its eps is the mixing step.
        memory: Differences kept for each sample.
        max_evaluations: Most force evaluations.
        tol: Force residual at which a sample is done; :func:`dyneq.dynamics.relax.default_tolerance` if None.
        start: Initial state if not the system's own.

    Raises:
        UsageError: If ``memory`` or ``max_evaluations`` is less than 1.
    """
    if memory < 1 or max_evaluations < 1:
        raise UsageError(
            f"Anderson acceleration needs a memory and a budget of at least 1, but memory={memory} and "
            f"max_evaluations={max_evaluations} were asked for"
        )
    z = (system.initial_state() if start is None else start).detach().clone()
    shape, samples = z.shape, z.shape[0]
    tol = default_tolerance(z.dtype) if tol is None else tol
    f, least = system.force(z), least_size(system)
    best, best_f, best_residual = z, f, residuals_of(z, f, system.eps, least).force
    first = torch.where(best_residual <= tol, 1, -1)
    rejected = torch.zeros(samples, dtype=torch.int64, device=z.device)
    size = shape[1:].numel()
    dz, df = (torch.zeros(samples, memory, size, dtype=z.dtype, device=z.device) for _ in range(2))
    evaluations = 1
    while evaluations < max_evaluations and bool((first < 0).any()):
        step = system.eps * f.flatten(1) - _correction(dz, df, f.flatten(1), system.eps)
        trial = z + step.view(shape)
        ft = system.force(trial)
        evaluations += 1
        residual = residuals_of(trial, ft, system.eps, least).force
        bad = ~(residual <= TOLERATED_GROWTH * best_residual)  # also where it is NaN
        rejected += bad
        slot = evaluations % memory
        dz[:, slot], df[:, slot] = (trial - z).flatten(1), (ft - f).flatten(1)
        dz[bad], df[bad] = 0, 0
        wide = bad.view(-1, *([1] * (len(shape) - 1)))
        z, f = torch.where(wide, best, trial), torch.where(wide, best_f, ft)
        better = residual < best_residual
        wide = better.view(-1, *([1] * (len(shape) - 1)))
        best, best_f = torch.where(wide, trial, best), torch.where(wide, ft, best_f)
        best_residual = torch.where(better, residual, best_residual)
        first = torch.where((first < 0) & (best_residual <= tol), evaluations, first)
    status = [Status.CONVERGED if r <= tol else Status.MAX_STEPS for r in best_residual.tolist()]
    return AndersonResult(best, best_residual, first, evaluations, rejected, status)


def _correction(dz: Tensor, df: Tensor, f: Tensor, eps: float) -> Tensor:
    """Return sum_i gamma_i (dz_i + eps df_i) with gamma minimising norm(f - sum_i gamma_i df_i), ``[sample, size]``.

    Solved through the eigenvalues of the small Gram matrix in double precision; directions below 1e-12 of the largest
    are left out, as are empty slots.
    """
    gram = torch.bmm(df, df.mT).double()
    right = torch.bmm(df, f.unsqueeze(-1)).double()
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-12 * values[:, -1:].clamp(min=torch.finfo(torch.float64).tiny)
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    gamma = vectors @ (inverse.unsqueeze(-1) * (vectors.mT @ right))
    return torch.bmm(gamma.mT.to(f.dtype), dz + eps * df).squeeze(1)
