"""A system that stands in for another one: everything is asked of the parent, and subclasses change a part of it."""

from torch import Tensor

from dyneq.systems.protocol import System


class Delegate(System):
    """Hands everything but products and selections on to a parent.

    Args:
        parent: The system it stands in for.
    """

    def __init__(self, parent: System) -> None:
        self.parent = parent
        self.name, self.time, self.eps, self.structure = parent.name, parent.time, parent.eps, parent.structure
        self.has_loss, self.loss_terms, self.relaxes = parent.has_loss, parent.loss_terms, parent.relaxes

    def force(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the parent's F(z)."""
        return self.parent.force(z, context)

    def initial_state(self) -> Tensor:
        """Return the parent's initial state."""
        return self.parent.initial_state()

    def loss(self, z: Tensor) -> Tensor:
        """Return the parent's loss ``[sample]``."""
        return self.parent.loss(z)

    def branches(self, z: Tensor) -> dict[str, Tensor]:
        """Return the parent's branches."""
        return self.parent.branches(z)

    def parameter_groups(self) -> dict[str, dict[str, Tensor]]:
        """Return the parent's parameters."""
        return self.parent.parameter_groups()
