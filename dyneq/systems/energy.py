"""The energy block: a conservative force, the descent of an energy of attention and memory; it completes masked tokens.

E(z) = (1 + c)/2 |z|^2 - <x, z> + E_attention(u) + E_memory(u), u = LN z, and F = -dE/dz, so that J is symmetric: real
eigenvalues, no rotation, no Hopf bifurcation, and ep needs no correction (after Hoover et al., arXiv:2302.07253, who
descend in u instead). Since J_ts = J_st^T, a token that saw only earlier ones could act on none of them: causal and
conservative together decouple all tokens. So this block is not causal, and no language model of next tokens.

E_attention and E_memory see the direction of z - mean(z) alone where its variance is large. Where they prefer one that
points away from x, the descent shrinks the state until the constant in LN matters, and the force is as stiff there as
that constant is small: 1/softening. So it is no small constant here.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional

from dyneq.errors import DyneqError, UsageError
from dyneq.systems.block import BoundBlock
from dyneq.systems.parts import fields
from dyneq.systems.parts.copies import shallow_copy
from dyneq.systems.parts.energy_attention import EnergyAttention
from dyneq.systems.parts.hopfield import HopfieldMemory
from dyneq.systems.parts.norms import LayerNorm
from dyneq.systems.protocol import Product, autograd_products
from dyneq.systems.token_block import TokenBlock
from dyneq.systems.two_branch import require_part


class EnergyConfig(BaseModel):
    """Everything that defines an energy block but its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["energy"] = "energy"
    vocabulary: fields.Vocabulary
    channels: fields.Channels
    heads: fields.Heads
    tokens: fields.Tokens
    eps: fields.Eps = 0.1
    damping: fields.Damping = 1.0
    widening: fields.MemoryWidening = 4
    final_norm: fields.FinalNorm = False
    norm_eps: float = Field(1e-5, gt=0, description="small constant of the layer norm before the read-out")
    softening: float = Field(
        1.0,
        gt=0,
        description="constant beside the variance in the normalisation of the state, of the size of a variance",
    )
    embedding_std: fields.EmbeddingStd = 1.0
    resinit: float = Field(1.0, gt=0, description="factor on the energies of attention and memory at initialisation")
    mask_share: float = Field(0.15, gt=0, lt=1, description="share of the tokens of a sample that training masks")

    @model_validator(mode="after")
    def _heads_divide(self) -> "EnergyConfig":
        fields.require_divisor(self.channels, self.heads)
        return self


class EnergyBlock(TokenBlock):
    """The energy block; token ``vocabulary`` is the mask.

    Args:
        config: Shape and options.
        generator: Source of the initial weights; seed 0 on the CPU if None.
    """

    Config = EnergyConfig
    config: EnergyConfig
    causal = False

    def __init__(self, config: EnergyConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config, self.eps, self.mask = config, config.eps, config.vocabulary
        self._embeddings(config, config.vocabulary + 1)
        self.ln = LayerNorm(config.channels, eps=config.softening)
        self.attn = EnergyAttention(config.channels, config.heads)
        self.memory = HopfieldMemory(config.channels, config.widening)
        self._read_out(config, generator)

    @torch.no_grad()
    def _soften(self, factor: float) -> None:
        for linear in (self.attn.wq, self.attn.wk, self.memory.xi):  # the energies are quadratic in these
            linear.weight.mul_(factor**0.5)

    def energy(self, z: Tensor, x: Tensor) -> Tensor:
        """Return E(z; x) of each sample ``[sample]``."""
        u = self.ln(z)
        tokens = 0.5 * (1 + self.config.damping) * z.square().sum(-1) - (x * z).sum(-1) + self.memory.energy(u)
        return tokens.sum(-1) + self.attn.energy(u)

    def force(self, z: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return F = -dE/dz ``[sample, token, channel]``.

        Raises:
            DyneqError: If a context is given: no token's force is its own query's alone.
        """
        if context is not None:
            raise DyneqError(
                "a force with a context needs a block that is causal over tokens, but EnergyBlock is not; use a method "
                "for the whole sample"
            )
        u = self.ln(z)
        descent = self.memory(u) + self.attn(u)  # the memory first: it says why a complex state is refused
        return x - (1 + self.config.damping) * z + self.ln.pull_back(z, descent)

    def branches(self, z: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Return ``attention`` and ``memory``, what their energies add to the force, of the shape of ``z``."""
        u = self.ln(z)
        return {"attention": self.ln.pull_back(z, self.attn(u)), "memory": self.ln.pull_back(z, self.memory(u))}

    @property
    def parts(self) -> tuple[str, ...]:
        """The energies of attention and memory."""
        return ("attention", "memory")

    def scaled(self, part: str, alpha: float) -> "EnergyBlock":
        """Return a copy with one energy scaled by ``alpha``, which leaves the force conservative.

        Args:
            part: ``attention`` or ``memory``.
            alpha: Factor, finite.

        Raises:
            UsageError: If there is no such part, or the factor is not finite.
        """
        require_part(self, part, alpha)
        copy = shallow_copy(self)
        if part == "attention":
            copy.attn = self.attn.scaled(alpha)
        else:
            copy.memory = self.memory.scaled(alpha)
        return copy

    def linearize(self, z: Tensor, x: Tensor, tokens_only: bool) -> tuple[Product, Product]:
        """Return ``v -> J v`` twice, for J is symmetric; one reverse pass each.

        Raises:
            DyneqError: If token-diagonal products are asked for, which need a causal block.
        """
        if tokens_only:
            raise DyneqError("the token-diagonal Jacobian needs a block that is causal, but EnergyBlock is not")
        given = x.detach()
        product = autograd_products(lambda y: self.force(y, given), z)[1]
        return product, product

    def token_force(self, token: int, context: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Refuse: the block is not causal.

        Raises:
            DyneqError: Always.
        """
        raise DyneqError("the force on one token needs a block that is causal, but EnergyBlock is not")

    def examples(self, tokens: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``tokens`` with a share of them masked, the same number in every sample, and ``tokens`` as targets.

        Args:
            tokens: Token indices ``[sample, token]``.
            targets: Not used: the next tokens are not what is completed.
            generator: Source of the masked positions, on the CPU.
        """
        count = max(1, round(self.config.mask_share * tokens.shape[1]))
        where = torch.rand(tokens.shape, generator=generator).topk(count, dim=1).indices.to(tokens.device)
        return tokens.scatter(1, where, self.config.vocabulary), tokens

    def bind(self, tokens: Tensor, targets: Tensor | None = None, *, eps: float | None = None) -> "BoundEnergy":
        """Return the system of this block on a batch.

        Args:
            tokens: Token indices ``[sample, token]``, some of them the mask if there are targets.
            targets: The tokens that were there before any were masked; with them the system has a loss.
            eps: Step size; the block's default if None.

        Raises:
            UsageError: If the targets are those of a causal language model.
            DyneqError: If the indices do not fit the block.
        """
        return BoundEnergy(self, tokens, targets, self.eps if eps is None else eps)


class BoundEnergy(BoundBlock):
    """An energy block on a batch; its loss is the mean cross-entropy at the masked tokens."""

    block: EnergyBlock

    def __init__(self, block: EnergyBlock, tokens: Tensor, targets: Tensor | None, eps: float) -> None:
        super().__init__(block, tokens, targets, eps)
        if targets is not None:
            self._masked = _masked_positions(tokens, targets, block.config.vocabulary)
            self.loss_terms = self._masked[1].shape[1]

    def energy(self, z: Tensor) -> Tensor:
        """Return E(z) of each sample ``[sample]``, of which the force is the negative gradient."""
        return self.block.energy(z, self.x)

    def loss(self, z: Tensor) -> Tensor:
        """Return the mean cross-entropy of each sample's masked tokens ``[sample]``, nats per masked token.

        Raises:
            DyneqError: If the block was bound without targets.
        """
        if self.targets is None:
            return super().loss(z)
        return self._masked_loss(z, self.targets).mean(-1)

    def token_loss(self, z: Tensor) -> Tensor:
        """Return the cross-entropy at every token ``[sample, token]``, nats; NaN where it is not masked.

        Raises:
            DyneqError: If the block was bound without targets.
        """
        if self.targets is None:
            return super().token_loss(z)
        found = self._masked_loss(z, self.targets)
        return found.new_full(self.tokens.shape, math.nan).scatter(1, self._masked[1], found)

    def _masked_loss(self, z: Tensor, targets: Tensor) -> Tensor:
        rows, columns = self._masked
        logits = self.block.logits(z[rows, columns]).flatten(0, 1)
        return functional.cross_entropy(logits, targets[rows, columns].flatten(), reduction="none").view(columns.shape)


def _masked_positions(tokens: Tensor, targets: Tensor, mask: int) -> tuple[Tensor, Tensor]:
    """Return the indices ``[sample, 1]`` and ``[sample, masked token]`` of the masked tokens of a batch.

    Raises:
        UsageError: If the targets are no completion of masked tokens, as those of a causal language model are none.
        DyneqError: If samples differ in how many tokens are masked.
    """
    hidden = tokens == mask
    wrong = ~hidden & (targets != tokens)
    counts = hidden.sum(1)
    if bool(wrong.any()) or not bool((counts > 0).all()):
        if bool(wrong.any()):
            sample, token = wrong.nonzero()[0].tolist()
            found = f"token {token} of sample {sample} is not masked and has another token as its target"
        else:
            found = f"sample {int((counts == 0).nonzero()[0])} has no masked token"
        raise UsageError(
            f"an energy block completes masked tokens and cannot be a causal language model, because a conservative "
            f"force acts both ways: causal tokens would decouple, and attention's key side would leak the future; but "
            f"{found}; mask tokens with EnergyBlock.examples, or choose a causal block such as thick or thin"
        )
    if not bool((counts == counts[0]).all()):
        raise DyneqError(
            f"every sample of a batch should have as many masked tokens as the others, but the numbers go from "
            f"{int(counts.min())} to {int(counts.max())}; mask tokens with EnergyBlock.examples"
        )
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    return rows, hidden.nonzero()[:, 1].view(len(tokens), -1)
