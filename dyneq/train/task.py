"""The task's gradient in the course of a run: which estimator, and whether a nudge is worth taking."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dyneq.errors import UsageError
from dyneq.gradients import registry
from dyneq.gradients.base import Estimator, Gradient, Grouped, ParameterList
from dyneq.gradients.equilibrium import EquilibriumEstimator
from dyneq.gradients.free import FreePhase
from dyneq.systems.protocol import System
from dyneq.train import parallel
from dyneq.train.log import Record
from dyneq.train.recipe import Recipe
from dyneq.train.sections import RESIDUAL_EPS, SwitchSection


class Task:
    """The estimator in force, its switches and its gate.

    Args:
        recipe: A resolved recipe.

    Attributes:
        estimator: The estimator in force.

    Raises:
        UsageError: If a gate is set and an estimator takes no nudge or adjoint that could be skipped.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._tables = [recipe.gradient, *(s.gradient for s in recipe.switch)]
        self._switches, self._gate = recipe.switch, recipe.stability.gate
        estimators = [_build(table) for table in self._tables]
        for estimator in estimators:
            if self._gate is not None and not isinstance(estimator, EquilibriumEstimator):
                raise UsageError(
                    f"stability.gate skips the nudge after a free phase, but the gradient {estimator.name!r} has none; "
                    "drop the gate, or use adjoint or a nudged estimator"
                )
        self._taken, self._seen = 0, 0
        self.estimator = estimators[0]
        self.advance(0)

    def gradient(self, system: System) -> tuple[Gradient, bool]:
        """Return the task's gradient for an update, and whether its nudge was skipped.

        A skipped one is what needs no adjoint: the loss's own derivative by the parameters, at the state as it is.
        """
        if self._gate is None:
            return self.estimator.gradient(system), False
        assert isinstance(self.estimator, EquilibriumEstimator)
        free = self.estimator.free(system)
        if RESIDUAL_EPS * float(parallel.gathered(free.residual_t1).median()) <= self._gate:  # NaN does not pass
            return self.estimator.from_free(system, free), False
        return _explicit(system, free), True

    def advance(self, step: int) -> str | None:
        """Make the switches that are due after ``step`` updates; return a sentence if there is one.

        Args:
            step: Updates applied.
        """
        before, first = self.estimator.name, self._taken
        while self._taken < len(self._switches):
            at = self._switches[self._taken].at
            if at is None or step + 1 < at:
                break
            self._switch()
        if self._taken == first:
            return None
        return f"from update {step + 1} the gradient is {self.estimator.name} instead of {before}, as the recipe says"

    def observe(self, record: Record) -> str | None:
        """Take note of an update's numbers; return a sentence if the next update uses another estimator.

        Raises:
            UsageError: If the update has no number of the name a switch waits for.
        """
        waiting = self._switches[self._taken] if self._taken < len(self._switches) else None
        if waiting is None or waiting.metric is None:
            return self.advance(record["step"])
        value = record.get(waiting.metric)
        if value is None:
            raise UsageError(
                f"a switch of the gradient waits for {waiting.metric!r}, which update {record['step']} did not "
                f"measure; name a number that every update has: it has "
                f"{', '.join(k for k, v in record.items() if isinstance(v, float))}"
            )
        self._seen = self._seen + 1 if _met(waiting, value) else 0
        if self._seen < waiting.patience:
            return None
        bound = f"above {waiting.above:g}" if waiting.above is not None else f"below {waiting.below:g}"
        before = self.estimator.name
        self._switch()
        return (
            f"from update {record['step'] + 1} the gradient is {self.estimator.name} instead of {before}: "
            f"{waiting.metric} was {bound} in {waiting.patience} updates in a row"
        )

    def _switch(self) -> None:
        self._taken, self._seen = self._taken + 1, 0
        self.estimator = _build(self._tables[self._taken])

    def state(self) -> dict[str, Any]:
        """Return how many switches were made, and for how many updates the next one's condition has held."""
        return {"switches": self._taken, "seen": self._seen}

    def interrupt(self) -> None:
        """Begin to count anew how long the next switch's condition has held."""
        self._seen = 0

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` gave."""
        self._taken, self._seen = state["switches"], state["seen"]
        self.estimator = _build(self._tables[self._taken])


def _build(table: Mapping[str, Any]) -> Estimator:
    return registry.build(table["name"], {key: value for key, value in table.items() if key != "name"})


def _met(switch: SwitchSection, value: float) -> bool:
    if switch.above is not None:
        return value > switch.above
    assert switch.below is not None
    return value < switch.below


def _explicit(system: System, free: FreePhase) -> Gradient:
    """Return the gradient without its adjoint part."""
    parameters = ParameterList(system)
    with torch.enable_grad():
        found = torch.autograd.grad(
            system.loss(free.z).mean(), parameters.tensors, retain_graph=True, allow_unused=True
        )
    flat = iter([torch.zeros_like(p) if g is None else g for p, g in zip(parameters.tensors, found, strict=True)])
    grouped: Grouped = {
        group: {name: next(flat).detach() for name in members} for group, members in system.parameter_groups().items()
    }
    nan = torch.full_like(free.residual, torch.nan)
    diagnostics: dict[str, Tensor] = {
        "force_residual": free.residual,
        "force_residual_t1": free.residual_t1,
        "adjoint_residual": nan,
        "adjoint_norm": nan,
    }
    return Gradient(grouped, free.z, free.loss, diagnostics, dict(free.marks), float(free.steps + 1), free.z_t1)


def without_task(gradient: Gradient) -> Gradient:
    """Return a gradient whose parameters' part is zero, for updates that belong to penalties alone."""
    zero: Grouped = {g: {n: torch.zeros_like(v) for n, v in m.items()} for g, m in gradient.parameters.items()}
    return dataclasses.replace(gradient, parameters=zero)
