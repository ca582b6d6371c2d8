"""EquilibriumBlock: one weight-tied block whose state is relaxed, and its binding to a batch of tokens."""

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional

from dyneq.errors import DyneqError, UsageError
from dyneq.systems.parts.continuation import cross_entropy
from dyneq.systems.protocol import Product, Structure, System, Time, autograd_products


class EquilibriumBlock(nn.Module):
    """Base of blocks on ``[sample, token, channel]`` states whose input is a batch of token indices.

    Subclasses give the force, the embedding, the read-out and the parameter groups.

    Attributes:
        config: Everything that defines the block but its weights; plain values, stored in checkpoints.
        eps: Default step size of the relaxation.
        causal: Whether the force is causal over tokens.
        time: Whether the relaxation discretises a flow or is a map, with ``eps`` 1.
        relaxes: Whether it relaxes at all; False for a block that computes in one pass.
        mask: Index of the token that stands for one to be filled in, None for blocks that complete no masked tokens.
    """

    config: BaseModel
    eps: float
    causal: bool = True
    time: Time = Time.FLOW
    relaxes: bool = True
    mask: int | None = None

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input x ``[sample, token, channel]`` of token indices ``[sample, token]``."""

    @abstractmethod
    def force(self, z: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return F(z; x), see :meth:`dyneq.systems.protocol.System.force`."""

    @abstractmethod
    def logits(self, z: Tensor) -> Tensor:
        """Return the read-out ``[sample, token, vocabulary]`` of the state."""

    @abstractmethod
    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Return the parameters by group (attn, ffn, ln, emb, head)."""

    @abstractmethod
    def branches(self, z: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Return the state-dependent branches of the force, each of the shape of ``z``."""

    def linearize(self, z: Tensor, x: Tensor, tokens_only: bool) -> tuple[Product, Product]:
        """Return the products with the Jacobian at ``z`` and its transpose, whole or token-diagonal.

        By default :meth:`force` is differentiated.
        """
        given, context = x.detach(), z.detach() if tokens_only else None
        return autograd_products(lambda y: self.force(y, given, context), z)

    def token_force(self, token: int, context: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``z_t -> F_t`` with the tokens before ``token`` held at ``context``."""

        def of(z_t: Tensor) -> Tensor:
            z = torch.cat([context[:, :token], z_t[:, None]], dim=1)
            return self.force(z, x[:, : token + 1], z)[:, token]

        return of

    def examples(self, tokens: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the tokens and targets of the task the block is trained on, made of text and its next tokens.

        Args:
            tokens: Token indices ``[sample, token]``.
            targets: The next token of each.
            generator: Source of whatever is drawn, on the CPU.
        """
        return tokens, targets

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that :meth:`scaled` can scale; empty if there are none."""
        return ()

    def scaled(self, part: str, alpha: float) -> "EquilibriumBlock":
        """Return a copy with one part scaled, sharing all other weights; see :meth:`System.scaled`.

        Args:
            part: One of :attr:`parts`.
            alpha: Factor.

        Raises:
            UsageError: If the block has no such part.
        """
        raise UsageError(
            f"{type(self).__name__} has no parts to scale, such as attention or a feed-forward branch, but {part!r} "
            "was asked for; use a block that has them"
        )

    def head_products(self) -> Tensor | None:
        """Return W_O W_V of every attention head ``[head, channel, channel]``; None without attention."""
        return None

    def rows_force(self, tokens: Tensor, context: Tensor, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Return ``z -> F`` ``[row, channel]`` for one token of every row, the tokens before it held at ``context``.

        A block that can do this in one call overrides it; None stands for one call for each token.
        """
        return None

    def bind(self, tokens: Tensor, targets: Tensor | None = None, *, eps: float | None = None) -> "BoundBlock":
        """Return the system of this block on a batch.

        Args:
            tokens: Token indices ``[sample, token]``.
            targets: Next-token indices of the same shape; with them the system has a loss.
            eps: Step size; the block's default if None.

        Raises:
            UsageError: If another step size is asked of a map.
            DyneqError: If the indices do not fit the block.
        """
        if self.time is Time.MAP and eps not in (None, self.eps):
            raise UsageError(
                f"{type(self).__name__} is a map: it has no step size to change (eps is 1), but eps={eps} was asked "
                "for; leave eps out"
            )
        return BoundBlock(self, tokens, targets, self.eps if eps is None else eps)


class BoundBlock(System):
    """An :class:`EquilibriumBlock` with its weights as they are now and one batch of tokens."""

    def __init__(self, block: EquilibriumBlock, tokens: Tensor, targets: Tensor | None, eps: float) -> None:
        if tokens.ndim != 2 or tokens.dtype != torch.int64 or tokens.shape[0] == 0:
            raise DyneqError(
                f"a block is bound to token indices of shape [sample, token] and type int64, but got shape "
                f"{list(tokens.shape)} and {tokens.dtype}; pass a batch of at least one sample"
            )
        if targets is not None and targets.shape != tokens.shape:
            raise DyneqError(
                f"targets must have the shape of the tokens, {list(tokens.shape)}, but have {list(targets.shape)}; "
                "shift the text by one token to make them"
            )
        if not 0 < eps < math.inf:
            raise UsageError(f"eps must be positive and finite, but {eps} was asked for; the usual value is 0.1")
        self.block, self.tokens, self.targets, self.eps = block, tokens, targets, float(eps)
        self.structure = Structure(token_axis=1, causal=block.causal)
        self.name, self.time, self.relaxes = type(block).__name__, block.time, block.relaxes
        self.has_loss = targets is not None
        self.loss_terms = tokens.shape[1]
        # embedded now, after any weights were loaded: a cached x from before loading is a trap the log fell into
        self.x = block.embed(tokens)

    def force(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return F(z) ``[sample, token, channel]``; see the base class for ``context``."""
        return self.block.force(z, self.x, context)

    def initial_state(self) -> Tensor:
        """Return z_0 = x, the embedded input."""
        return self.x

    def loss(self, z: Tensor) -> Tensor:
        """Return the mean cross-entropy of each sample ``[sample]``, nats per token.

        Raises:
            DyneqError: If the block was bound without targets.
        """
        return self.token_loss(z).mean(-1)

    def token_loss(self, z: Tensor) -> Tensor:
        """Return the cross-entropy at every token ``[sample, token]``, nats.

        Raises:
            DyneqError: If the block was bound without targets.
        """
        if self.targets is None:
            raise DyneqError(f"{self.name} was bound without targets, so it has no loss; pass targets to bind()")
        logits, targets = self.block.logits(z).flatten(0, 1), self.targets.flatten()
        if logits.is_complex():
            return cross_entropy(logits, targets).view(self.targets.shape)
        return functional.cross_entropy(logits, targets, reduction="none").view(self.targets.shape)

    def parameter_groups(self) -> dict[str, dict[str, Tensor]]:
        """Return the block's parameters by group."""
        return {group: dict(members) for group, members in self.block.parameter_groups().items()}

    def branches(self, z: Tensor) -> dict[str, Tensor]:
        """Return the block's branches at ``z``."""
        return self.block.branches(z, self.x)

    def select(self, samples: Tensor) -> "BoundBlock":
        """Return the same block bound to some of the samples, indices ``[k]``."""
        targets = None if self.targets is None else self.targets[samples]
        return type(self)(self.block, self.tokens[samples], targets, self.eps)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of the block that can be scaled."""
        return self.block.parts

    def scaled(self, part: str, alpha: float) -> "BoundBlock":
        """Return the same batch bound to a copy of the block with one part scaled; weights are shared where they can.

        Args:
            part: One of :attr:`parts`.
            alpha: Factor.
        """
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.block = self.block.scaled(part, alpha)
        return copy

    def head_products(self) -> Tensor | None:
        """Return W_O W_V of every attention head ``[head, channel, channel]``; None without attention."""
        return self.block.head_products()

    def linearize(self, z: Tensor) -> tuple[Product, Product]:
        """Return the products with the whole Jacobian at ``z`` and with its transpose."""
        return self.block.linearize(z, self.x, tokens_only=False)

    def linearize_tokens(self, z: Tensor) -> tuple[Product, Product]:
        """Return the products with the token-diagonal Jacobian at ``z`` and with its transpose.

        Raises:
            DyneqError: If the block is not causal.
        """
        self.require_causal("the token-diagonal Jacobian")
        return self.block.linearize(z, self.x, tokens_only=True)

    def token_force(self, token: int, context: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``z_t -> F_t`` with the earlier tokens' keys and values computed once.

        Raises:
            DyneqError: If the block is not causal.
        """
        self.require_causal("the force on one token")
        return self.block.token_force(token, context, self.x)

    def rows_force(self, samples: Tensor, tokens: Tensor, context: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the force on one token of a sample for every row, with the earlier keys and values computed once.

        Raises:
            DyneqError: If the block is not causal.
        """
        self.require_causal("the force on single tokens")
        together = self.block.rows_force(tokens, context[samples], self.x[samples])
        return super().rows_force(samples, tokens, context) if together is None else together
