"""The System protocol: anything that computes by relaxing a state to a fixed point.

A system is one bound problem: weights plus one input batch. Its state ``z`` is ``[sample, ...]``; samples never
interact. Only two methods are required, :meth:`System.force` and :meth:`System.initial_state`; everything else has a
default that is correct, if not always the fastest.
"""

import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from dyneq.errors import DyneqError, UsageError

Product = Callable[[Tensor], Tensor]


class Time(enum.StrEnum):
    """What one relaxation step stands for."""

    FLOW = "flow"
    """Euler's step of dz/dt = F(z); ``eps`` is a discretisation and can be changed."""
    MAP = "map"
    """A map z -> f(z), with F(z) = f(z) - z and eps = 1: there is no step size to blame."""


@dataclass(frozen=True)
class Structure:
    """Which axes of the state mean what, and which Jacobian blocks vanish.

    Attributes:
        token_axis: The axis of tokens (1 for ``[sample, token, channel]``), or None when there are none.
        causal: Whether F at token t never depends on z at tokens s > t, so that the Jacobian is block lower
            triangular over tokens. A claim: :func:`dyneq.dynamics.structure.check_causality` verifies it before use.
    """

    token_axis: int | None = None
    causal: bool = False

    def __post_init__(self) -> None:
        if self.causal and self.token_axis != 1:
            raise DyneqError(
                f"a causal structure needs the state laid out as [sample, token, channel] (token_axis=1), "
                f"but token_axis={self.token_axis}; permute the state or declare causal=False"
            )


class System(ABC):
    """One relaxation problem ``dz/dt = F(z)`` (or ``z -> z + F(z)``), bound to its input batch.

    Attributes:
        name: What the system is called in messages and results.
        time: Whether steps discretise a flow or are the dynamics themselves.
        eps: Step size of the relaxation z <- z + eps F(z); exactly 1 for a map.
        structure: Axes and causality of the state.
        has_loss: Whether :meth:`loss` gives one.
        loss_terms: How many terms a sample's loss is the mean of, such as its tokens; nudges use their sum.
        relaxes: Whether it relaxes; one that computes in a single pass starts at its root, and probes of relaxations
            refuse it.
    """

    name: str = "system"
    time: Time = Time.FLOW
    eps: float = 0.1
    structure: Structure = Structure()
    has_loss: bool = False
    loss_terms: int = 1
    relaxes: bool = True

    @abstractmethod
    def force(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return F(z), of the shape of ``z`` ``[sample, ...]``.

        Args:
            z: State.
            context: For causal systems, the state from which every OTHER token's keys and values are taken, while a
                token's own query, key and value come from ``z``; ``force(z)`` equals ``force(z, z)``.
        """

    @abstractmethod
    def initial_state(self) -> Tensor:
        """Return z_0 ``[sample, ...]``; its dtype and device are those of the whole problem."""

    def loss(self, z: Tensor) -> Tensor:
        """Return the loss of each sample ``[sample]`` (nats per token for language models).

        Raises:
            DyneqError: If the system declares no loss.
        """
        raise DyneqError(f"{self.name} declares no loss; choose a probe that needs none, or give the system a loss(z)")

    def parameter_groups(self) -> dict[str, dict[str, Tensor]]:
        """Return ``{group: {name: parameter}}``; empty for systems without parameters."""
        return {}

    def branches(self, z: Tensor) -> dict[str, Tensor]:
        """Return the state-dependent branches of the force by name, each of the shape of ``z``; empty if unknown."""
        return {}

    def select(self, samples: Tensor) -> "System":
        """Return the same problem for some samples only.

        Args:
            samples: Indices ``[k]`` into the sample axis.
        """
        return _Selected(self, samples)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that :meth:`scaled` can scale; empty if there are none."""
        return ()

    def scaled(self, part: str, alpha: float) -> "System":
        """Return a copy in which one part of the force is scaled by ``alpha``; this system is left as it is.

        Args:
            part: One of :attr:`parts`.
            alpha: Factor; 1 changes nothing, 0 knocks the part out.

        Raises:
            UsageError: If the system has no such part.
        """
        raise UsageError(
            f"{self.name} has no parts to scale, such as attention or a feed-forward branch, but {part!r} was asked "
            "for; use a block that has them"
        )

    def head_products(self) -> Tensor | None:
        """Return the product W_O W_V of every attention head ``[head, channel, channel]``; None without attention."""
        return None

    def with_eps(self, eps: float) -> Self:
        """Return a copy that relaxes with another step size.

        Raises:
            UsageError: If the system is a map, or ``eps`` is not positive.
        """
        if self.time is Time.MAP:
            raise UsageError(
                f"{self.name} is a map: it has no step size to change (eps is 1), but eps={eps} was asked for; "
                "leave eps out"
            )
        if not 0 < eps < math.inf:
            raise UsageError(f"eps must be positive and finite, but {eps} was asked for; the usual value is 0.1")
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.eps = float(eps)
        return copy

    def linearize(self, z: Tensor) -> tuple[Product, Product]:
        """Return the products ``v -> J v`` and ``w -> J^T w`` of the whole Jacobian at ``z``.

        The default differentiates :meth:`force`; blocks override it with products that reuse what the force computed.
        """
        return autograd_products(self.force, z)

    def linearize_tokens(self, z: Tensor) -> tuple[Product, Product]:
        """Return the products with the token-diagonal blocks J_tt, and with their transposes, at ``z``.

        Raises:
            DyneqError: If the system is not causal.
        """
        self.require_causal("the token-diagonal Jacobian")
        context = z.detach()
        return autograd_products(lambda y: self.force(y, context), z)

    def token_force(self, token: int, context: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``z_t -> F_t``, both ``[sample, channel]``, with every other token held at ``context``.

        Args:
            token: Index t of the token.
            context: State ``[sample, token, channel]``; only its tokens before ``t`` matter.

        Raises:
            DyneqError: If the system is not causal.
        """
        self.require_causal("the force on one token")

        def of(z_t: Tensor) -> Tensor:
            z = torch.cat([context[:, :token], z_t[:, None], context[:, token + 1 :]], dim=1)
            return self.force(z, context)[:, token]

        return of

    def rows_force(self, samples: Tensor, tokens: Tensor, context: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``z -> F``, both ``[row, channel]``: the force on one token of a sample for every row.

        The default takes the rows that share a token together; blocks override it with one call for all.

        Args:
            samples: Sample of every row ``[row]``.
            tokens: Its token ``[row]``.
            context: State ``[sample, token, channel]`` of the whole batch; only tokens before a row's own matter.

        Raises:
            DyneqError: If the system is not causal.
        """
        self.require_causal("the force on single tokens")
        groups = []
        for token in tokens.unique().tolist():
            members = (tokens == token).nonzero().flatten()
            force = self.select(samples[members]).token_force(token, context[samples[members]])
            groups.append((members, force))
        back = torch.cat([members for members, _ in groups]).argsort()

        def of(z: Tensor) -> Tensor:
            return torch.cat([force(z[members]) for members, force in groups])[back]

        return of

    def require_causal(self, what: str) -> None:
        """Raise unless the system declares itself causal over tokens.

        Raises:
            DyneqError: If it does not.
        """
        if not self.structure.causal:
            raise DyneqError(
                f"{what} needs a block that is causal over tokens, but {self.name} does not declare one; "
                "use a method for the whole sample (--method krylov or dense)"
            )

    @property
    def samples(self) -> int:
        """Number of samples in the batch."""
        return int(self.initial_state().shape[0])

    @staticmethod
    def from_map(f: Callable[[Tensor], Tensor], z0: Tensor, **options: Any) -> "System":
        """Return the system of the map ``z -> f(z)`` started at ``z0`` ``[sample, ...]``.

        See :func:`dyneq.systems.adapters.from_map` for the options.
        """
        from dyneq.systems.adapters import from_map

        return from_map(f, z0, **options)


def autograd_products(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Product, Product]:
    """Return ``v -> J v`` (forward mode) and ``w -> J^T w`` (reverse mode) of ``f`` at ``z``, by torch's own rules."""
    z = z.detach()
    pullback: list[Callable[[Tensor], tuple[Tensor]]] = []

    def matvec(v: Tensor) -> Tensor:
        return torch.func.jvp(f, (z,), (v,))[1]

    def rmatvec(w: Tensor) -> Tensor:
        if not pullback:  # one forward pass serves every transposed product at this state
            pullback.append(torch.func.vjp(f, z)[1])
        return pullback[0](w)[0]

    return matvec, rmatvec


class _Selected(System):
    """Some samples of another system, for systems that cannot restrict themselves: evaluates all, returns some."""

    def __init__(self, parent: System, samples: Tensor) -> None:
        if samples.unique().numel() != samples.numel():
            raise DyneqError(
                f"{parent.name} evaluates its whole batch, so a sample can be selected only once, but "
                f"{samples.tolist()} repeats one; give the system a select(samples) of its own"
            )
        self.parent, self.indices = parent, samples
        self.name, self.time, self.eps, self.structure = parent.name, parent.time, parent.eps, parent.structure
        self.has_loss, self.loss_terms, self.relaxes = parent.has_loss, parent.loss_terms, parent.relaxes
        self._z0 = parent.initial_state()

    def _embed(self, z: Tensor) -> Tensor:
        return self._z0.index_copy(0, self.indices, z)

    def force(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        full = self.parent.force(self._embed(z), None if context is None else self._embed(context))
        return full[self.indices]

    def initial_state(self) -> Tensor:
        return self._z0[self.indices]

    def loss(self, z: Tensor) -> Tensor:
        return self.parent.loss(self._embed(z))[self.indices]

    @property
    def parts(self) -> tuple[str, ...]:
        return self.parent.parts

    def scaled(self, part: str, alpha: float) -> "System":
        copy = _Selected(self.parent.scaled(part, alpha), self.indices)
        copy.eps = self.eps
        return copy

    def head_products(self) -> Tensor | None:
        return self.parent.head_products()

    def parameter_groups(self) -> dict[str, dict[str, Tensor]]:
        return self.parent.parameter_groups()

    def branches(self, z: Tensor) -> dict[str, Tensor]:
        return {name: b[self.indices] for name, b in self.parent.branches(self._embed(z)).items()}
