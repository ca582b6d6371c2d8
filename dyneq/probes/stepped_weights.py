"""A block with other weights: what a step along a gradient would make of it, on copies of its parameters."""

import copy

import torch

from dyneq.errors import DyneqError
from dyneq.gradients.base import Grouped
from dyneq.systems.block import BoundBlock, EquilibriumBlock
from dyneq.systems.protocol import System


def require_block(system: System, what: str) -> BoundBlock:
    """Return a system as a block bound to tokens, which can be bound again with other weights.

    Args:
        system: The system.
        what: What needs it, for the message.

    Raises:
        DyneqError: If it is something else, whose state or closures may hold old weights.
    """
    if not isinstance(system, BoundBlock):
        raise DyneqError(
            f"{what} binds a block again with the weights after a step, but {system.name} is no block bound to tokens, "
            "so where its weights went cannot be known; write it as an EquilibriumBlock with a bind(tokens)"
        )
    return system


@torch.no_grad()
def stepped(system: BoundBlock, direction: Grouped | None = None, length: float = 0.0) -> BoundBlock:
    """Return the same batch bound to a copy of the block whose weights are theta - length direction.

    The caller's parameters are not touched; parameters that share storage in the block still do so in the copy.

    Args:
        system: A bound block.
        direction: A gradient by group and name; parameters it does not name stay. None for no step.
        length: Learning rate.
    """
    block: EquilibriumBlock = copy.deepcopy(system.block)
    for group, members in block.parameter_groups().items():
        for name, parameter in members.items():
            parameter.grad = None
            step = (direction or {}).get(group, {}).get(name)
            if step is not None:
                parameter.sub_(step.to(parameter), alpha=length)
    return block.bind(system.tokens, system.targets, eps=system.eps)
