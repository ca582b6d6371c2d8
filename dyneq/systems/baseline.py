"""The baseline: an ordinary transformer of the thick block's parts, computed in one pass.

It does not relax. As a system, its state is the output h of its layers, where it starts and where it stays:
F(z) = h - z is 0 at the start, as a map in one step. So bptt of any number of steps is plain back-propagation, its loss
is the ordinary one, and what looks at a relaxation refuses it.
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from dyneq.systems.parts import fields
from dyneq.systems.parts.attention import AttentionForm, CausalAttention
from dyneq.systems.parts.constrained import AttentionConstraint
from dyneq.systems.parts.feedforward import FeedForward, Gelu
from dyneq.systems.parts.layer import PreNormLayer
from dyneq.systems.protocol import Product, Time
from dyneq.systems.token_block import TokenBlock


class BaselineConfig(AttentionConstraint):
    """Everything that defines a baseline but its weights."""

    kind: Literal["bp"] = "bp"
    vocabulary: fields.Vocabulary
    channels: fields.Channels
    heads: fields.Heads
    tokens: fields.Tokens
    layers: int = Field(1, gt=0, description="layers L, each with weights of its own")
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
    def _heads_divide(self) -> "BaselineConfig":
        fields.require_divisor(self.channels, self.heads)
        return self


class BaselineBlock(TokenBlock):
    """An ordinary pre-norm transformer of ``layers`` layers.

    Args:
        config: Shape and options.
        generator: Source of the initial weights; seed 0 on the CPU if None.
    """

    Config = BaselineConfig
    config: BaselineConfig
    time = Time.MAP
    eps = 1.0
    relaxes = False

    def __init__(self, config: BaselineConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self._embeddings(config, config.vocabulary)
        self.layers = nn.ModuleList(self._layer() for _ in range(config.layers))
        self._read_out(config, generator)

    def _layer(self) -> PreNormLayer:
        o = self.config
        attn = CausalAttention(o.channels, o.heads, o.attention_bias, o.qk_norm, o.norm_eps, o.attention, o)
        return PreNormLayer(o.channels, o.norm_eps, attn, FeedForward(o.channels, o.widening, o.gelu, o.ffn_bias))

    @torch.no_grad()
    def _soften(self, factor: float) -> None:
        for layer in self.layers:
            assert isinstance(layer, PreNormLayer)
            layer.attn.scale_output_(factor)
            layer.ffn.pj.weight.mul_(factor)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the output h ``[sample, token, channel]`` of the last layer: the whole pass but its read-out."""
        h = super().embed(tokens)
        for layer in self.layers:
            h = layer(h)
        return h

    def force(self, z: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return h - z, with h the output given as ``x``."""
        return x - z

    def branches(self, z: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Return nothing: no branch depends on the state."""
        return {}

    def linearize(self, z: Tensor, x: Tensor, tokens_only: bool) -> tuple[Product, Product]:
        """Return ``v -> -v``, twice."""
        return torch.neg, torch.neg

    def token_force(self, token: int, context: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``z_t -> h_t - z_t``."""
        own = x[:, token]
        return lambda z_t: own - z_t

    def rows_force(self, tokens: Tensor, context: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``z -> h - z`` for one token of every row."""
        own = x[torch.arange(len(tokens), device=tokens.device), tokens]
        return lambda z: own - z
