"""The thick block: pre-norm attention and feed-forward branches around a damped, input-driven state.

F(z) = x - (1 + c) z + Attn(LN1 z) + FFN(LN2 z),    logits = z W_head^T
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dyneq.systems.parts import fields
from dyneq.systems.parts.attention import AttentionForm, CausalAttention
from dyneq.systems.parts.constrained import AttentionConstraint
from dyneq.systems.parts.feedforward import FeedForward, Gelu
from dyneq.systems.parts.norms import LayerNorm
from dyneq.systems.two_branch import Norms, TwoBranchBlock


class ThickConfig(AttentionConstraint):
    """Everything that defines a thick block but its weights."""

    kind: Literal["thick"] = "thick"
    vocabulary: fields.Vocabulary
    channels: fields.Channels
    heads: fields.Heads
    tokens: fields.Tokens
    eps: fields.Eps = 0.1
    damping: fields.Damping = 1.0
    widening: fields.Widening = 4
    gelu: Gelu = Field("erf", description="form of GELU, the same everywhere")
    ffn_bias: fields.FfnBias = True
    attention_bias: fields.AttentionBias = False
    qk_norm: fields.QkNorm = False
    final_norm: fields.FinalNorm = False
    norm_eps: fields.NormEps = 1e-5
    attention: AttentionForm = Field("plain", description="plain, or torch's fused kernel")
    embedding_std: fields.EmbeddingStd = 1.0
    resinit: float = Field(1.0, gt=0, description="factor on W_O and pj at initialisation")

    @model_validator(mode="after")
    def _heads_divide(self) -> "ThickConfig":
        fields.require_divisor(self.channels, self.heads)
        return self


class ThickBlock(TwoBranchBlock):
    """The thick equilibrium block.

    Args:
        config: Shape and options.
        generator: Source of the initial weights; seed 0 on the CPU if None.
    """

    Config = ThickConfig
    config: ThickConfig
    branch = "ffn"

    def __init__(self, config: ThickConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config, self.eps = config, config.eps
        c = config.channels
        self._embeddings(config, config.vocabulary)
        self.ln1 = LayerNorm(c, eps=config.norm_eps)
        self.ln2 = LayerNorm(c, eps=config.norm_eps)
        self.attn = CausalAttention(
            c, config.heads, config.attention_bias, config.qk_norm, config.norm_eps, config.attention, config
        )
        self.ffn = FeedForward(c, config.widening, config.gelu, config.ffn_bias)
        self._read_out(config, generator)

    @torch.no_grad()
    def _soften(self, factor: float) -> None:
        self.attn.scale_output_(factor)
        self.ffn.pj.weight.mul_(factor)

    def pointwise_input(self, z: Tensor, u: Tensor) -> Tensor:
        """Return LN2 z."""
        return self.ln2(z)

    def linearize_norms(self, z: Tensor) -> tuple[Tensor, Tensor, Norms]:
        """Return LN1 z and LN2 z with the products of their Jacobians."""
        u, ln1, ln1_t = self.ln1.linearize(z)
        w, ln2, ln2_t = self.ln2.linearize(z)
        return u, w, (lambda v: (ln1(v), ln2(v)), lambda a, b: ln1_t(a).add_(ln2_t(b)))
