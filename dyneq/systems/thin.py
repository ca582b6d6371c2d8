"""The thin block: softmax attention beside a tied Hopfield memory, both behind one normalisation.

F(z) = x - (1 + c) z + Attn(LN z) + relu(LN z Xi) Xi^T,    logits = z W_head^T
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dyneq.systems.parts import fields
from dyneq.systems.parts.attention import AttentionForm, CausalAttention
from dyneq.systems.parts.constrained import AttentionConstraint
from dyneq.systems.parts.hopfield import HopfieldMemory
from dyneq.systems.parts.norms import LayerNorm
from dyneq.systems.two_branch import Norms, TwoBranchBlock


class ThinConfig(AttentionConstraint):
    """Everything that defines a thin block but its weights."""

    kind: Literal["thin"] = "thin"
    vocabulary: fields.Vocabulary
    channels: fields.Channels
    heads: fields.Heads
    tokens: fields.Tokens
    eps: fields.Eps = 0.1
    damping: fields.Damping = 1.0
    widening: fields.MemoryWidening = 4
    attention_bias: fields.AttentionBias = False
    qk_norm: fields.QkNorm = False
    final_norm: fields.FinalNorm = False
    norm_eps: fields.NormEps = 1e-5
    attention: AttentionForm = Field("plain", description="plain, or torch's fused kernel")
    embedding_std: fields.EmbeddingStd = 1.0
    resinit: float = Field(1.0, gt=0, description="factor on W_O and on the memory's branch at initialisation")

    @model_validator(mode="after")
    def _heads_divide(self) -> "ThinConfig":
        fields.require_divisor(self.channels, self.heads)
        return self


class ThinBlock(TwoBranchBlock):
    """The thin equilibrium block; its memory adds a symmetric, positive semidefinite matrix behind the normalisation.

    Args:
        config: Shape and options.
        generator: Source of the initial weights; seed 0 on the CPU if None.
    """

    Config = ThinConfig
    config: ThinConfig
    branch = "memory"

    def __init__(self, config: ThinConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config, self.eps = config, config.eps
        c = config.channels
        self._embeddings(config, config.vocabulary)
        self.ln1 = LayerNorm(c, eps=config.norm_eps)
        self.attn = CausalAttention(
            c, config.heads, config.attention_bias, config.qk_norm, config.norm_eps, config.attention, config
        )
        self.memory = HopfieldMemory(c, config.widening)
        self._read_out(config, generator)

    @torch.no_grad()
    def _soften(self, factor: float) -> None:
        self.attn.scale_output_(factor)
        self.memory.xi.weight.mul_(factor**0.5)  # the branch is quadratic in the patterns

    def pointwise_input(self, z: Tensor, u: Tensor) -> Tensor:
        """Return LN z, which the attention sees too."""
        return u

    def linearize_norms(self, z: Tensor) -> tuple[Tensor, Tensor, Norms]:
        """Return LN z, twice, with the products of its Jacobian."""
        u, ln1, ln1_t = self.ln1.linearize(z)

        def product(v: Tensor) -> tuple[Tensor, Tensor]:
            du = ln1(v)
            return du, du

        return u, u, (product, lambda a, b: ln1_t(a.add_(b)))
