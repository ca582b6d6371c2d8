"""The one eigenpair of every sample that decides over its stability at a root, with address and error."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.correction import root_displacement
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.spectra import TOKEN_DENSE_LIMIT, WHOLE_DENSE_LIMIT, leading_spectrum
from dyneq.linalg.dense import dense_eigenpairs
from dyneq.linalg.targets import LargestModulus, Rightmost, Target
from dyneq.systems.protocol import System, Time

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RootPairs:
    """The leading pair of every sample, each array ``[sample]``: rightmost for a flow, of largest modulus for a map.

    Attributes:
        mu: Eigenvalue of J per unit time, imaginary part not below 0.
        token: Token it belongs to; -1 for whole samples.
        residual: norm(J v - mu v) with norm(v) = 1, the rounding of J included.
        condition: 1/abs(w^H v) in its block.
        error: First-order bar of abs(mu): (residual + 2 drift) condition, where drift is what the root's own error does
            to J v; NaN where not known.
        flow: Whether it is a flow.
    """

    mu: NDArray[np.complex128]
    token: NDArray[np.int64]
    residual: Array
    condition: Array
    error: Array
    flow: bool

    @property
    def margin(self) -> Array:
        """Distance beyond the stability boundary ``[sample]``: Re mu for a flow, abs(1 + mu) - 1 for a map."""
        return margin_of(self.mu, self.flow)

    @property
    def scale(self) -> Array:
        """Size that differences of eigenvalues are compared with, ``[sample]``."""
        return np.maximum(np.abs(self.mu), 0.1)


def margin_of(mu: NDArray[np.complex128], flow: bool) -> Array:
    """Return Re mu for a flow, abs(1 + mu) - 1 for a map: above 0 a mode grows."""
    return mu.real if flow else np.abs(1 + mu) - 1


@torch.no_grad()
def root_pairs(system: System, z: Tensor, *, generator: torch.Generator) -> RootPairs:
    """Return the leading pair of every sample at its root.

    Args:
        system: The system.
        z: Roots ``[sample, ...]``, finite.
        generator: Randomness of Krylov starts and of the roots' errors.
    """
    flow, linearization = system.time is Time.FLOW, Linearization(system, z)
    target: Target = Rightmost() if flow else LargestModulus(1.0)
    displacement = root_displacement(system, z, generator=generator)
    blocks = _blocks(linearization)
    if blocks is None:
        return _by_krylov(linearization, target, displacement, generator, flow)
    values = torch.linalg.eigvals(blocks.double()).cpu().numpy()
    which = margin_of(values, flow).max(2).argmax(1)
    rows = np.arange(len(which))
    found = dense_eigenpairs(blocks[torch.as_tensor(rows), torch.as_tensor(which)], [target], 1)
    residual = found.residual[:, 0] + found.scale * torch.finfo(z.dtype).eps
    drift = _drift(linearization, found.vectors[:, 0], which, displacement)
    return RootPairs(
        mu=_upper(found.values[:, 0]),
        token=which if system.structure.causal else np.full(len(which), -1),
        residual=residual,
        condition=found.condition[:, 0],
        error=(residual + 2 * drift) * found.condition[:, 0],
        flow=flow,
    )


@torch.no_grad()
def leading_margin(system: System, z: Tensor, *, generator: torch.Generator) -> float:
    """Return the margin of the leading pair of one sample ``[1, ...]``, without its errors and so at half the cost."""
    flow, linearization = system.time is Time.FLOW, Linearization(system, z)
    blocks = _blocks(linearization)
    if blocks is None:
        target: Target = Rightmost() if flow else LargestModulus(1.0)
        return float(_by_krylov(linearization, target, None, generator, flow).margin[0])
    return float(margin_of(torch.linalg.eigvals(blocks.double()).cpu().numpy(), flow).max())


def _upper(mu: NDArray[np.complex128]) -> NDArray[np.complex128]:
    return mu.real + 1j * np.abs(mu.imag)


def _blocks(linearization: Linearization) -> Tensor | None:
    """Return the diagonal blocks ``[sample, block, n, n]``, one a sample without tokens; None where they are large."""
    if linearization.system.structure.causal:
        return linearization.token_blocks() if linearization.z.shape[2] <= TOKEN_DENSE_LIMIT else None
    return linearization.dense()[:, None] if linearization.whole.dim <= WHOLE_DENSE_LIMIT else None


def _drift(linearization: Linearization, vectors: Tensor, which: NDArray[np.int64], displacement: Tensor) -> Array:
    """Return norm((J(z + d) - J(z)) v) of each sample's block, NaN where d is not known."""
    z = linearization.z
    known = torch.isfinite(displacement).flatten(1).all(1)
    moved = Linearization(linearization.system, torch.where(known.view(-1, *[1] * (z.ndim - 1)), z + displacement, z))
    causal = linearization.system.structure.causal
    operators = [x.token_diagonal() if causal else x.whole for x in (linearization, moved)]
    square = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    for part in (vectors.real, vectors.imag):
        v = part.to(z.dtype)
        if causal:
            placed = torch.zeros_like(z)
            placed[torch.arange(len(z)), torch.as_tensor(which)] = v
            v = placed.flatten(0, 1)
        images = operators[1].matvec(v) - operators[0].matvec(v)
        square += images.double().reshape(len(z), -1).square().sum(1)
    return torch.where(known, square.sqrt(), torch.nan).cpu().numpy()


def _by_krylov(
    linearization: Linearization,
    target: Target,
    displacement: Tensor | None,
    generator: torch.Generator,
    flow: bool,
) -> RootPairs:
    found = leading_spectrum(linearization, [target], 1, generator=generator, displacement=displacement)
    best = found.pairs.best(target, found.samples * found.tokens)
    margin = np.where(best >= 0, margin_of(found.pairs.mu[best], flow), -np.inf).reshape(found.samples, found.tokens)
    which = margin.argmax(1)
    at = best.reshape(found.samples, found.tokens)[np.arange(found.samples), which]
    pairs = found.pairs.take(at)
    token = which if found.per_token else np.full(len(which), -1)
    return RootPairs(_upper(pairs.mu), token, pairs.residual, pairs.condition, pairs.error, flow)
