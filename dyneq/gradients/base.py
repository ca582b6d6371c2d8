"""What an estimator of dL/dtheta is, and what it hands back.

L is the mean over samples of the system's loss at the end of its relaxation. The formulas of all estimators use
F(z*) = 0, J = dF/dz at z*, g = dL/dz at z*.
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.systems.protocol import System

Grouped = dict[str, dict[str, Tensor]]
"""Tensors by parameter group and parameter name, the layout of :meth:`System.parameter_groups`."""


class EstimatorParams(BaseModel):
    """Base of an estimator's options: unknown ones are errors, and they never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Mark(enum.StrEnum):
    """Why a number that was computed should not be taken at its face value; each says what to do."""

    FREE_NOT_CONVERGED = (
        "the free phase has not converged, so the state is no root: relax longer (a larger t1), or refine it (t1_tol)"
    )
    OUTSIDE_LINEAR_RESPONSE = (
        "the nudged states leave the window of linear response: nudge less (a smaller beta or r), or stop earlier (t2)"
    )
    NUDGE_NOT_SETTLED = "the nudged phase has not settled: nudge longer (a larger t2), or look at the spectrum there"
    NUDGE_DIVERGED = "the nudged phase blew up: the corrected dynamics is unstable at this state, so use adjoint there"
    ADJOINT_NOT_SOLVED = "the adjoint equation is not solved to its tolerance: give it more steps or products"
    ADJOINT_SINGULAR = "the adjoint equation is singular to rounding: a root at a fold has no gradient"
    CLAMPED = "the loss gradient was clamped for some tokens, which biases the estimate: raise or drop head_clamp"


@dataclass(frozen=True)
class Gradient:
    """An estimate of dL/dtheta with what it was read out from.

    Attributes:
        parameters: dL/dtheta ``{group: {name: tensor}}``, each of its parameter's shape; L in nats per token.
        state: The state ``[sample, token, channel]`` the loss was taken at, detached.
        loss: Loss of each sample ``[sample]`` at that state, detached; L is its mean.
        diagnostics: Numbers per sample ``[sample]`` by name. Every estimator gives ``force_residual``,
            norm(F)/norm(z) at :attr:`state`.
        marks: For every reservation that applies to a sample at all, which samples it applies to, bool ``[sample]``.
            Nothing is repaired: a marked number is what was computed.
        cost: What it took, in forces on the whole batch (a product with J or J^T counts as one).
        relaxed: The state after the free relaxation alone, before any refinement, detached; what penalties look at.
            None where that is :attr:`state`.
    """

    parameters: Grouped
    state: Tensor
    loss: Tensor
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    marks: dict[Mark, Tensor] = field(default_factory=dict)
    cost: float | None = None
    relaxed: Tensor | None = None


class Estimator(ABC):
    """One way to estimate dL/dtheta of a relaxing system.

    Args:
        params: Its options; the defaults if None.

    Attributes:
        name: Its name in specs such as ``bptt:steps=400``; the name of its entry point.
        main: The option that the shorthand ``NameN`` sets, as in ``bptt400``.
        depth: The option that says how many steps the free relaxation takes.
    """

    name: ClassVar[str]
    main: ClassVar[str]
    depth: ClassVar[str]
    Params: ClassVar[type[EstimatorParams]]

    def __init__(self, params: EstimatorParams | None = None) -> None:
        self.params = self.Params() if params is None else params

    @abstractmethod
    def gradient(self, system: System) -> Gradient:
        """Return the estimate of dL/dtheta for the system as it is bound.

        Args:
            system: A system with a loss and parameters, bound while gradients were enabled.

        Raises:
            DyneqError: If the system has no loss or no parameters, or a parameter takes no part in it.
        """

    def to_plain(self) -> dict[str, Any]:
        """Return name and options as plain values, the inverse of :func:`dyneq.gradients.registry.build`."""
        return {"name": self.name, **self.params.model_dump()}


class ParameterList:
    """The parameters of a system in one order, for ``torch.autograd.grad``.

    Args:
        system: The system whose :meth:`~System.parameter_groups` are taken.

    Raises:
        DyneqError: If the system has no loss, no parameters, or one that is frozen.
    """

    def __init__(self, system: System) -> None:
        if not system.has_loss:
            raise DyneqError(
                f"a gradient needs a loss, but {system.name} has none as it is bound; bind it with targets"
            )
        self._keys = [(g, n) for g, members in system.parameter_groups().items() for n in members]
        self.tensors = [p for members in system.parameter_groups().values() for p in members.values()]
        if not self.tensors:
            raise DyneqError(
                f"a gradient needs parameters, but {system.name} declares none; give it parameter_groups()"
            )
        for (_, name), p in zip(self._keys, self.tensors, strict=True):
            if not p.requires_grad:
                raise DyneqError(
                    f"the parameter {name!r} of {system.name} is frozen (requires_grad is False), so its gradient is "
                    "not defined; unfreeze it, or leave it out of parameter_groups()"
                )
        self.totals: list[Tensor | None] = [None] * len(self.tensors)
        self._system = system.name

    def add(self, outputs: Tensor, cotangent: Tensor | None = None, also: Sequence[Tensor] = ()) -> list[Tensor]:
        """Add <cotangent, d outputs/d theta> to the totals; return the same for the tensors ``also``.

        The graph is kept: the input embedding belongs to the bound system and must serve the next call as well.
        """
        if not outputs.requires_grad:
            return [torch.zeros_like(t) for t in also]
        found = torch.autograd.grad(outputs, [*self.tensors, *also], cotangent, retain_graph=True, allow_unused=True)
        for i, new in enumerate(found[: len(self.tensors)]):
            if new is not None:
                old = self.totals[i]
                self.totals[i] = new if old is None else old + new
        rest = found[len(self.tensors) :]
        return [torch.zeros_like(t) if r is None else r for r, t in zip(rest, also, strict=True)]

    def grouped(self) -> Grouped:
        """Return the totals as ``{group: {name: tensor}}``.

        Raises:
            DyneqError: If nothing depended on a parameter, which would pass for a gradient of zero.
        """
        out: Grouped = {}
        for (group, name), total in zip(self._keys, self.totals, strict=True):
            if total is None:
                raise DyneqError(
                    f"neither force nor loss of {self._system} depends on its parameter {name!r}; bind the system "
                    "while gradients are enabled (not under torch.no_grad), or leave it out of parameter_groups()"
                )
            out.setdefault(group, {})[name] = total.detach()
        return out
