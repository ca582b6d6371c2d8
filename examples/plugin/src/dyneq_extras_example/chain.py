"""The chain block: a recurrent layer over tokens as a relaxing system.

F(z)_t = x_t - z_t + W tanh(z_t) + U tanh(z_{t-1}),    logits = z W_head^T

Token t sees token t - 1 only, but the root at t depends on all earlier tokens through the chain.
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from dyneq.errors import DyneqError
from dyneq.systems.block import EquilibriumBlock
from dyneq.systems.protocol import Product


class ChainConfig(BaseModel):
    """Everything that defines a chain block but its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["chain"] = "chain"
    vocabulary: int = Field(gt=0, description="number of token types V")
    channels: int = Field(gt=0, description="width C")
    tokens: int = Field(gt=0, description="longest context T")
    eps: float = Field(0.1, gt=0, description="step of the relaxation, time units")
    gain: float = Field(0.5, gt=0, description="W and U start as N(0, gain^2 / C)")


class ChainBlock(EquilibriumBlock):
    """A causal recurrent tanh block: every token is driven by itself, its input and the token before.

    Args:
        config: Shape and options.
        generator: Source of the initial weights; seed 0 on the CPU if None.
    """

    Config = ChainConfig
    config: ChainConfig
    causal = True

    def __init__(self, config: ChainConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.eps = config.eps
        c = config.channels
        self.tok = nn.Embedding(config.vocabulary, c)
        self.own = nn.Linear(c, c, bias=False)
        self.previous = nn.Linear(c, c, bias=False)
        self.head = nn.Linear(c, config.vocabulary, bias=False)
        generator = generator or torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.tok.weight.normal_(0.0, 1.0, generator=generator)
            for layer, gain in ((self.own, config.gain), (self.previous, config.gain), (self.head, 1.0)):
                layer.weight.normal_(0.0, gain * c**-0.5, generator=generator)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return x = tok[idx] ``[sample, token, channel]``.

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
        return self.tok(tokens)

    def force(self, z: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return F(z; x) ``[sample, token, channel]``; the token before comes from ``context`` where it is given."""
        before = torch.tanh(z if context is None else context)
        return x - z + self.own(torch.tanh(z)) + self.previous(_later(before))

    def branches(self, z: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Return ``own`` and ``previous``, each ``[sample, token, channel]``."""
        h = torch.tanh(z)
        return {"own": self.own(h), "previous": self.previous(_later(h))}

    def logits(self, z: Tensor) -> Tensor:
        """Return ``[sample, token, vocabulary]``."""
        return self.head(z)

    def linearize(self, z: Tensor, x: Tensor, tokens_only: bool) -> tuple[Product, Product]:
        """Return ``v -> J v`` and ``w -> J^T w`` at ``z``; the token-diagonal blocks leave U out."""
        slope = 1 - torch.tanh(z.detach()).square()
        w_own, w_previous = self.own.weight, self.previous.weight

        @torch.no_grad()
        def matvec(v: Tensor) -> Tensor:
            inner = slope * v
            out = functional.linear(inner, w_own) - v
            return out if tokens_only else out + functional.linear(_later(inner), w_previous)

        @torch.no_grad()
        def rmatvec(w: Tensor) -> Tensor:
            inner = w @ w_own
            if not tokens_only:
                inner = inner + _earlier(w @ w_previous)
            return slope * inner - w

        return matvec, rmatvec

    def token_force(self, token: int, context: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``z_t -> F_t`` ``[sample, channel]``; the token before is held at ``context``."""
        drive = x[:, token]
        if token:
            drive = drive + self.previous(torch.tanh(context[:, token - 1]))
        return lambda z_t: drive - z_t + self.own(torch.tanh(z_t))

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Return the parameters of recurrent, emb and head."""
        groups = {"tok": "emb", "head": "head"}
        found: dict[str, dict[str, nn.Parameter]] = {"recurrent": {}, "emb": {}, "head": {}}
        for name, p in self.named_parameters():
            found[groups.get(name.split(".")[0], "recurrent")][name] = p
        return found


def _later(h: Tensor) -> Tensor:
    """Return h_{t-1} at token t, 0 at the first."""
    return functional.pad(h[:, :-1], (0, 0, 1, 0))


def _earlier(h: Tensor) -> Tensor:
    """Return h_{t+1} at token t, 0 at the last: the transpose of :func:`_later`."""
    return functional.pad(h[:, 1:], (0, 0, 0, 1))
