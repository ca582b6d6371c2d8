"""Newton's method by forward substitution over the tokens of a causal block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.newton import SMALLEST, DenseDirection, NewtonResult, columns_by_jvp, newton
from dyneq.systems.protocol import System

#: What a token's root was found from; the index is what ``token_start`` stores (-1: no root).
GUESSES = ("start", "settled", "settled mean", "input", "displaced")
#: Steps for which one token is relaxed alone, its predecessors held at their roots, when its guess fails.
SETTLE_STEPS = 400


@dataclass(frozen=True)
class Substitution:
    """Roots token by token.

    Attributes:
        z: ``[sample, token, channel]``.
        guess: Index into :data:`GUESSES` for every token, int8 ``[sample, token]``; -1 without a root.
        failed_token: First token without a root, -1 if none, ``[sample]``.
        steepness: Frobenius norm of each J_tt, ``[sample, token]``.
    """

    z: Tensor
    guess: Tensor
    failed_token: Tensor
    steepness: Tensor


@torch.no_grad()
def solve_by_substitution(system: System, start: Tensor, *, tol: float, generator: torch.Generator) -> Substitution:
    """Solve F_t = 0 for t = 0, 1, ... given the roots of the earlier tokens.

    Where Newton from the start's token fails, the token is relaxed alone with its predecessors at their roots, and its
    last state, its time mean, the input and displaced states are tried. A sample whose token finds no root keeps its
    start from there on.

    Args:
        system: A causal system.
        start: Guess ``[sample, token, channel]``.
        tol: Force residual of a token accepted as a root.
        generator: Randomness of the displaced guesses.
    """
    samples, tokens = start.shape[:2]
    z = start.clone()
    least = SMALLEST * torch.linalg.vector_norm(system.initial_state().detach(), dim=2)
    guess = torch.full((samples, tokens), -1, dtype=torch.int8)
    failed = torch.full((samples,), -1, dtype=torch.int64)
    steepness = torch.full((samples, tokens), torch.nan, dtype=start.dtype, device=start.device)
    alive = torch.arange(samples, device=start.device)
    part = system
    for t in range(tokens):
        if not len(alive):
            break
        force = part.token_force(t, z[alive])
        solved = _newton_token(force, z[alive, t], least[alive, t], tol)
        _keep(z, guess, steepness, solved, alive, t, 0)
        todo = (~solved.converged).nonzero().flatten()
        if not len(todo):
            continue
        lost = _try_guesses(system, z, guess, steepness, alive[todo], t, least, tol, generator)
        if len(lost):
            failed[lost.cpu()] = t
            z[lost] = start[lost]
            alive = alive[~torch.isin(alive, lost)]
            part = system.select(alive) if len(alive) else system
    return Substitution(z, guess, failed, steepness)


def _newton_token(force: Callable[[Tensor], Tensor], guess: Tensor, least: Tensor, tol: float) -> NewtonResult:
    return newton(force, DenseDirection(columns_by_jvp(force)), guess, least=least, tol=tol)


def _keep(
    z: Tensor, guess: Tensor, steepness: Tensor, solved: NewtonResult, rows: Tensor, token: int, kind: int
) -> None:
    good = solved.converged
    z[rows[good], token] = solved.z[good]
    steepness[rows[good], token] = solved.steepness[good]
    guess[rows[good].cpu(), token] = kind


def _try_guesses(
    system: System,
    z: Tensor,
    guess: Tensor,
    steepness: Tensor,
    rows: Tensor,
    token: int,
    least: Tensor,
    tol: float,
    generator: torch.Generator,
) -> Tensor:
    """Try the further guesses for the samples ``rows``; returns those that still have no root."""
    part = system.select(rows)
    force = part.token_force(token, z[rows])
    first, own_input = z[rows, token], part.initial_state().detach()[:, token]
    left = torch.arange(len(rows), device=rows.device)
    for kind, proposal in _guesses(force, first, own_input, system.eps, generator):
        solved = _newton_token(force, proposal, least[rows, token], tol)
        new = left[solved.converged[left]]
        z[rows[new], token] = solved.z[new]
        steepness[rows[new], token] = solved.steepness[new]
        guess[rows[new].cpu(), token] = kind
        left = left[~solved.converged[left]]
        if not len(left):
            break
    return rows[left]


def _guesses(
    force: Callable[[Tensor], Tensor], first: Tensor, own_input: Tensor, eps: float, generator: torch.Generator
) -> Iterator[tuple[int, Tensor]]:
    y = first.clone()
    total = torch.zeros_like(y)
    for n in range(SETTLE_STEPS):
        y = y + eps * force(y)
        if 2 * n >= SETTLE_STEPS:
            total += y
    yield 1, y
    mean = total / (SETTLE_STEPS // 2)
    yield 2, mean
    yield 3, own_input
    norm = torch.linalg.vector_norm
    for _ in range(8):
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64).to(mean)
        yield 4, mean + 0.3 * noise * norm(mean, dim=1, keepdim=True) / norm(noise, dim=1, keepdim=True)
