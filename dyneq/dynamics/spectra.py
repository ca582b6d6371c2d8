"""Leading eigenvalues of a linearisation, each with its address, residual and condition."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.drift import Drift, blocks_of
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.structure import check_causality
from dyneq.errors import UsageError
from dyneq.linalg.dense import dense_eigenpairs
from dyneq.linalg.krylov_schur import eigenpairs
from dyneq.linalg.operator import LinearOperator
from dyneq.linalg.result import EigenResult
from dyneq.linalg.targets import Target

Method = Literal["auto", "token", "krylov", "dense"]
METHODS: tuple[Method, ...] = ("auto", "token", "krylov", "dense")

#: Token blocks up to this many channels are solved by LAPACK, larger ones by Krylov-Schur.
TOKEN_DENSE_LIMIT = 128
#: Without token structure, whole samples up to this dimension are solved by LAPACK when the method is ``auto``.
WHOLE_DENSE_LIMIT = 384
#: Above this dimension a dense spectrum of a whole sample is refused: the matrices alone would fill the memory.
WHOLE_DENSE_REFUSED = 6000


@dataclass(frozen=True)
class Pairs:
    """Eigenpairs of many blocks in one flat table; every array has one entry a pair.

    Attributes:
        block: Which operator of the batch.
        mu: Eigenvalue of J, per unit time.
        residual: norm(J v - mu v) with norm(v) = 1: a backward error.
        condition: 1/abs(w^H v); NaN where no left vector converged.
        converged: Whether the residual is within the solver's tolerance.
        drift: norm((J(z + d) - J(z)) v) for a displacement d of the state: how far J is off where the state is off by
            d; 0 where none was given.
    """

    block: NDArray[np.int64]
    mu: NDArray[np.complex128]
    residual: NDArray[np.float64]
    condition: NDArray[np.float64]
    converged: NDArray[np.bool_]
    drift: NDArray[np.float64]

    @property
    def error(self) -> NDArray[np.float64]:
        """First-order estimate of abs(error of mu), for simple eigenvalues; NaN where not converged or not known.

        It is (residual + 2 drift) condition: at a double root the Newton correction is half the distance to it.
        """
        with np.errstate(invalid="ignore"):
            error = np.where(np.isposinf(self.condition), np.inf, (self.residual + 2 * self.drift) * self.condition)
        return np.where(self.converged & ~np.isnan(self.drift), error, np.nan)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> "Pairs":
        """Return the pairs of an index array or mask."""
        return Pairs(*(getattr(self, f.name)[index] for f in fields(self)))

    def best(self, target: Target, blocks: int) -> NDArray[np.int64]:
        """Return for each block the index of the pair the target wants most, +imag first; -1 where it has none."""
        upper = self.mu.real + 1j * np.abs(self.mu.imag)
        order = np.lexsort((-self.mu.imag, -target.key(upper), self.block))
        found = np.full(blocks, -1, dtype=np.int64)
        present, first = np.unique(self.block[order], return_index=True)
        found[present] = order[first]
        return found

    @staticmethod
    def of(result: EigenResult, names: NDArray[np.int64], drift: NDArray[np.float64]) -> "Pairs":
        """Return the pairs of an eigenvalue computation whose batch elements are the blocks ``names``."""
        rows, columns = np.nonzero(result.present)
        at = (rows, columns)
        return Pairs(
            names[rows], result.values[at], result.residual[at], result.condition[at], result.converged[at], drift[at]
        )

    @staticmethod
    def concatenate(parts: Sequence["Pairs"]) -> "Pairs":
        """Return one table of several."""
        return Pairs(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Pairs)))


@dataclass(frozen=True)
class LeadingSpectrum:
    """Leading pairs of all blocks of a linearisation.

    Attributes:
        method: What was done: ``token`` or ``whole``, and the solver.
        samples: Number of samples.
        tokens: Blocks a sample: the tokens, or 1 for whole samples.
        per_token: Whether the blocks are token blocks.
        pairs: The pairs found; at least the most wanted ones of every target in every block.
        leading: Indices into ``pairs`` of the globally most wanted by the first target, conjugate pairs whole.
        matvecs: Products with the batched Jacobian or its transpose.
    """

    method: str
    samples: int
    tokens: int
    per_token: bool
    pairs: Pairs
    leading: NDArray[np.int64]
    matvecs: int

    def address(self, block: int) -> tuple[int, int | None]:
        """Return the (sample, token) of a block; the token is None for whole samples."""
        return (block // self.tokens, block % self.tokens) if self.per_token else (block, None)


def resolve_method(method: Method, linearization: Linearization) -> Literal["token", "krylov", "dense"]:
    """Return the method to use for a linearisation.

    Raises:
        UsageError: If the method is unknown, or dense is asked for a state too large for it.
    """
    dim = linearization.whole.dim
    if method == "auto":
        if linearization.system.structure.causal:
            return "token"
        return "dense" if dim <= WHOLE_DENSE_LIMIT else "krylov"
    if method not in METHODS:
        raise UsageError(f"the method of a spectrum is one of {', '.join(METHODS)}, but {method!r} was asked for")
    if method == "dense" and dim > WHOLE_DENSE_REFUSED:
        raise UsageError(
            f"the dense spectrum of a state of dimension {dim} was asked for, but above {WHOLE_DENSE_REFUSED} it does "
            "not fit; use --method token or krylov"
        )
    return method


@torch.no_grad()
def leading_spectrum(
    linearization: Linearization,
    targets: Sequence[Target],
    count: int,
    *,
    generator: torch.Generator,
    method: Method = "auto",
    tol: float | None = None,
    displacement: Tensor | None = None,
) -> LeadingSpectrum:
    """Compute the leading eigenpairs of every block for every target, and the globally leading ``count``.

    Each block is first asked for its two most wanted pairs; blocks that could hold more of the global list are asked
    again for more, until the list is complete.

    Args:
        linearization: J at a state.
        targets: What is wanted; the first decides the global list.
        count: Length of the global list (one more where the last is half of a conjugate pair).
        generator: Randomness of Krylov starts.
        method: ``token`` (diagonal blocks, causal systems), ``krylov`` or ``dense`` (whole samples), or ``auto``.
        tol: Relative tolerance of the pairs; the solver's default if None.
        displacement: How far the state may be off, of its shape, for the pairs' ``drift``; NaN samples: not known.

    Raises:
        CausalityError: If the token method is used and the system is not causal after all.
    """
    chosen = resolve_method(method, linearization)
    samples = linearization.z.shape[0]
    if chosen == "token":
        check_causality(linearization.system, linearization.z)
    operator, tokens = blocks_of(linearization, chosen)
    dense = chosen == "dense" or operator.dim <= (TOKEN_DENSE_LIMIT if chosen == "token" else 32)
    before = operator.products
    matrices = operator.to_dense() if dense else None
    drift = None if displacement is None else Drift(linearization, chosen, displacement, operator, matrices)
    solvers: set[str] = set()

    def solve(index: NDArray[np.int64], wanted: int) -> Pairs:
        part: LinearOperator = operator
        if matrices is not None:
            block = matrices if len(index) == operator.batch else matrices[torch.as_tensor(index)]
            result = dense_eigenpairs(block, targets, wanted)
            # LAPACK certifies the matrix it was given, whose columns carry the rounding of the products they come from
            rounding = result.scale[:, None] * torch.finfo(operator.dtype).eps
            result = replace(result, residual=result.residual + rounding)
        else:
            if len(index) < operator.batch:
                part = operator.restrict(torch.as_tensor(index, device=operator.device))
            result = eigenpairs(part, targets, wanted, generator=generator, tol=tol)
        solvers.add(result.method)
        return Pairs.of(result, index, np.zeros(result.values.shape) if drift is None else drift(result, index))

    wanted = min(2, operator.dim)
    pairs = solve(np.arange(operator.batch), wanted)
    while True:
        leading = _global(pairs, targets[0], count)
        open_blocks = _could_hold_more(pairs, targets[0], leading, wanted, operator.dim)
        if not len(open_blocks):
            break
        wanted = min(2 * wanted, operator.dim)
        kept = pairs.take(~np.isin(pairs.block, open_blocks))
        pairs = Pairs.concatenate([kept, solve(open_blocks, wanted)])
    return LeadingSpectrum(
        f"{'token' if chosen == 'token' else 'whole'}:{'+'.join(sorted(solvers))}",
        samples,
        tokens,
        chosen == "token",
        pairs,
        leading,
        operator.products - before + (0 if drift is None else drift.products),
    )


def _keys(pairs: Pairs, target: Target) -> NDArray[np.float64]:
    return target.key(pairs.mu.real + 1j * np.abs(pairs.mu.imag))


def _global(pairs: Pairs, target: Target, count: int) -> NDArray[np.int64]:
    """Return the indices of the ``count`` most wanted pairs, or one more: conjugates are adjacent and never split."""
    heads = np.nonzero(pairs.mu.imag >= 0)[0]  # a conjugate follows its head in the table
    order = heads[np.lexsort((np.abs(pairs.mu[heads].imag), pairs.block[heads], -_keys(pairs, target)[heads]))]
    chosen: list[int] = []
    for head in order:
        if len(chosen) >= count:
            break
        chosen += [head, head + 1] if pairs.mu[head].imag > 0 else [head]
    return np.array(chosen, dtype=np.int64)


def _could_hold_more(
    pairs: Pairs, target: Target, leading: NDArray[np.int64], wanted: int, dim: int
) -> NDArray[np.int64]:
    """Return the blocks all of whose wanted pairs made the global list, so that further ones might belong there."""
    if wanted >= dim or not len(leading):
        return np.empty(0, dtype=np.int64)
    threshold = _keys(pairs, target)[leading].min()
    at_least = _keys(pairs, target) >= threshold
    blocks, number = np.unique(pairs.block[at_least], return_counts=True)
    total = dict(zip(*np.unique(pairs.block, return_counts=True), strict=True))
    return np.array([b for b, n in zip(blocks, number, strict=True) if n >= wanted and total[b] < dim], dtype=np.int64)
