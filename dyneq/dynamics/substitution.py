"""Newton's method by forward substitution over the tokens of a causal block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.newton import DenseDirection, NewtonResult, columns_by_jvp, newton
from dyneq.dynamics.residuals import SMALLEST
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
        correction: norm(J_tt^{-1} F_t) relative to the token, at its root, ``[sample, token]``; NaN without a root.
        steepness: Frobenius norm of each J_tt at its root, ``[sample, token]``; NaN without a root.
    """

    z: Tensor
    guess: Tensor
    failed_token: Tensor
    correction: Tensor
    steepness: Tensor

    def keep(self, solved: NewtonResult, found: Tensor, rows: Tensor, token: int, kind: int) -> None:
        """Enter the roots ``found`` (indices into ``solved``) of one token; ``rows`` are the samples of ``solved``."""
        at = rows[found]
        self.z[at, token] = solved.z[found]
        self.correction[at, token] = solved.correction[found]
        self.steepness[at, token] = solved.steepness[found]
        self.guess[at.cpu(), token] = kind


@torch.no_grad()
def solve_by_substitution(system: System, start: Tensor, *, tol: float, generator: torch.Generator) -> Substitution:
    """Solve F_t = 0 for t = 0, 1, ... given the roots of the earlier tokens.

    Where Newton from the start's token fails, the token is relaxed alone with its predecessors at their roots, and its
    last state, its time mean, the input and displaced states are tried. A sample whose token finds no root keeps the
    roots of the earlier tokens, and its start from that token on.

    Args:
        system: A causal system.
        start: Guess ``[sample, token, channel]``.
        tol: Force residual of a token accepted as a root.
        generator: Randomness of the displaced guesses.
    """
    samples, tokens = start.shape[:2]
    least = SMALLEST * torch.linalg.vector_norm(system.initial_state().detach(), dim=2)
    empty = torch.full((samples, tokens), torch.nan, dtype=start.dtype, device=start.device)
    result = Substitution(
        z=start.clone(),
        guess=torch.full((samples, tokens), -1, dtype=torch.int8),
        failed_token=torch.full((samples,), -1, dtype=torch.int64),
        correction=empty,
        steepness=empty.clone(),
    )
    alive = torch.arange(samples, device=start.device)
    part = system
    for t in range(tokens):
        if not len(alive):
            break
        force = part.token_force(t, result.z[alive])
        solved = _newton_token(force, result.z[alive, t], least[alive, t], tol)
        result.keep(solved, solved.converged.nonzero().flatten(), alive, t, 0)
        todo = (~solved.converged).nonzero().flatten()
        if not len(todo):
            continue
        lost = _try_guesses(system, result, alive[todo], t, least, tol, generator)
        if len(lost):
            result.failed_token[lost.cpu()] = t
            alive = alive[~torch.isin(alive, lost)]
            part = system.select(alive) if len(alive) else system
    return result


def _newton_token(force: Callable[[Tensor], Tensor], guess: Tensor, least: Tensor, tol: float) -> NewtonResult:
    return newton(force, DenseDirection(columns_by_jvp(force)), guess, least=least, tol=tol)


def _try_guesses(
    system: System,
    result: Substitution,
    rows: Tensor,
    token: int,
    least: Tensor,
    tol: float,
    generator: torch.Generator,
) -> Tensor:
    """Try the further guesses for the samples ``rows``; returns those that still have no root."""
    part = system.select(rows)
    force = part.token_force(token, result.z[rows])
    first, own_input = result.z[rows, token], part.initial_state().detach()[:, token]
    left = torch.arange(len(rows), device=rows.device)
    for kind, proposal in _guesses(force, first, own_input, system.eps, generator):
        solved = _newton_token(force, proposal, least[rows, token], tol)
        result.keep(solved, left[solved.converged[left]], rows, token, kind)
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
