"""Blocks z <- relu(W z_t + u_t) whose only state-dependent part is one matrix, the same at every token.

F(z) = relu(W z + u) - z with u = x + Attn(LN x) + b, computed once from the input x = tok[idx] + pos: tokens exchange
what they know before the relaxation, not during it. The Jacobian is D W - I at every token, D the active units.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional

from dyneq.systems.parts import fields
from dyneq.systems.parts.attention import AttentionForm, CausalAttention
from dyneq.systems.parts.continuation import relu
from dyneq.systems.parts.copies import shallow_copy
from dyneq.systems.parts.norms import LayerNorm
from dyneq.systems.parts.recurrent import Recurrent
from dyneq.systems.protocol import Product
from dyneq.systems.token_block import TokenBlock
from dyneq.systems.two_branch import require_part


class RectifiedConfig(BaseModel):
    """What defines such a block beside its matrix."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocabulary: fields.Vocabulary
    channels: fields.Channels
    heads: fields.Heads
    tokens: fields.Tokens
    eps: fields.Eps = 0.1
    attention_bias: fields.AttentionBias = False
    qk_norm: fields.QkNorm = False
    final_norm: fields.FinalNorm = False
    norm_eps: fields.NormEps = 1e-5
    attention: AttentionForm = Field("plain", description="plain, or torch's fused kernel")
    embedding_std: fields.EmbeddingStd = 1.0
    resinit: float = Field(1.0, gt=0, description="factor on W_O at initialisation")

    @model_validator(mode="after")
    def _heads_divide(self) -> "RectifiedConfig":
        fields.require_divisor(self.channels, self.heads)
        return self


class RectifiedBlock(TokenBlock):
    """Base of the monotone blocks; a subclass gives the matrix and says which steps its bound covers.

    Args:
        config: Shape and options.
        generator: Source of the initial weights; seed 0 on the CPU if None.
    """

    config: RectifiedConfig

    def __init__(self, config: RectifiedConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config, self.eps = config, config.eps
        c = config.channels
        self._embeddings(config, config.vocabulary)
        self.ln = LayerNorm(c, eps=config.norm_eps)
        self.attn = CausalAttention(
            c, config.heads, config.attention_bias, config.qk_norm, config.norm_eps, config.attention
        )
        self.recurrent = self._matrix()
        self._read_out(config, generator)

    @abstractmethod
    def _matrix(self) -> Recurrent:
        """Return the recurrent matrix with its bias."""

    @abstractmethod
    def guaranteed_step(self) -> float:
        """Return a step up to which the relaxation converges from everywhere, by the block's bound and its weights."""

    @torch.no_grad()
    def _soften(self, factor: float) -> None:
        self.attn.scale_output_(factor)
        self.recurrent.soften_()

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the drive u = x + Attn(LN x) + b ``[sample, token, channel]``, which is also where z starts."""
        x = super().embed(tokens)
        return x + self.attn(self.ln(x)) + self.recurrent.bias

    def force(self, z: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return relu(W z + x) - z; a context changes nothing, for no token sees another's state."""
        return self.branches(z, x)["recurrent"] - z

    def branches(self, z: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Return ``recurrent``, relu(W z + x)."""
        w = self.recurrent.matrix()
        return {"recurrent": relu(functional.linear(z, w.to(z.dtype)) + x)}

    @property
    def parts(self) -> tuple[str, ...]:
        """The whole recurrent matrix, and its antisymmetric part."""
        return ("recurrent", "antisymmetric")

    def scaled(self, part: str, alpha: float) -> "RectifiedBlock":
        """Return a copy with one part of W scaled by ``alpha``, which may lose the bound.

        Args:
            part: ``recurrent`` or ``antisymmetric``.
            alpha: Factor, finite.

        Raises:
            UsageError: If there is no such part, or the factor is not finite.
        """
        require_part(self, part, alpha)
        copy = shallow_copy(self)
        copy.recurrent = self.recurrent.scaled(part, alpha)
        return copy

    def linearize(self, z: Tensor, x: Tensor, tokens_only: bool) -> tuple[Product, Product]:
        """Return ``v -> D W v - v`` and its transpose; whole and token-diagonal products are the same."""
        with torch.no_grad():
            w = self.recurrent.matrix()
            active = (functional.linear(z, w) + x > 0).to(w.dtype)

        @torch.no_grad()
        def matvec(v: Tensor) -> Tensor:
            return functional.linear(v, w).mul_(active).sub_(v)

        @torch.no_grad()
        def rmatvec(v: Tensor) -> Tensor:
            return torch.matmul(v * active, w).sub_(v)

        return matvec, rmatvec

    def token_force(self, token: int, context: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``z_t -> F_t`` ``[sample, channel]``."""
        own = x[:, token]
        return lambda z_t: self.force(z_t, own)

    def rows_force(self, tokens: Tensor, context: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``z -> F`` ``[row, channel]`` for one token of every row."""
        own = x[torch.arange(len(tokens), device=tokens.device), tokens]
        return lambda z: self.force(z, own)
