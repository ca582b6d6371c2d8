"""Linear maps whose backward pass uses a fixed random matrix instead of their transpose (Lillicrap et al. 2016)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dyneq.errors import DyneqError, UsageError
from dyneq.systems.block import BoundBlock, EquilibriumBlock
from dyneq.systems.delegate import Delegate
from dyneq.systems.parts.copies import shallow_copy
from dyneq.systems.protocol import Product, System


class _Feedback(torch.autograd.Function):
    """y = u W^T + b with the cotangent of u taken as dy B; the weights' own gradients stay what they are."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, bias: Tensor | None, back: Tensor) -> Tensor:
        ctx.save_for_backward(u, back)
        return functional.linear(u, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, back = ctx.saved_tensors
        (dy,) = grads
        flat = dy.flatten(0, -2)
        return (
            dy @ back if ctx.needs_input_grad[0] else None,
            flat.T @ u.flatten(0, -2) if ctx.needs_input_grad[1] else None,
            flat.sum(0) if ctx.needs_input_grad[2] else None,
            None,
        )


class FeedbackLinear(nn.Module):
    """A linear map that sends errors back through a matrix of its own.

    Args:
        linear: The map whose place it takes; its weights stay what they are, also where they are derived from others.
        back: The feedback matrix ``[out, in]``, in the place of the weights on the way back.
        name: What it is called in messages.
    """

    def __init__(self, linear: nn.Linear, back: Tensor, name: str) -> None:
        super().__init__()
        self._of, self._back, self._name = linear, back, name

    @property
    def weight(self) -> Tensor:
        """No weights: a force that uses them past the map would send errors back through them.

        Raises:
            DyneqError: Always.
        """
        raise DyneqError(
            f"feedback alignment replaces the transposed weights of {self._name!r} where it is called, but the force "
            "also uses them outside of a call, as tied weights are; choose another estimator for this block"
        )

    def forward(self, u: Tensor) -> Tensor:
        """Return u W^T + b ``[..., out]``."""
        return _Feedback.apply(u, self._of.weight, self._of.bias, self._back)


class FeedbackSystem(Delegate):
    """A bound block whose force sends errors back through fixed matrices; its values, loss and read-out are exact.

    Products of :meth:`linearize` are those of the true Jacobian; :meth:`feedback` gives the other.

    Args:
        parent: The bound block.
        matrices: The feedback matrix ``[out, in]`` of every linear map that takes part in the force, by its name in the
            block.
    """

    def __init__(self, parent: BoundBlock, matrices: dict[str, Tensor]) -> None:
        super().__init__(parent)
        self._input = parent.x
        self.block = shallow_copy(parent.block)
        for name, back in matrices.items():
            _replace(self.block, name, back)

    def force(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return F(z), the parent's."""
        return self.block.force(z, self._input, context)

    def linearize(self, z: Tensor) -> tuple[Product, Product]:
        """Return the products with the true Jacobian."""
        return self.parent.linearize(z)

    def feedback(self, z: Tensor) -> Product:
        """Return the product ``w -> J^T w`` at ``z`` that the feedback matrices stand in for."""
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            force = self.force(leaf)

        def product(w: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(force, leaf, w, retain_graph=True)
            return found

        return product


def random_matrices(system: System, seed: int) -> dict[str, Tensor]:
    """Return a random matrix for every linear map in the force of a block, of its shape and Frobenius norm.

    They depend on the seed and the shapes alone but for their norms, which follow the weights.

    Args:
        system: A bound block.
        seed: Seed of the matrices.

    Raises:
        UsageError: If the system is no bound block.
        DyneqError: If its force is not built from ``nn.Linear`` modules of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, linear in linear_maps(bound_block(system)).items():
        noise = torch.randn(linear.weight.shape, generator=generator, dtype=torch.float64)
        norm = torch.linalg.vector_norm
        found[name] = noise.to(linear.weight) * (norm(linear.weight.detach()) / float(norm(noise)))
    return found


def bound_block(system: System) -> BoundBlock:
    """Return the system as the bound block it should be.

    Raises:
        UsageError: If it is none.
    """
    if not isinstance(system, BoundBlock):
        raise UsageError(
            f"feedback alignment replaces the transposed weights of a block, but {system.name} is no bound "
            "EquilibriumBlock; choose another estimator"
        )
    return system


@torch.no_grad()
def linear_maps(system: BoundBlock) -> dict[str, nn.Linear]:
    """Return the ``nn.Linear`` modules with weights that take part in the force of a block, by name.

    Raises:
        DyneqError: If there is none, one serves the read-out too, or the block has matrices in no such module.
    """
    state = system.initial_state().detach()
    force = _called(system.block, lambda: system.force(state))
    read_out = _called(system.block, lambda: system.block.logits(state))
    known = {id(p) for m in [*force.values(), *read_out.values()] for p in m.parameters()}
    known |= {id(p) for m in system.block.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    # a sum over heads, say, is a linear map without weights
    maps = {name: m for name, m in force.items() if any(p.ndim > 1 for p in m.parameters())}
    others = [name for name, p in system.block.named_parameters() if p.ndim > 1 and id(p) not in known]
    both = maps.keys() & read_out.keys()
    if others or both or not maps:
        found = (
            f"{min(both)!r} also serves the read-out"
            if both
            else f"{others[0]!r} is not in one"
            if others
            else "none takes part in the force"
        )
        raise DyneqError(
            f"feedback alignment replaces the nn.Linear modules of a block's force and leaves its read-out exact, but "
            f"in {system.name} {found}; build the force from nn.Linear modules of its own, or choose another estimator"
        )
    return maps


def _called(block: EquilibriumBlock, run: Callable[[], Tensor]) -> dict[str, nn.Linear]:
    """Return the linear modules of a block that a computation calls."""
    modules = {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    seen: set[str] = set()
    hooks = [m.register_forward_pre_hook(lambda _m, _a, name=name: seen.add(name)) for name, m in modules.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: m for name, m in modules.items() if name in seen}


def _replace(block: nn.Module, name: str, back: Tensor) -> None:
    """Put a map with feedback in the place of a linear one, copying the modules that lead to it."""
    *path, last = name.split(".")
    holder = block
    for part in path:
        copy = shallow_copy(getattr(holder, part))
        setattr(holder, part, copy)
        holder = copy
    setattr(holder, last, FeedbackLinear(getattr(holder, last), back, name))
