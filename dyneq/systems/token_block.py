"""What blocks of tokens share: embeddings, a linear read-out, initial weights and the groups of the parameters."""

from abc import abstractmethod
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from dyneq.errors import DyneqError
from dyneq.systems.block import EquilibriumBlock
from dyneq.systems.parts.continuation import linear
from dyneq.systems.parts.norms import LayerNorm

#: The group of every named module or parameter of a block; what is not named here belongs to the read-out.
_GROUPS = {
    "attn": "attn",
    "ffn": "ffn",
    "memory": "ffn",
    "recurrent": "ffn",
    "ln": "ln",
    "ln1": "ln",
    "ln2": "ln",
    "final": "ln",
    "tok": "emb",
    "pos": "emb",
}


class TokenConfig(Protocol):
    """The settings :class:`TokenBlock` reads."""

    @property
    def vocabulary(self) -> int:
        """Number of token types."""

    @property
    def channels(self) -> int:
        """Width."""

    @property
    def tokens(self) -> int:
        """Longest context."""

    @property
    def final_norm(self) -> bool:
        """Whether there is a layer norm before the read-out."""

    @property
    def norm_eps(self) -> float:
        """Small constant of the normalisations."""

    @property
    def embedding_std(self) -> float:
        """Standard deviation of the initial embeddings."""

    @property
    def resinit(self) -> float:
        """Factor on the branches at initialisation."""


class TokenBlock(EquilibriumBlock):
    """A block whose input is tok[idx] + pos and whose logits are z W_head^T, after a layer norm if there is one.

    A subclass calls :meth:`_embeddings`, makes its own parts, and calls :meth:`_read_out`: weights are drawn in the
    order in which modules are made.
    """

    groups: ClassVar[tuple[str, ...]] = ("attn", "ffn", "ln", "emb", "head")

    def _embeddings(self, config: TokenConfig, rows: int) -> None:
        # given their weights, embeddings draw none, which on the meta device imports torch's compiler for a second
        self._shape: TokenConfig = config
        self.tok = nn.Embedding(rows, config.channels, _weight=torch.empty(rows, config.channels))
        self.pos = nn.Embedding(config.tokens, config.channels, _weight=torch.empty(config.tokens, config.channels))

    def _read_out(self, config: TokenConfig, generator: torch.Generator | None) -> None:
        self.final = LayerNorm(config.channels, eps=config.norm_eps) if config.final_norm else None
        self.head = nn.Linear(config.channels, config.vocabulary, bias=False)
        if not self.head.weight.is_meta:
            self.reset(generator or torch.Generator().manual_seed(0))

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw the initial weights: normal embeddings, N(0, 1/fan-in) matrices, zero biases, unit gains."""
        for name, p in self.named_parameters():
            owners = name.split(".")
            if owners[0] in ("tok", "pos"):
                p.normal_(0.0, self._shape.embedding_std, generator=generator)
            elif any(owner.startswith(("ln", "final")) for owner in owners):
                p.fill_(1.0 if name.endswith("weight") else 0.0)
            elif p.ndim >= 2:
                p.normal_(0.0, p.shape[-1] ** -0.5, generator=generator)
            else:
                p.zero_()
        self._soften(self._shape.resinit)

    @abstractmethod
    def _soften(self, factor: float) -> None:
        """Multiply what the branches add by about ``factor`` at initialisation, in place."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Return x = tok[idx] + pos ``[sample, token, channel]``.

        Raises:
            DyneqError: If the context is too long or an index lies outside the vocabulary.
        """
        longest, rows = self.pos.num_embeddings, self.tok.num_embeddings
        if tokens.shape[1] > longest:
            raise DyneqError(
                f"the block takes at most {longest} tokens of context, but the batch has "
                f"{tokens.shape[1]}; shorten the samples"
            )
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < rows:
            raise DyneqError(
                f"token indices must lie in 0..{rows - 1}, but the batch has "
                f"{int(tokens.min())}..{int(tokens.max())}; encode it with the checkpoint's own vocabulary"
            )
        return self.tok(tokens) + self.pos.weight[: tokens.shape[1]]

    def logits(self, z: Tensor) -> Tensor:
        """Return ``[sample, token, vocabulary]``."""
        return linear(self.head, z if self.final is None else self.final(z))

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Return the parameters of attn, ffn, ln, emb and head; a memory or recurrent matrix counts as ffn."""
        groups: dict[str, dict[str, nn.Parameter]] = {group: {} for group in self.groups}
        for name, p in self.named_parameters():
            group = next((_GROUPS[owner] for owner in name.split(".") if owner in _GROUPS), "head")
            groups[group][name] = p
        return groups
