"""Blocks of causal attention beside a position-wise branch, around a damped, input-driven state.

F(z) = x - (1 + c) z + Attn(u) + Branch(w), with u and w normalisations of z.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from dyneq.errors import UsageError, nearest
from dyneq.systems.parts.attention import CausalAttention
from dyneq.systems.parts.copies import shallow_copy
from dyneq.systems.parts.feedforward import FeedForward
from dyneq.systems.parts.hopfield import HopfieldMemory
from dyneq.systems.parts.norms import LayerNorm
from dyneq.systems.protocol import Product
from dyneq.systems.token_block import TokenBlock, TokenConfig

Norms = tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor, Tensor], Tensor]]
"""Products with the Jacobian of ``z -> (u, w)`` and with its transpose."""


class TwoBranchConfig(TokenConfig, Protocol):
    """The settings :class:`TwoBranchBlock` reads beside those of its embeddings."""

    @property
    def heads(self) -> int:
        """Attention heads."""

    @property
    def damping(self) -> float:
        """C in F = x - (1 + c) z + ..."""


class TwoBranchBlock(TokenBlock):
    """Base of the thick and the thin block; a subclass makes ``attn``, the other branch, and the normalisations.

    Attributes:
        attn: The attention.
        ln1: The normalisation before it.
        branch: Name of the position-wise branch, of its module and as a part.
    """

    attn: CausalAttention
    ln1: LayerNorm
    branch: ClassVar[str]

    @property
    def _two(self) -> TwoBranchConfig:
        return self.config  # type: ignore[return-value]

    def attended_input(self, z: Tensor) -> Tensor:
        """Return what the attention sees of a state ``[..., channel]``."""
        return self.ln1(z)

    @abstractmethod
    def pointwise_input(self, z: Tensor, u: Tensor) -> Tensor:
        """Return what the position-wise branch sees of a state ``[..., channel]``, given what the attention sees."""

    @abstractmethod
    def linearize_norms(self, z: Tensor) -> tuple[Tensor, Tensor, Norms]:
        """Return both inputs at ``z`` with the products of their Jacobian."""

    @property
    def pointwise(self) -> FeedForward | HopfieldMemory:
        """The position-wise branch."""
        return getattr(self, self.branch)

    def force(self, z: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return F(z; x) ``[sample, token, channel]``, in units of z per unit time."""
        u = self.attended_input(z)
        attended = self.attn(u, None if context is None else self.attended_input(context))
        # in this order: the backward pass adds up in the reverse one, and the packaged checkpoints hold its rounding
        return x - (1 + self._two.damping) * z + attended + self.pointwise(self.pointwise_input(z, u))

    def branches(self, z: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Return ``attention`` and the position-wise branch by its name, each ``[sample, token, channel]``."""
        u = self.attended_input(z)
        return {"attention": self.attn(u), self.branch: self.pointwise(self.pointwise_input(z, u))}

    @property
    def parts(self) -> tuple[str, ...]:
        """The attention, each of its heads, the other branch, and the antisymmetric shares of W_O W_V."""
        return ("attention", *(f"head:{h}" for h in range(self._two.heads)), self.branch, "antisymmetric")

    def scaled(self, part: str, alpha: float) -> "TwoBranchBlock":
        """Return a copy with one part scaled by ``alpha``; weights it does not change are shared.

        Args:
            part: ``attention`` (W_O and its bias), ``head:3`` (one head's columns of W_O), the position-wise branch by
                its name (``ffn`` or ``memory``), or ``antisymmetric`` (the antisymmetric share of every head's product
                W_O W_V).
            alpha: Factor, finite.

        Raises:
            UsageError: If there is no such part, or the factor is not finite.
        """
        require_part(self, part, alpha)
        copy = shallow_copy(self)
        if part == self.branch:
            setattr(copy, self.branch, self.pointwise.scaled(alpha))
        elif part == "attention":
            copy.attn = self.attn.scaled(alpha)
        elif part == "antisymmetric":
            copy.attn = self.attn.scaled_antisymmetric(alpha)
        else:
            copy.attn = self.attn.scaled_head(int(part.removeprefix("head:")), alpha)
        return copy

    def head_products(self) -> Tensor:
        """Return W_O W_V of every attention head ``[head, channel, channel]``."""
        return self.attn.head_products()

    def linearize(self, z: Tensor, x: Tensor, tokens_only: bool) -> tuple[Product, Product]:
        """Return ``v -> J v`` and ``w -> J^T w`` at ``z``; each costs about one force."""
        z = z.detach()
        with torch.no_grad():
            u, w, (norms, norms_t) = self.linearize_norms(z)
            attn, attn_t = self.attn.linearize(u, tokens_only)
            branch, branch_t = self.pointwise.linearize(w)
        decay = -(1 + self._two.damping)

        @torch.no_grad()
        def matvec(v: Tensor) -> Tensor:
            du, dw = norms(v)
            return attn(du).add_(branch(dw)).add_(v, alpha=decay)

        @torch.no_grad()
        def rmatvec(w: Tensor) -> Tensor:
            return norms_t(attn_t(w), branch_t(w)).add_(w, alpha=decay)

        return matvec, rmatvec

    def token_force(self, token: int, context: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``z_t -> F_t`` ``[sample, channel]``; the cost does not grow with later tokens."""
        keys, values = self.attn.key_value(self.attended_input(context[:, :token]))
        return self._decoded(self.attn.decode(keys, values), x[:, token])

    def rows_force(self, tokens: Tensor, context: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``z -> F`` ``[row, channel]`` for one token of every row, in one call for all of them."""
        last = int(tokens.max())
        keys, values = self.attn.key_value(self.attended_input(context[:, :last]))
        hidden = torch.arange(last, device=tokens.device) >= tokens[:, None]
        own = x[torch.arange(len(tokens), device=tokens.device), tokens]
        return self._decoded(self.attn.decode(keys, values, hidden), own)

    def _decoded(self, attend: Callable[[Tensor], Tensor], own: Tensor) -> Callable[[Tensor], Tensor]:
        decay = 1 + self._two.damping

        def of(z: Tensor) -> Tensor:
            u = self.attended_input(z)
            w = self.pointwise_input(z, u)
            return own - decay * z + attend(u) + self.pointwise(w)

        return of


def require_part(block: TokenBlock, part: str, alpha: float) -> None:
    """Raise unless a block has a part and the factor on it is finite.

    Raises:
        UsageError: If it has not, or the factor is not.
    """
    if not math.isfinite(alpha):
        raise UsageError(f"a part is scaled by a finite factor, but {alpha} was asked for; 0 knocks it out")
    if part not in block.parts:
        heads = [name for name in block.parts if name.startswith("head:")]
        raise UsageError(
            f"{type(block).__name__} has no part {part!r} to scale: its heads are {heads[0]} to {heads[-1]}"
            if heads and part.startswith("head")
            else f"{type(block).__name__} has no part {part!r} to scale{nearest(part, block.parts)}"
        )
