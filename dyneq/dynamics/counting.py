"""Counting what a computation asks of a system, in force evaluations of its whole batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.systems.delegate import Delegate
from dyneq.systems.protocol import Product, System


@dataclass
class Cost:
    """What was asked, in units of one force evaluation of the whole batch (a product counts as one force).

    Attributes:
        forces: Evaluations of the force; one on k of n samples counts k/n.
        products: Products with the Jacobian or its transpose.
        tokens: Evaluations on single tokens; one on every sample counts 1/(number of tokens).
    """

    forces: float = 0.0
    products: float = 0.0
    tokens: float = 0.0

    @property
    def total(self) -> float:
        """All of it together."""
        return self.forces + self.products + self.tokens


class CountedForce:
    """A force on tokens that counts its evaluations.

    Args:
        force: The force.
        cost: Where the counts go.
        share: What one evaluation counts.
    """

    def __init__(self, force: Callable[[Tensor], Tensor], cost: Cost, share: float) -> None:
        self._force, self._cost, self._share = force, cost, share

    def __call__(self, z: Tensor) -> Tensor:
        """Return the force and count it once."""
        self.count(1)
        return self._force(z)

    def count(self, times: int) -> None:
        """Count evaluations made together, as the columns of a Jacobian are."""
        self._cost.tokens += times * self._share


class CountedSystem(Delegate):
    """A system that counts what is asked of it, also through its selections and steps.

    Args:
        parent: The system.
        cost: Where the counts go; a new one if None.
        whole: Samples of the whole batch; those of the parent if None.

    Attributes:
        cost: The counts so far.
    """

    def __init__(self, parent: System, cost: Cost | None = None, whole: int | None = None) -> None:
        super().__init__(parent)
        self.cost = cost or Cost()
        self._z0 = parent.initial_state().detach()
        self._whole = self._z0.shape[0] if whole is None else whole
        self._share = self._z0.shape[0] / self._whole

    def force(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the parent's force."""
        self.cost.forces += self._share
        return self.parent.force(z, context)

    def initial_state(self) -> Tensor:
        """Return the parent's start."""
        return self._z0

    def select(self, samples: Tensor) -> "CountedSystem":
        """Return some of the samples, counted into the same cost."""
        part = type(self)(self.parent.select(samples), self.cost, self._whole)
        part.eps = self.eps
        return part

    def token_force(self, token: int, context: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the parent's force on one token, counted."""
        return CountedForce(self.parent.token_force(token, context), self.cost, self._share / context.shape[1])

    def rows_force(self, samples: Tensor, tokens: Tensor, context: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the parent's force on single tokens of samples, counted."""
        share = len(samples) / self._whole / context.shape[1]
        return CountedForce(self.parent.rows_force(samples, tokens, context), self.cost, share)


class _CountedProducts(CountedSystem):
    """A counted system with products of its own; without them, what differentiates the force is counted as forces."""

    def linearize(self, z: Tensor) -> tuple[Product, Product]:
        """Return the parent's products, counted."""
        return self._counted(self.parent.linearize(z))

    def linearize_tokens(self, z: Tensor) -> tuple[Product, Product]:
        """Return the parent's token-diagonal products, counted."""
        return self._counted(self.parent.linearize_tokens(z))

    def _counted(self, products: tuple[Product, Product]) -> tuple[Product, Product]:
        def of(product: Product) -> Product:
            def counted(v: Tensor) -> Tensor:
                self.cost.products += self._share
                return product(v)

            return counted

        return of(products[0]), of(products[1])


def counted(system: System) -> CountedSystem:
    """Return the system with a counter of its own.

    Whether it has products of its own stays visible: methods choose the cheapest product by that.
    """
    with torch.no_grad():
        own = type(system).linearize is not System.linearize
        return (_CountedProducts if own else CountedSystem)(system)
