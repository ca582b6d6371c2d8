"""A System of a plain function: a map ``z -> f(z)`` or the right-hand side of an ordinary differential equation."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dyneq.errors import DyneqError
from dyneq.systems.protocol import Structure, System, Time

Function = Callable[[Tensor], Tensor]


class FunctionSystem(System):
    """A system whose force is a function of the state alone.

    Args:
        function: ``z -> f(z)`` for a map, ``z -> dz/dt`` for a flow; the result has the shape of ``z``.
        z0: Start ``[sample, ...]``, floating.
        name: What it is called in messages and results.
        time: Whether ``function`` is a map or a right-hand side.
        eps: Step size of a flow; 1 for a map.
        structure: Axes and causality of the state.
        loss: ``z -> [sample]``, or None.

    Raises:
        DyneqError: If ``z0`` is not a finite batch of floating numbers, or ``eps`` does not fit ``time``.
    """

    def __init__(
        self,
        function: Function,
        z0: Tensor,
        *,
        name: str,
        time: Time,
        eps: float,
        structure: Structure,
        loss: Function | None,
    ) -> None:
        if not isinstance(z0, Tensor) or z0.ndim < 2 or not z0.shape[0] or not z0.is_floating_point():
            found = f"{list(z0.shape)} of {z0.dtype}" if isinstance(z0, Tensor) else type(z0).__name__
            raise DyneqError(
                f"the start of {name} should be a floating tensor [sample, ...] with at least one sample and one more "
                f"axis, but is {found}; add the missing axis with unsqueeze"
            )
        if time is Time.FLOW and not eps > 0:
            raise DyneqError(f"eps of {name} must be positive, but {eps} was given; the usual value is 0.1")
        if structure.token_axis is not None and not 1 <= structure.token_axis < z0.ndim:
            raise DyneqError(
                f"the token axis of {name} should be one of 1..{z0.ndim - 1} for a state of shape {list(z0.shape)}, "
                f"but is {structure.token_axis}; axis 0 is the sample"
            )
        self.function, self._z0, self._loss = function, z0, loss
        self.name, self.time, self.structure = name, time, structure
        self.eps = float(eps) if time is Time.FLOW else 1.0
        self.has_loss = loss is not None

    def initial_state(self) -> Tensor:
        """Return the start ``[sample, ...]``."""
        return self._z0

    def force(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return F(z) ``[sample, ...]``: f(z) - z of a map, dz/dt of a flow.

        A plain function does not say which of its inputs is a token's own, so with a ``context`` it is evaluated once
        for every token, with that token from ``z`` and the others from ``context``.

        Raises:
            DyneqError: If the function changes the shape, or a context is given to a system that is not causal.
        """
        if context is None:
            return self._evaluate(z)
        self.require_causal("a force with a context")
        return torch.stack([self.token_force(t, context)(z[:, t]) for t in range(z.shape[1])], dim=1)

    def token_force(self, token: int, context: Tensor) -> Function:
        """Return ``z_t -> F_t``, both ``[sample, channel]``, with every other token held at ``context``.

        Raises:
            DyneqError: If the system is not causal.
        """
        self.require_causal("the force on one token")

        def of(z_t: Tensor) -> Tensor:
            z = torch.cat([context[:, :token], z_t[:, None], context[:, token + 1 :]], dim=1)
            return self._evaluate(z)[:, token]

        return of

    def _evaluate(self, z: Tensor) -> Tensor:
        out = self.function(z)
        # checked on every call: a [sample, 1] result would broadcast against z and give wrong numbers silently
        if not isinstance(out, Tensor) or out.shape != z.shape:
            found = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise DyneqError(
                f"the function of {self.name} should return a tensor of the state's shape {list(z.shape)}, "
                f"but returned {found}; make it map states to states"
            )
        return out - z if self.time is Time.MAP else out

    def loss(self, z: Tensor) -> Tensor:
        """Return the loss of each sample ``[sample]``.

        Raises:
            DyneqError: If the system has none, or it is not one number a sample.
        """
        if self._loss is None:
            return super().loss(z)
        loss = self._loss(z)
        if loss.shape != z.shape[:1]:
            raise DyneqError(
                f"the loss of {self.name} should be one number a sample, shape {list(z.shape[:1])}, "
                f"but has shape {list(loss.shape)}; reduce every axis but the first"
            )
        return loss

    def parameter_groups(self) -> dict[str, dict[str, Tensor]]:
        """Return ``{"all": parameters}`` when the function is a torch module, else nothing."""
        return {"all": dict(self.function.named_parameters())} if isinstance(self.function, nn.Module) else {}


def from_map(
    f: Function,
    z0: Tensor,
    *,
    name: str = "map",
    token_axis: int | None = None,
    causal: bool = False,
    loss: Function | None = None,
) -> System:
    """Return the system of the map ``z -> f(z)``, with F(z) = f(z) - z and eps = 1.

    Args:
        f: The map on states of the shape of ``z0``; samples must not interact. A torch module offers its parameters.
        z0: Start ``[sample, ...]``, floating.
        name: What it is called in messages and results.
        token_axis: The axis of tokens, None if there are none.
        causal: Whether token t of f(z) never depends on later tokens of z (needs ``token_axis=1``).
        loss: ``z -> [sample]``, or None.

    Returns:
        A system with ``time`` map.
    """
    structure = Structure(token_axis, causal)
    return FunctionSystem(f, z0, name=name, time=Time.MAP, eps=1.0, structure=structure, loss=loss)


def from_ode(
    rhs: Function,
    z0: Tensor,
    *,
    eps: float = 0.1,
    name: str = "ode",
    token_axis: int | None = None,
    causal: bool = False,
    loss: Function | None = None,
) -> System:
    """Return the system of the autonomous equation dz/dt = rhs(z), relaxed by Euler steps of size ``eps``.

    Args:
        rhs: The right-hand side on states of the shape of ``z0``; samples must not interact.
        z0: Start ``[sample, ...]``, floating.
        eps: Step size, in the time unit of ``rhs``.
        name: What it is called in messages and results.
        token_axis: The axis of tokens, None if there are none.
        causal: Whether token t of rhs(z) never depends on later tokens of z (needs ``token_axis=1``).
        loss: ``z -> [sample]``, or None.

    Returns:
        A system with ``time`` flow.
    """
    structure = Structure(token_axis, causal)
    return FunctionSystem(rhs, z0, name=name, time=Time.FLOW, eps=eps, structure=structure, loss=loss)
