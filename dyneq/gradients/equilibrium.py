"""Estimators that relax, estimate the adjoint a of the loss at the state reached, and read out <a, dF/dtheta>."""

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dyneq.dynamics.relax import relax
from dyneq.dynamics.residuals import residuals, sample_norm
from dyneq.gradients.base import Estimator, Gradient, Grouped, Mark, ParameterList
from dyneq.gradients.free import FreeParams, FreePhase, free_phase, loss_and_gradient
from dyneq.systems.protocol import System


@dataclass(frozen=True)
class AdjointEstimate:
    """An estimate of the adjoint, the solution of J^T a = -g.

    Attributes:
        a: The estimate ``[sample, ...]`` for L, the mean of the loss over samples.
        at: The state at which dF/dtheta is read out.
        diagnostics: Numbers ``[sample]`` by name.
        marks: Reservations, bool ``[sample]``.
        cost: Forces and products with J or J^T it took, each on the whole batch.
    """

    a: Tensor
    at: Tensor
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    marks: dict[Mark, Tensor] = field(default_factory=dict)
    cost: float = 0.0


class AveragedParams(FreeParams):
    """The free phase, and how many restarts an estimate is averaged over."""

    navg: int = Field(1, gt=0, description="restarts the estimate is averaged over, each further along the free phase")
    stagger: int = Field(10, gt=0, description="steps of the free phase from one restart to the next")


class EquilibriumEstimator(Estimator):
    """Free phase, adjoint, read-out <a, dF/dtheta> + explicit dL/dtheta.

    Where the state circles instead of resting, ``navg`` restarts begin at as many phases of the motion; at a fixed
    point they all give the same.

    Diagnostics of every such estimator, ``[sample]``: ``force_residual``, norm(F)/norm(z) at the state of the read-out;
    ``force_residual_t1``, the same after t1 steps; ``adjoint_residual``, norm(J^T a + g)/norm(g) there, which says how
    far the estimate is from the adjoint however it was found; ``adjoint_norm``, norm(a); ``loss_gradient_norm``,
    norm(g).
    """

    depth = "t1"
    params: FreeParams
    #: Options that take part in the free phase; estimators that agree in them can share one.
    free_options: ClassVar[tuple[str, ...]] = ("t1", "t1_tol", "t1_max")

    @property
    def free_key(self) -> tuple[object, ...]:
        """What the free phase depends on beside the system."""
        return tuple(getattr(self.params, name) for name in self.free_options)

    def free(self, system: System) -> FreePhase:
        """Return the free phase of a system.

        Raises:
            DyneqError: If the system has no loss.
        """
        ParameterList(system)  # refuses what has no gradient before anything is computed
        return free_phase(system, self.params.t1, self.params.t1_tol, self.params.t1_max)

    @abstractmethod
    def adjoint(self, system: System, free: FreePhase) -> AdjointEstimate:
        """Return the estimate of the adjoint after a free phase."""

    def gradient(self, system: System) -> Gradient:
        """Return the estimate of dL/dtheta.

        Raises:
            DyneqError: If the system has no loss or no parameters, or a parameter takes no part in it.
        """
        return self.from_free(system, self.free(system))

    def from_free(self, system: System, free: FreePhase) -> Gradient:
        """Return the estimate of dL/dtheta after a free phase that was computed before, possibly for another estimator.

        Raises:
            DyneqError: If the system has no loss or no parameters, or a parameter takes no part in it.
        """
        first = free.z if free.z_t1 is None else free.z_t1
        restarts, stagger = getattr(self.params, "navg", 1), getattr(self.params, "stagger", 0)
        found, cost = [self._once(system, free)], float(free.steps + 1)
        for _ in range(restarts - 1):
            free = _further(system, free, stagger)
            found.append(self._once(system, free))
            cost += stagger + 1
        if len(found) == 1:
            return replace(found[0], cost=cost + (found[0].cost or 0), relaxed=first)
        return replace(_mean(found, cost + sum(f.cost or 0 for f in found)), relaxed=first)

    def _once(self, system: System, free: FreePhase) -> Gradient:
        parameters = ParameterList(system)
        found = self.adjoint(system, free)
        moved = found.at is not free.z
        loss, g = loss_and_gradient(system, found.at) if moved else (free.loss, free.g)
        with torch.enable_grad():
            parameters.add(system.loss(found.at).mean())
            parameters.add(system.force(found.at), found.a)
        with torch.no_grad():
            defect = system.linearize(found.at)[1](found.a) + g
            force_residual = residuals(system, found.at).force if moved else free.residual
        diagnostics = {
            "force_residual": force_residual,
            "force_residual_t1": free.residual_t1,
            "adjoint_residual": sample_norm(defect) / sample_norm(g),
            "adjoint_norm": sample_norm(found.a),
            "loss_gradient_norm": sample_norm(g),
            **found.diagnostics,
        }
        marks = {Mark.FREE_NOT_CONVERGED: ~(force_residual <= free.tolerance), **found.marks}
        applying = {mark: where for mark, where in marks.items() if bool(where.any())}
        # the read-out is a force with its derivative, the residual a product
        return Gradient(parameters.grouped(), found.at, loss, diagnostics, applying, found.cost + 3)


def _further(system: System, free: FreePhase, steps: int) -> FreePhase:
    relaxed = relax(system, steps, start=free.z)
    loss, g = loss_and_gradient(system, relaxed.z)
    return FreePhase(relaxed.z, relaxed.residuals.force, free.residual_t1, free.steps + steps, loss, g, free.tolerance)


def _mean(found: list[Gradient], cost: float) -> Gradient:
    """Return the mean of several estimates: of gradients, losses and diagnostics; a mark on one marks the mean."""
    n = len(found)
    parameters: Grouped = {
        group: {name: torch.stack([f.parameters[group][name] for f in found]).mean(0) for name in members}
        for group, members in found[0].parameters.items()
    }
    diagnostics = {
        name: torch.stack([f.diagnostics[name].to(found[0].loss.dtype) for f in found]).mean(0)
        for name in found[0].diagnostics
    }
    marks: dict[Mark, Tensor] = {}
    for f in found:
        for mark, where in f.marks.items():
            marks[mark] = marks[mark] | where if mark in marks else where
    return Gradient(parameters, found[-1].state, sum(f.loss for f in found) / n, diagnostics, marks, cost)  # type: ignore[arg-type]
