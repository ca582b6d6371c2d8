"""Non-normality of a Jacobian: how far its short-time behaviour can be from what its eigenvalues say.

What belongs to one token block and what to the whole sample differs here: eigenvalues are those of the token blocks,
but the blocks between tokens, which add nothing to the spectrum, make the whole Jacobian non-normal.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.linearization import Linearization
from dyneq.linalg.henrici import Departure, departure_from_normality
from dyneq.linalg.hutchinson import Estimate, jackknife, random_products
from dyneq.linalg.lanczos import extremal_symmetric

#: Relative rounding of a product with the Jacobian, in units of the last place for the root of its dimension.
ROUNDING = 4


@dataclass(frozen=True)
class Blocks:
    """The diagonal blocks whose spectra make up that of the samples, as explicit matrices.

    Attributes:
        matrix: ``[sample * tokens, n, n]``, float64.
        tokens: Blocks a sample: the tokens of a causal system, or 1, the whole sample.
        per_token: Whether they are token blocks.
        departure: Eigenvalues, norms and Henrici's departure of each.
        numerical_abscissa: Largest eigenvalue of the symmetric part of each, per unit time.
        uncertainty: How far each may be off in the Frobenius norm, by rounding and by the error of the state.
    """

    matrix: Tensor
    tokens: int
    per_token: bool
    departure: Departure
    numerical_abscissa: NDArray[np.float64]
    uncertainty: NDArray[np.float64]


@torch.no_grad()
def explicit_blocks(linearization: Linearization, largest: int, displacement: Tensor | None = None) -> Blocks | None:
    """Form the token blocks of a causal system, or the whole Jacobian of any other, and their departures.

    Args:
        linearization: J at a state.
        largest: Dimension above which blocks are not formed.
        displacement: How far the state may be off, of its shape; NaN samples: not known.

    Returns:
        The blocks; None where they are too large.
    """
    causal = linearization.system.structure.causal
    operator = linearization.token_diagonal() if causal else linearization.whole
    if operator.dim > largest:
        return None
    matrix = operator.to_dense().double().cpu()
    tokens = linearization.z.shape[1] if causal else 1
    norm = torch.linalg.matrix_norm(matrix).numpy()
    uncertainty = ROUNDING * operator.dim**0.5 * torch.finfo(operator.dtype).eps * norm
    if displacement is not None:
        known = torch.isfinite(displacement).flatten(1).all(1)
        shape = (-1,) + (1,) * (displacement.ndim - 1)
        there = linearization.z + torch.where(known.view(shape), displacement, torch.zeros_like(displacement))
        moved = Linearization(linearization.system, there)
        other = (moved.token_diagonal() if causal else moved.whole).to_dense().double().cpu()
        off = torch.linalg.matrix_norm(other - matrix).numpy()
        uncertainty = uncertainty + np.where(known.cpu().numpy().repeat(tokens), off, np.nan)
    return Blocks(
        matrix=matrix,
        tokens=tokens,
        per_token=causal,
        departure=departure_from_normality(matrix, uncertainty),
        numerical_abscissa=torch.linalg.eigvalsh(0.5 * (matrix + matrix.mT))[:, -1].numpy(),
        uncertainty=uncertainty,
    )


@dataclass(frozen=True)
class Whole:
    """Sizes and shares of the whole Jacobian of each sample; where exact, the error is that of rounding.

    Attributes:
        norm: Frobenius norm, per unit time.
        departure: Henrici's departure sqrt(norm_F(J)^2 - sum abs(lambda)^2), per unit time; None where eigenvalues are
            not known.
        relative_departure: The same divided by the norm; None likewise.
        antisymmetric_share: norm_F((J - J^T)/2) / norm_F(J).
        asymmetry: Mean over random vectors of norm(Jv - J^T v)/norm(Jv).
        exact: Whether norm, departure and share come from explicit matrices alone.
    """

    norm: Estimate
    departure: Estimate | None
    relative_departure: Estimate | None
    antisymmetric_share: Estimate
    asymmetry: Estimate
    exact: bool


@torch.no_grad()
def whole_sample(
    linearization: Linearization, blocks: Blocks | None, vectors: int, generator: torch.Generator
) -> Whole:
    """Estimate the sizes and shares of the whole Jacobian of every sample.

    Of a causal system with explicit blocks only the part between tokens, L, is estimated: it is strictly lower
    triangular over tokens, so norm_F(J)^2, the squared departure and the squared antisymmetric part are the sums over
    the blocks plus norm_F(L)^2, norm_F(L)^2 and half of it. No difference of nearly equal numbers is taken.

    Args:
        linearization: J at a state.
        blocks: Its explicit blocks, where they could be formed.
        vectors: Random vectors.
        generator: Their source.
    """
    probes = random_products(linearization.whole, vectors, generator=generator)
    asymmetry = probes.asymmetry()
    if blocks is None:
        return Whole(probes.frobenius(), None, None, probes.antisymmetric_share(), asymmetry, False)
    samples = linearization.z.shape[0]
    found = blocks.departure
    scale = np.maximum(found.norm.reshape(samples, -1).max(axis=1), np.finfo(float).tiny)
    if not blocks.per_token:
        share = Estimate(found.antisymmetric_share, blocks.uncertainty / scale)
        relative = Estimate(found.relative, (found.error + blocks.uncertainty) / scale)
        exact = Estimate(found.norm, blocks.uncertainty), Estimate(found.departure, found.error)
        return Whole(exact[0], exact[1], relative, share, asymmetry, True)

    def total(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.square(x.reshape(samples, -1) / scale[:, None]).sum(axis=1, keepdims=True)

    between = random_products(linearization.whole, vectors, generator=generator, minus=linearization.token_diagonal())
    square = 0.5 * (between.forward + between.backward) * np.square(between.scale / scale)[:, None]
    diagonal, departed, skew = total(found.norm), total(found.departure), total(found.antisymmetric)
    norm = jackknife(_root_of(diagonal, 1.0), square)
    departure = jackknife(_root_of(departed, 1.0), square)
    relative = jackknife(_root_of(departed, 1.0, diagonal), square)
    share = jackknife(_root_of(skew, 0.5, diagonal), square)
    off, departure_off = np.sqrt(total(blocks.uncertainty)[:, 0]), np.sqrt(total(found.error)[:, 0])
    return Whole(
        Estimate(norm.value * scale, (norm.error + off) * scale),
        Estimate(departure.value * scale, (departure.error + departure_off) * scale),
        Estimate(relative.value, relative.error + departure_off + off),
        Estimate(share.value, share.error + off),
        asymmetry,
        False,
    )


def _root_of(
    part: NDArray[np.float64], share: float, whole: NDArray[np.float64] | None = None
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return ``x -> sqrt((part + share x) / (whole + x))`` for x ``[sample]`` or ``[sample, vector]``, 0 where 0/0.

    Args:
        part: ``[sample, 1]``.
        share: How much of x belongs to the part.
        whole: ``[sample, 1]``; None for a denominator of 1.
    """

    def of(x: NDArray[np.float64]) -> NDArray[np.float64]:
        wide = x.reshape(len(x), -1)
        top = part + share * wide
        bottom = np.ones_like(top) if whole is None else whole + wide
        return np.sqrt(np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)).reshape(x.shape)

    return of


@torch.no_grad()
def token_asymmetry(linearization: Linearization, vectors: int, generator: torch.Generator) -> Estimate:
    """Return norm(Jv - J^T v)/norm(Jv) of every token block, the mean over random vectors, ``[sample * token]``."""
    return random_products(linearization.token_diagonal(), vectors, generator=generator).asymmetry()


@torch.no_grad()
def token_numerical_abscissa(
    linearization: Linearization, generator: torch.Generator, tol: float = 1e-6
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the numerical abscissa of every token block by Lanczos, and its error, ``[sample * token]``.

    The error is the residual, NaN where it has not converged: for blocks too large to be formed.
    """
    found = extremal_symmetric(linearization.token_diagonal().symmetric_part(), "largest", generator=generator, tol=tol)
    return found.values[:, 0], np.where(found.converged[:, 0], found.residual[:, 0], np.nan)
