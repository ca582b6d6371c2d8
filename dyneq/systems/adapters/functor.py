"""A torchdeq functor: what a user passes to ``deq(f, z0)``, with one state or several.

torchdeq (Geng and Kolter, arXiv:2310.18605) is not needed: only its calling convention is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dyneq.errors import DyneqError
from dyneq.systems.adapters.function import Function, FunctionSystem
from dyneq.systems.protocol import Structure, System, Time


class FunctorSystem(FunctionSystem):
    """The map of a functor on several states, flattened to one state ``[sample, dimension]``.

    Args:
        functor: ``(z_1, ..., z_m) -> (f_1, ..., f_m)``, each of the shape of its argument ``[sample, ...]``.
        z0: The starts, one tensor a state.
        name: What it is called in messages and results.
        loss: ``z -> [sample]`` of the flattened state, or None.

    Raises:
        DyneqError: If the starts do not share their number of samples and dtype.
    """

    def __init__(self, functor: Callable[..., Any], z0: Sequence[Tensor], *, name: str, loss: Function | None) -> None:
        if not z0 or not all(isinstance(z, Tensor) and z.ndim and z.is_floating_point() for z in z0):
            raise DyneqError(
                f"the starts of {name} should be floating tensors [sample, ...], but are "
                f"{[f'{list(z.shape)} of {z.dtype}' if isinstance(z, Tensor) else type(z).__name__ for z in z0]}; "
                "pass what deq(f, z0) takes"
            )
        if len({(z.shape[0], z.dtype) for z in z0}) != 1:
            raise DyneqError(
                f"the starts of {name} should share their number of samples and dtype, but have "
                f"{[f'{z.shape[0]} of {z.dtype}' for z in z0]}; make them alike"
            )
        self.functor = functor
        self._shapes = [tuple(z.shape[1:]) for z in z0]
        start = self.flatten(z0)
        super().__init__(self._apply, start, name=name, time=Time.MAP, eps=1.0, structure=Structure(), loss=loss)

    def flatten(self, states: Sequence[Tensor]) -> Tensor:
        """Return the states ``[sample, ...]`` side by side as ``[sample, dimension]``."""
        return torch.cat([z.reshape(z.shape[0], -1) for z in states], dim=1)

    def unflatten(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the states ``[sample, ...]`` of a flattened one ``[sample, dimension]``."""
        sizes = [torch.Size(shape).numel() for shape in self._shapes]
        return tuple(
            part.reshape(z.shape[0], *shape) for part, shape in zip(z.split(sizes, dim=1), self._shapes, strict=True)
        )

    def _apply(self, z: Tensor) -> Tensor:
        states = self.unflatten(z)
        out = self.functor(*states)
        if not isinstance(out, tuple | list) or [getattr(o, "shape", None) for o in out] != [s.shape for s in states]:
            found = [list(o.shape) for o in out] if isinstance(out, tuple | list) else type(out).__name__
            raise DyneqError(
                f"the functor of {self.name} should return a tuple of states of shapes "
                f"{[list(s.shape) for s in states]}, but returned {found}; return one tensor for each state it takes"
            )
        return self.flatten(out)

    def parameter_groups(self) -> dict[str, dict[str, Tensor]]:
        """Return ``{"all": parameters}`` when the functor is a torch module, else nothing."""
        return {"all": dict(self.functor.named_parameters())} if isinstance(self.functor, nn.Module) else {}


def from_torchdeq(
    f: Callable[..., Any],
    z0: Tensor | Sequence[Tensor],
    *,
    name: str = "deq",
    token_axis: int | None = None,
    causal: bool = False,
    loss: Function | None = None,
) -> System:
    """Return the map of a torchdeq functor, as it would be passed to ``deq(f, z0)``.

    Call ``torchdeq.reset_deq`` on a module with its normalisations first, and put it in evaluation mode: with dropout
    left on it is another map at every call.

    Args:
        f: ``z -> f(z)`` when ``z0`` is one tensor; ``(z_1, ..., z_m) -> (f_1, ..., f_m)`` when it is several.
        z0: One start ``[sample, ...]``, or a tuple or list of them. Several become one state ``[sample, dimension]``;
            :class:`FunctorSystem` has ``flatten`` and ``unflatten``.
        name: What it is called in messages and results.
        token_axis: The axis of tokens of a single state, None if there are none.
        causal: Whether token t of f(z) never depends on later tokens (single state, ``token_axis=1``).
        loss: ``z -> [sample]`` of the (flattened) state, or None.

    Returns:
        A system with ``time`` map.

    Raises:
        DyneqError: If the starts do not fit each other, or tokens are declared for several states.
    """
    if isinstance(z0, Tensor) and z0.ndim > 1:
        structure = Structure(token_axis, causal)
        return FunctionSystem(f, z0, name=name, time=Time.MAP, eps=1.0, structure=structure, loss=loss)
    if token_axis is not None or causal:
        raise DyneqError(
            f"{name} has several states or one number a sample, which are flattened and have no token axis, but "
            f"token_axis={token_axis} and causal={causal} were given; leave them out"
        )
    if isinstance(z0, Tensor):  # torchdeq also takes one number a sample, [sample]
        return FunctorSystem(lambda z: (f(z),), (z0,), name=name, loss=loss)
    return FunctorSystem(f, tuple(z0), name=name, loss=loss)
