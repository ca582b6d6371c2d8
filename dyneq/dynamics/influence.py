"""What a perturbation of one token does to the others: at once, through J, and at equilibrium, through -J^{-1}.

A small constant force delta on token s moves a root to z* + dz with J dz = -delta. For a block whose input x enters its
force as it is, that is also what a shift of the input embedding of token s by delta does: dz_t = (dz*_t/dx_s) delta.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.roots import DENSE_LIMIT
from dyneq.errors import UsageError
from dyneq.linalg import gmres
from dyneq.systems.delegate import Delegate
from dyneq.systems.protocol import Product, Structure, System, Time

#: A token's response is exact once another sweep changes it by less than this many units in the last place.
EXACT_SWEEP = 64
#: Condition times machine precision above which a solution of J dz = -delta says nothing, a loss of all but two digits.
SINGULAR = 1e-2
#: Relative residual that Krylov solves are taken to, in double and in single precision.
KRYLOV = {torch.float64: 1e-10, torch.float32: 1e-5}


class Undeclared(Delegate):
    """A system without its claims about causality and without its own products: what its force alone says.

    Args:
        parent: Any system.
    """

    def __init__(self, parent: System) -> None:
        super().__init__(parent)
        self.structure = Structure(parent.structure.token_axis, causal=False)

    def force(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the parent's F(z).

        Raises:
            DyneqError: If a context is given: nothing is known of what a token's own part is.
        """
        if context is not None:
            self.require_causal("a force with a context")
        return self.parent.force(z)

    def select(self, samples: Tensor) -> "Undeclared":
        """Return some of the samples, indices ``[k]``."""
        return Undeclared(self.parent.select(samples))

    def with_eps(self, eps: float) -> "Undeclared":
        """Return a copy with another step size."""
        return Undeclared(self.parent if self.time is Time.MAP else self.parent.with_eps(eps))


def by_token(system: System, z: Tensor) -> Tensor:
    """Return a state as ``[sample, token, channel]``, all other axes flattened; as one token where there are none."""
    axis = system.structure.token_axis
    return z.flatten(1).unsqueeze(1) if axis is None else z.movedim(axis, 1).flatten(2)


def from_token(system: System, v: Tensor, like: Tensor) -> Tensor:
    """Return a vector ``[sample, token, channel]`` in the layout of the state ``like``; undoes :func:`by_token`."""
    axis = system.structure.token_axis
    return v.reshape(like.shape) if axis is None else v.view(like.movedim(axis, 1).shape).movedim(1, axis)


@dataclass(frozen=True)
class Coupling:
    """Sizes of the blocks of the Jacobian.

    Attributes:
        norm: ``[sample, token, from_token]``, norm(w^T J_ts) for one random unit vector w: its root mean square over w
            is the Frobenius norm of J_ts over the root of the number of channels; 0 exactly where J_ts is 0.
        leak: The largest ``norm`` with s > t, relative to the largest with s = t, ``[sample]``; exactly 0 for a force
            that is causal over tokens, 0 where there is one token; NaN where nothing is on the diagonal either.
        products: Products with the transposed Jacobian.
    """

    norm: Tensor
    leak: Tensor
    products: int


def token_coupling(system: System, z: Tensor, *, generator: torch.Generator) -> Coupling:
    """Measure the size of every token-to-token block of J, whatever the system declares about causality.

    Rows are taken by reverse-mode differentiation of the force itself, not by a system's own products, which may have
    its causality built in.

    Args:
        system: Any system.
        z: State ``[sample, ...]``, finite.
        generator: Source of the random vectors.
    """
    z = z.detach()
    state = by_token(system, z)
    samples, tokens, channels = state.shape
    pullback: Callable[[Tensor], tuple[Tensor]] = torch.func.vjp(system.force, z)[1]
    rows = []
    for t in range(tokens):
        w = torch.zeros_like(state)
        w[:, t] = unit_vectors((samples, channels), generator, state)
        (row,) = pullback(from_token(system, w, z))
        rows.append(torch.linalg.vector_norm(by_token(system, row.detach()), dim=2))
    norm = torch.stack(rows, dim=1)
    above = torch.ones(tokens, tokens, dtype=torch.bool, device=z.device).triu(1)
    diagonal = torch.diagonal(norm, 0, 1, 2).amax(1)
    leaking = norm.masked_fill(~above, 0.0).flatten(1).amax(1)
    return Coupling(norm, leaking / torch.where(diagonal > 0, diagonal, torch.nan), tokens)


def unit_vectors(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Return random vectors along the last axis, of norm 1 and uniform in direction."""
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (drawn / torch.linalg.vector_norm(drawn, dim=-1, keepdim=True)).to(like)


@dataclass(frozen=True)
class Influence:
    """Responses of a root to small constant forces on single tokens.

    Attributes:
        response: norm(dz_t)/norm(delta), time units, ``[sample, source, direction, token]``; NaN where the solution
            failed or ``condition`` says that it means nothing.
        residual: norm(J dz + delta)/norm(delta) by a product of the whole J, ``[sample, source, direction]``.
        condition: Frobenius condition number norm(J_tt) norm(J_tt^{-1}) of each token's block ``[sample, token]``, of
            the whole ``[sample, 1]`` where it was solved as one; between the spectral condition number and the number
            of rows times it. NaN where J was never formed.
        products: Products with the batched Jacobian.
        method: ``token`` (forward substitution), ``dense`` or ``krylov``.
    """

    response: Tensor
    residual: Tensor
    condition: Tensor
    products: int
    method: str


@torch.no_grad()
def influence(
    system: System, z: Tensor, sources: Sequence[int], directions: int, *, generator: torch.Generator
) -> Influence:
    """Measure how a root answers to forces in random directions on chosen tokens.

    Args:
        system: The system.
        z: Roots ``[sample, ...]``, finite.
        sources: Tokens the forces act on.
        directions: Number of random directions for each source and sample.
        generator: Source of the directions and randomness of Krylov solves.

    Raises:
        UsageError: If a source is no token of the system.
    """
    linearization = Linearization(system, z)
    state = by_token(system, linearization.z)
    samples, tokens, channels = state.shape
    for s in sources:
        if not 0 <= s < tokens:
            raise UsageError(f"a source should be one of the tokens 0 to {tokens - 1}, but {s} was asked for")
    solver = response_solver(linearization, generator)
    response = state.new_full((samples, len(sources), directions, tokens), torch.nan)
    residual = state.new_full((samples, len(sources), directions), torch.nan)
    for i, source in enumerate(sources):
        for k in range(directions):
            delta = torch.zeros_like(state)
            delta[:, source] = unit_vectors((samples, channels), generator, state)
            delta = from_token(system, delta, z)
            dz = solver.solve(delta)
            left = by_token(system, linearization.matvec(dz) + delta)
            residual[:, i, k] = torch.linalg.vector_norm(left.flatten(1), dim=1)
            response[:, i, k] = torch.linalg.vector_norm(by_token(system, dz), dim=2)
    known = solver.condition * torch.finfo(z.dtype).eps <= SINGULAR
    # a token's response depends on the blocks of the tokens up to it; an unformed J is judged by the solver alone
    known = (known | solver.condition.isnan()).cumprod(1).bool().expand(samples, tokens)
    response = torch.where(known[:, None, None, :], response, torch.nan)
    return Influence(response, residual, solver.condition, linearization.whole.products + solver.extra, solver.method)


@dataclass(frozen=True)
class ResponseSolver:
    """Solves J dz = -delta at one state.

    Attributes:
        solve: ``delta -> dz`` on states; not finite where that fails.
        condition: See :class:`Influence`.
        method: ``token``, ``dense`` or ``krylov``.
        extra: Products with the token-diagonal Jacobian.
    """

    solve: Product
    condition: Tensor
    method: str
    extra: int = 0


def response_solver(linearization: Linearization, generator: torch.Generator) -> ResponseSolver:
    """Return a solver of J dz = -delta: by substitution for causal systems, else by factors of J or by GMRES.

    Args:
        linearization: J of a system at a state.
        generator: Randomness of GMRES.
    """
    z = linearization.z
    samples = z.shape[0]
    if linearization.system.structure.causal:
        blocks = linearization.token_blocks()
        factors = torch.linalg.lu_factor_ex(blocks)[:2]
        condition = _condition(blocks, factors)
        return ResponseSolver(
            lambda f: _sweep(linearization, factors, f), condition, "token", linearization.token_diagonal().products
        )
    if z[0].numel() <= DENSE_LIMIT:
        matrix = linearization.dense()
        whole = torch.linalg.lu_factor_ex(matrix)[:2]
        return ResponseSolver(
            lambda f: -torch.linalg.lu_solve(*whole, f.flatten(1).unsqueeze(-1)).view_as(f),
            _condition(matrix, whole)[:, None],
            "dense",
        )

    def solve(f: Tensor) -> Tensor:
        found = gmres.solve(
            linearization.whole, -f.flatten(1), generator=generator, tol=KRYLOV[z.dtype], restart=80, max_products=1600
        )
        good = torch.as_tensor(found.converged, device=z.device)
        return torch.where(good[:, None], found.x, torch.nan).view_as(f)

    return ResponseSolver(solve, z.new_full((samples, 1), torch.nan), "krylov")


def _condition(matrices: Tensor, factors: tuple[Tensor, Tensor]) -> Tensor:
    """Return norm(A) norm(A^{-1}), Frobenius, of a batch of factorised matrices; infinite for singular ones."""
    eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    # one sample's inverses at a time: all of them together would be a third copy of the blocks
    inverse = torch.stack(
        [
            torch.linalg.matrix_norm(torch.linalg.lu_solve(lu, p, eye.expand_as(lu)))
            for lu, p in zip(*factors, strict=True)
        ]
    )
    condition = torch.linalg.matrix_norm(matrices) * inverse
    return torch.where(torch.isfinite(condition), condition, torch.inf)


def _sweep(linearization: Linearization, factors: tuple[Tensor, Tensor], delta: Tensor) -> Tensor:
    """Return -J^{-1} delta for block lower triangular J by sweeps d <- d - D^{-1} (delta + J d), D its diagonal blocks.

    Sweep k is exact for the first k tokens from the first one perturbed, so as many sweeps as tokens are always enough;
    one more corrects the rounding. They end earlier once no token's response changes beyond rounding, each judged by
    its own size.
    """
    d = torch.zeros_like(delta)
    small = EXACT_SWEEP * torch.finfo(delta.dtype).eps
    for _ in range(delta.shape[1] + 1):
        step = -torch.linalg.lu_solve(*factors, (delta + linearization.matvec(d)).unsqueeze(-1)).squeeze(-1)
        d = d + step
        moved, size = (torch.linalg.vector_norm(x, dim=2) for x in (step, d))
        # false as well where a block is singular and nothing is finite
        if not bool((moved > small * size).any()):
            break
    return d
