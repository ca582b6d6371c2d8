"""The thick block: pre-norm attention and feed-forward branches around a damped, input-driven state.

F(z) = x - (1 + c) z + Attn(LN1 z) + FFN(LN2 z),    logits = z W_head^T
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from dyneq.errors import DyneqError, UsageError, nearest
from dyneq.systems.block import EquilibriumBlock
from dyneq.systems.parts.attention import AttentionForm, CausalAttention
from dyneq.systems.parts.continuation import linear
from dyneq.systems.parts.copies import shallow_copy, with_weights
from dyneq.systems.parts.feedforward import FeedForward, Gelu
from dyneq.systems.parts.norms import LayerNorm
from dyneq.systems.protocol import Product


class ThickConfig(BaseModel):
    """Everything that defines a thick block but its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["thick"] = "thick"
    vocabulary: int = Field(gt=0, description="number of token types V")
    channels: int = Field(gt=0, description="width C")
    heads: int = Field(gt=0, description="attention heads H, a divisor of C")
    tokens: int = Field(gt=0, description="longest context T")
    eps: float = Field(0.1, gt=0, description="step of the relaxation, time units")
    damping: float = Field(1.0, gt=-1, description="c in F = x - (1 + c) z + ...")
    widening: int = Field(4, gt=0, description="hidden width of the feed-forward branch in units of C")
    gelu: Gelu = Field("erf", description="form of GELU, the same everywhere")
    ffn_bias: bool = Field(True, description="biases in the feed-forward branch")
    attention_bias: bool = Field(False, description="biases in the four attention projections")
    qk_norm: bool = Field(False, description="RMS-normalise queries and keys per head")
    final_norm: bool = Field(False, description="layer norm before the read-out")
    norm_eps: float = Field(1e-5, gt=0, description="small constant of the normalisations")
    attention: AttentionForm = Field("plain", description="plain, or torch's fused kernel")
    embedding_std: float = Field(1.0, gt=0, description="standard deviation of tok and pos at initialisation")
    resinit: float = Field(1.0, gt=0, description="factor on W_O and pj at initialisation")

    @model_validator(mode="after")
    def _heads_divide(self) -> "ThickConfig":
        if self.channels % self.heads:
            raise ValueError(f"channels={self.channels} is not a multiple of heads={self.heads}")
        return self


class ThickBlock(EquilibriumBlock):
    """The thick equilibrium block.

    Args:
        config: Shape and options.
        generator: Source of the initial weights; seed 0 on the CPU if None.
    """

    Config = ThickConfig
    config: ThickConfig

    def __init__(self, config: ThickConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.eps = config.eps
        c = config.channels
        # given their weights, embeddings draw none, which on the meta device imports torch's compiler for a second
        self.tok = nn.Embedding(config.vocabulary, c, _weight=torch.empty(config.vocabulary, c))
        self.pos = nn.Embedding(config.tokens, c, _weight=torch.empty(config.tokens, c))
        self.ln1 = LayerNorm(c, eps=config.norm_eps)
        self.ln2 = LayerNorm(c, eps=config.norm_eps)
        self.attn = CausalAttention(
            c, config.heads, config.attention_bias, config.qk_norm, config.norm_eps, config.attention
        )
        self.ffn = FeedForward(c, config.widening, config.gelu, config.ffn_bias)
        self.final = LayerNorm(c, eps=config.norm_eps) if config.final_norm else None
        self.head = nn.Linear(c, config.vocabulary, bias=False)
        if not self.head.weight.is_meta:
            self.reset(generator or torch.Generator().manual_seed(0))

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw the initial weights: normal embeddings, N(0, 1/fan-in) projections, zero biases, unit gains."""
        for name, p in self.named_parameters():
            if name.startswith(("tok", "pos")):
                p.normal_(0.0, self.config.embedding_std, generator=generator)
            elif name.startswith(("ln", "final")):
                p.fill_(1.0 if name.endswith("weight") else 0.0)
            elif p.ndim == 2:
                p.normal_(0.0, p.shape[1] ** -0.5, generator=generator)
            else:
                p.zero_()
        self.attn.wo.weight.mul_(self.config.resinit)
        self.ffn.pj.weight.mul_(self.config.resinit)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return x = tok[idx] + pos ``[sample, token, channel]``.

        Raises:
            DyneqError: If the context is too long or an index lies outside the vocabulary.
        """
        if tokens.shape[1] > self.config.tokens:
            raise DyneqError(
                f"the block takes at most {self.config.tokens} tokens of context, but the batch has "
                f"{tokens.shape[1]}; shorten the samples"
            )
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.vocabulary:
            raise DyneqError(
                f"token indices must lie in 0..{self.config.vocabulary - 1}, but the batch has "
                f"{int(tokens.min())}..{int(tokens.max())}; encode it with the checkpoint's own vocabulary"
            )
        return self.tok(tokens) + self.pos.weight[: tokens.shape[1]]

    def force(self, z: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return F(z; x) ``[sample, token, channel]``, in units of z per unit time."""
        u = self.ln1(z)
        attended = self.attn(u, None if context is None else self.ln1(context))
        return x - (1 + self.config.damping) * z + attended + self.ffn(self.ln2(z))

    def branches(self, z: Tensor) -> dict[str, Tensor]:
        """Return ``attention`` and ``ffn``, each ``[sample, token, channel]``."""
        return {"attention": self.attn(self.ln1(z)), "ffn": self.ffn(self.ln2(z))}

    def logits(self, z: Tensor) -> Tensor:
        """Return ``[sample, token, vocabulary]``."""
        return linear(self.head, z if self.final is None else self.final(z))

    @property
    def parts(self) -> tuple[str, ...]:
        """The attention, each of its heads, the feed-forward branch, and the antisymmetric shares of W_O W_V."""
        return ("attention", *(f"head:{h}" for h in range(self.config.heads)), "ffn", "antisymmetric")

    def scaled(self, part: str, alpha: float) -> "ThickBlock":
        """Return a copy with one part scaled by ``alpha``; weights it does not change are shared.

        Args:
            part: ``attention`` (W_O and its bias), ``head:3`` (one head's columns of W_O), ``ffn`` (pj and its bias),
                or ``antisymmetric`` (the antisymmetric share of every head's product W_O W_V).
            alpha: Factor, finite.

        Raises:
            UsageError: If there is no such part, or the factor is not finite.
        """
        if not math.isfinite(alpha):
            raise UsageError(f"a part is scaled by a finite factor, but {alpha} was asked for; 0 knocks it out")
        if part not in self.parts:
            heads = f"heads are head:0 to head:{self.config.heads - 1}"
            raise UsageError(
                f"{type(self).__name__} has no part {part!r} to scale: its {heads}"
                if part.startswith("head")
                else f"{type(self).__name__} has no part {part!r} to scale{nearest(part, self.parts)}"
            )
        copy = shallow_copy(self)
        if part == "ffn":
            copy.ffn, pj = shallow_copy(self.ffn), self.ffn.pj
            copy.ffn.pj = with_weights(pj, alpha * pj.weight, None if pj.bias is None else alpha * pj.bias)
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

    def linearize(self, z: Tensor, tokens_only: bool) -> tuple[Product, Product]:
        """Return ``v -> J v`` and ``w -> J^T w`` at ``z``; each costs about one force."""
        z = z.detach()
        with torch.no_grad():
            u1, ln1, ln1_t = self.ln1.linearize(z)
            u2, ln2, ln2_t = self.ln2.linearize(z)
            attn, attn_t = self.attn.linearize(u1, tokens_only)
            ffn, ffn_t = self.ffn.linearize(u2)
        decay = -(1 + self.config.damping)

        @torch.no_grad()
        def matvec(v: Tensor) -> Tensor:
            return attn(ln1(v)).add_(ffn(ln2(v))).add_(v, alpha=decay)

        @torch.no_grad()
        def rmatvec(w: Tensor) -> Tensor:
            return ln1_t(attn_t(w)).add_(ln2_t(ffn_t(w))).add_(w, alpha=decay)

        return matvec, rmatvec

    def token_force(self, token: int, context: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``z_t -> F_t`` ``[sample, channel]``; the cost does not grow with later tokens."""
        keys, values = self.attn.key_value(self.ln1(context[:, :token]))
        attend = self.attn.decode(keys, values)
        x_t, decay = x[:, token], 1 + self.config.damping

        def of(z_t: Tensor) -> Tensor:
            return x_t - decay * z_t + attend(self.ln1(z_t)) + self.ffn(self.ln2(z_t))

        return of

    def rows_force(self, tokens: Tensor, context: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``z -> F`` ``[row, channel]`` for one token of every row, in one call for all of them."""
        last = int(tokens.max())
        keys, values = self.attn.key_value(self.ln1(context[:, :last]))
        hidden = torch.arange(last, device=tokens.device) >= tokens[:, None]
        attend = self.attn.decode(keys, values, hidden)
        own, decay = x[torch.arange(len(tokens), device=tokens.device), tokens], 1 + self.config.damping

        def of(z: Tensor) -> Tensor:
            return own - decay * z + attend(self.ln1(z)) + self.ffn(self.ln2(z))

        return of

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Return the parameters of attn, ffn, ln, emb and head."""
        prefix = {"attn": "attn", "ffn": "ffn", "ln1": "ln", "ln2": "ln", "final": "ln", "tok": "emb", "pos": "emb"}
        groups: dict[str, dict[str, nn.Parameter]] = {g: {} for g in ("attn", "ffn", "ln", "emb", "head")}
        for name, p in self.named_parameters():
            groups[prefix.get(name.split(".")[0], "head")][name] = p
        return groups
