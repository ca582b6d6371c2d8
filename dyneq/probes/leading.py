"""The leading multipliers of the relaxation map M = I + eps J: what ``spectrum`` reports and ``spectral`` penalises.

The derivative of abs(lambda) at a frozen state is Re(conj(lambda)/abs(lambda) w^H dM v / w^H v) with left and right
vectors (Magnus, Econometric Theory 1, 1985). A causal block has one leading multiplier a token, and since its tokens'
blocks do not mix, all of them cost two products.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.spectra import TOKEN_DENSE_LIMIT, WHOLE_DENSE_LIMIT
from dyneq.linalg.dense import dense_eigenpairs, dense_eigenvalues
from dyneq.linalg.krylov_schur import eigenpairs
from dyneq.linalg.targets import LargestModulus
from dyneq.systems.protocol import System


@dataclass(frozen=True)
class LeadingModes:
    """The multiplier of largest modulus of every block, with its vectors.

    A block is a token of a causal system, else a whole sample (``token`` has length 1 then).

    Attributes:
        multiplier: lambda of M ``[sample, token]``, complex128.
        right: Right vectors v ``[sample, ...]``, of the state's shape, complex.
        left: Left vectors w ``[sample, ...]``.
        overlap: w^H v ``[sample, token]``, complex.
        residual: norm(J v - mu v) ``[sample, token]``, per unit time.
        condition: 1/abs(w^H v) for unit vectors ``[sample, token]``.
        usable: Whether pair and left vector converged, bool ``[sample, token]``; False too where no vector was asked
            for: there vectors are 0, overlap 1, residual and condition NaN.
    """

    multiplier: NDArray[np.complex128]
    right: Tensor
    left: Tensor
    overlap: Tensor
    residual: NDArray[np.float64]
    condition: NDArray[np.float64]
    usable: NDArray[np.bool_]


@torch.no_grad()
def leading_modes(system: System, z: Tensor, generator: torch.Generator, *, above: float | None = None) -> LeadingModes:
    """Return the leading multiplier of every token block, or of every sample without causal tokens.

    Args:
        system: The system.
        z: State ``[sample, ...]``, relaxed deeply: off the root multipliers are those of an unconverged state.
        generator: Randomness of Krylov starts.
        above: Vectors are wanted only of blocks whose leading modulus is at least this, and of every sample's leading
            block, where it saves time, which is on the dense path of tokens; all if None.
    """
    linearization, causal = Linearization(system, z), system.structure.causal
    operator = linearization.token_diagonal() if causal else linearization.whole
    target = [LargestModulus(system.eps)]
    if operator.dim <= (TOKEN_DENSE_LIMIT if causal else WHOLE_DENSE_LIMIT):
        matrix = operator.to_dense()
        if above is not None and causal:
            return _above(matrix, system, z, above)
        found = dense_eigenpairs(matrix, target, 1)
    else:
        found = eigenpairs(operator, target, 1, generator=generator, left=True)
    blocks = (z.shape[0], operator.batch // z.shape[0])
    assert found.left_vectors is not None
    assert found.left_converged is not None
    right, left = (v[:, 0].to(z.device) for v in (found.vectors, found.left_vectors))
    overlap = (left.conj() * right).sum(1)
    return LeadingModes(
        (1 + system.eps * found.values[:, 0]).reshape(blocks),
        right.reshape(z.shape),
        left.reshape(z.shape),
        overlap.reshape(blocks),
        found.residual[:, 0].reshape(blocks),
        found.condition[:, 0].reshape(blocks),
        (found.converged & found.left_converged)[:, 0].reshape(blocks),
    )


def _above(matrix: Tensor, system: System, z: Tensor, above: float) -> LeadingModes:
    """Return the modes of token blocks ``[sample * token, n, n]``, with vectors only where they are asked for."""
    blocks, n = (z.shape[0], len(matrix) // z.shape[0]), matrix.shape[-1]
    multipliers = 1 + system.eps * dense_eigenvalues(matrix)
    multiplier = np.take_along_axis(multipliers, np.abs(multipliers).argmax(1)[:, None], 1)[:, 0]
    size = np.abs(multiplier).reshape(blocks)
    # a sample's leading block by its place, for its modulus is compared with nothing
    wanted = ((size >= above) | (np.arange(blocks[1]) == size.argmax(1)[:, None])).ravel()
    rows = torch.from_numpy(wanted)
    found = dense_eigenpairs(matrix[rows.to(matrix.device)], [LargestModulus(system.eps)], 1)
    assert found.left_vectors is not None
    assert found.left_converged is not None
    right, left = torch.zeros(2, len(matrix), n, dtype=found.vectors.dtype)
    right[rows], left[rows] = found.vectors[:, 0].cpu(), found.left_vectors[:, 0].cpu()
    overlap = torch.where(rows, (left.conj() * right).sum(1), torch.ones_like(right[:, 0]))
    residual, condition = np.full((2, len(matrix)), np.nan)
    usable = np.zeros(len(matrix), dtype=bool)
    multiplier[wanted] = 1 + system.eps * found.values[:, 0]
    residual[wanted], condition[wanted] = found.residual[:, 0], found.condition[:, 0]
    usable[wanted] = (found.converged & found.left_converged)[:, 0]
    return LeadingModes(
        multiplier.reshape(blocks),
        right.reshape(z.shape).to(z.device),
        left.reshape(z.shape).to(z.device),
        overlap.reshape(blocks).to(z.device),
        residual.reshape(blocks),
        condition.reshape(blocks),
        usable.reshape(blocks),
    )


@torch.no_grad()
def leading_radii(system: System, z: Tensor, generator: torch.Generator) -> NDArray[np.float64]:
    """Return the modulus of the leading multiplier of every block ``[sample, token]``, without vectors.

    That of :func:`leading_modes` at half its cost; NaN where a block's did not converge.

    Args:
        system: The system.
        z: State ``[sample, ...]``, relaxed deeply.
        generator: Randomness of Krylov starts.
    """
    linearization, causal = Linearization(system, z), system.structure.causal
    operator = linearization.token_diagonal() if causal else linearization.whole
    blocks = (z.shape[0], operator.batch // z.shape[0])
    if operator.dim <= (TOKEN_DENSE_LIMIT if causal else WHOLE_DENSE_LIMIT):
        values = dense_eigenvalues(operator.to_dense())
        return np.abs(1 + system.eps * values).max(1).reshape(blocks)
    found = eigenpairs(operator, [LargestModulus(system.eps)], 1, generator=generator, left=False)
    return np.where(found.converged[:, 0], np.abs(1 + system.eps * found.values[:, 0]), np.nan).reshape(blocks)


def leading_modulus(system: System, z: Tensor, generator: torch.Generator) -> float:
    """Return the largest of :func:`leading_radii` over blocks and samples; NaN if no state is finite or none converged.

    Args:
        system: The system.
        z: State ``[sample, ...]``, relaxed deeply; samples that are not finite, or whose force is not, are left out.
        generator: Randomness of Krylov starts.
    """
    with torch.no_grad():
        rows = torch.isfinite(z).flatten(1).all(1) & torch.isfinite(system.force(z)).flatten(1).all(1)
    if not bool(rows.any()):
        return math.nan
    if not bool(rows.all()):
        index = rows.nonzero().flatten()
        system, z = system.select(index), z[index]
    found = leading_radii(system, z, generator)
    return float(np.nanmax(found)) if np.isfinite(found).any() else math.nan


def leading_moduli(system: System, z: Tensor, modes: LeadingModes) -> Tensor:
    """Return abs(lambda) of the leading multiplier of every block ``[sample, token]``; differentiable.

    The vectors are held: the derivative is exact for simple eigenvalues, and that of the value at a frozen state. Where
    ``z`` carries a graph, the derivative by the state is kept too, as the total derivative at a root needs it.

    Args:
        system: The system, with the weights the modes were computed at.
        z: State ``[sample, ...]`` of the modes.
        modes: From :func:`leading_modes` at this state.
    """
    multiplier = torch.from_numpy(modes.multiplier).to(modes.right)
    size = multiplier.abs()
    unit = multiplier.conj() / torch.where(size > 0, size, 1.0)
    spread = (*multiplier.shape, *[1] * (z.ndim - 2)) if system.structure.causal else (-1, *[1] * (z.ndim - 1))
    u = modes.left * (unit / modes.overlap).conj().view(spread)
    v = modes.right
    with torch.enable_grad():
        at = z if z.requires_grad else z.detach().requires_grad_()
        own = at.view_as(at)  # a token's own part, apart from the context that the others offer
        force = system.force(own, at) if system.structure.causal else system.force(own)
        pulled = [
            torch.autograd.grad(force, own, part.to(z.dtype), create_graph=True, retain_graph=True)[0]
            for part in (u.real, u.imag)
        ]
        moved = pulled[0] * v.real.to(z.dtype) + pulled[1] * v.imag.to(z.dtype)
        summed = moved.flatten(2).sum(2) if system.structure.causal else moved.flatten(1).sum(1, keepdim=True)
    return unit.real.to(z.dtype) + system.eps * summed
