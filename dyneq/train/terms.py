"""The penalties of a run: which apply in an update, what they add, and what they remember."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dyneq.errors import UsageError
from dyneq.gradients.base import Gradient, Grouped
from dyneq.probes.penalties import registry
from dyneq.probes.penalties.base import Penalty, PenaltyParams
from dyneq.probes.penalties.contribution import Contribution, contribution, grouped_norm
from dyneq.systems.block import EquilibriumBlock
from dyneq.systems.protocol import System
from dyneq.train.sections import RESIDUAL_EPS


class Terms:
    """The penalties of a run, in the order of their names.

    Args:
        recipe: Their options by name, resolved.
        seed: Seed of sub-batches and random vectors.
        further: Penalties that come with no recipe.

    Attributes:
        boost: Factor on every weight, which the guard may raise.
        reserve: Spec of the penalty the guard has added; None if it has not.
        contribute: What gives a penalty's part; of the whole batch where several processes share one.

    Raises:
        UsageError: If two penalties have the same name.
    """

    def __init__(self, recipe: Mapping[str, Mapping[str, Any]], seed: int, further: Sequence[Penalty] = ()) -> None:
        self.penalties = [*(registry.build(name, options) for name, options in sorted(recipe.items())), *further]
        names = [p.name for p in self.penalties]
        if len(set(names)) < len(names):
            raise UsageError(
                f"every penalty of a run needs a name of its own, but they are {', '.join(names)}; drop one of the "
                "two, in the recipe or among the further penalties"
            )
        self.generator = torch.Generator().manual_seed(seed)
        self.boost = 1.0
        self.reserve: str | None = None
        self.contribute: Callable[..., Contribution] = contribution

    def call(self, reserve: str | None) -> None:
        """Apply a further penalty from now on, afresh, in place of one that was called before.

        Args:
            reserve: Its spec; None for no further one.

        Raises:
            UsageError: If it is no spec.
        """
        if self.reserve is not None:
            self.penalties.pop()
        if reserve is not None:
            self.penalties.append(registry.parse(reserve))
        self.reserve = reserve

    def has(self, spec: str) -> bool:
        """Whether the run has a penalty of that name."""
        return registry.split(spec)[0] in {p.name for p in self.penalties}

    def require(self, block: EquilibriumBlock, prewarm: int = 0) -> None:
        """Raise unless penalties can act on a block.

        Args:
            block: The block.
            prewarm: Updates of the pre-warm, which is a penalty too.

        Raises:
            UsageError: If there are some, and the block does not relax.
        """
        found = [*(p.name for p in self.penalties), *(["stability.prewarm"] if prewarm else [])]
        if found and not block.relaxes:
            names = ", ".join(found)
            raise UsageError(
                f"penalties act on a relaxation, but {type(block).__name__} computes its output in one pass and does "
                f"not relax; drop {names}, or choose a block that relaxes"
            )

    def contributions(self, system: System, gradient: Gradient, step: int) -> dict[str, Contribution]:
        """Return what each penalty that is due adds to the update number ``step``.

        Args:
            system: The system the task's gradient was taken of.
            gradient: The task's gradient, with the state it was read out at.
            step: Number of the update, counted from 1.

        Raises:
            DyneqError: If the system has not what a penalty needs.
        """
        if not self.penalties:
            return {}
        self._observe(gradient)
        due = {p: share for p in self.penalties if (share := p.params.factor(step)) > 0}
        task_norm = grouped_norm(gradient.parameters) if due else torch.zeros(())
        z = gradient.state if gradient.relaxed is None else gradient.relaxed
        return {
            p.name: self.contribute(p, system, z, task_norm, self.generator, share * self.boost)
            for p, share in due.items()
        }

    def _observe(self, gradient: Gradient) -> None:
        """Tell the controllers the residual at T1, before any refinement of the free phase."""
        found = gradient.diagnostics.get("force_residual_t1", gradient.diagnostics["force_residual"])
        residual = RESIDUAL_EPS * float(found.median())
        for penalty in self.penalties:
            penalty.observe(residual)

    def weights(self, step: int) -> dict[str, float]:
        """Return the weights in force in the update number ``step``, applied in it or not, and what controllers say."""
        found = {f"penalty_{p.name}_weight": p.weight * p.params.share(step) * self.boost for p in self.penalties}
        return found | {f"penalty_{p.name}_controller": p.weight for p in self.penalties if p.controlled}

    def act_after(self, step: int) -> bool:
        """Whether a penalty is still to be applied after ``step`` updates."""

        def next_of(params: PenaltyParams) -> int:
            done = max(0, -(-(step - params.start) // params.every))  # applications until then
            return params.start + 1 + params.every * done

        return any(p.params.until is None or next_of(p.params) <= p.params.until for p in self.penalties)

    def state(self) -> dict[str, Any]:
        """Return what is needed to continue: the generator, what the guard did, and what penalties remember."""
        return {
            "generator": self.generator.get_state(),
            "boost": self.boost,
            "reserve": self.reserve,
            "penalties": {p.name: state for p in self.penalties if (state := p.state())},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` gave."""
        self.generator.set_state(state["generator"])
        self.boost = state["boost"]
        self.call(state.get("reserve"))
        for penalty in self.penalties:
            if penalty.name in state["penalties"]:
                penalty.restore(state["penalties"][penalty.name])


def added(gradient: Grouped, contributions: Mapping[str, Contribution]) -> Grouped:
    """Return the sum of a gradient and what penalties add."""
    if not contributions:
        return gradient
    return {
        group: {
            name: torch.stack([value, *[c.parameters[group][name] for c in contributions.values()]]).sum(0)
            for name, value in members.items()
        }
        for group, members in gradient.items()
    }


def worst(measure: Tensor) -> Tensor:
    """Return the largest measure of the samples that have one, NaN if none has."""
    known = measure[~measure.isnan()]
    return known.amax() if len(known) else measure.new_full((), torch.nan)


def numbers(contributions: Mapping[str, Contribution], task: Grouped) -> dict[str, Tensor]:
    """Return what the log says of the penalties of an update.

    For each: its bare value, its probe's measure (the largest over samples), its norm over the task gradient's, and the
    cosine of the two. And ``penalty_share``, <penalties, update>/norm(update)^2 of all together.
    """
    found: dict[str, Tensor] = {}
    if not contributions:
        return found
    norm = grouped_norm(task)
    for name, c in contributions.items():
        own = grouped_norm(c.parameters)
        dot = torch.stack([(v * c.parameters[g][n]).sum() for g, members in task.items() for n, v in members.items()])
        found |= {
            f"penalty_{name}": c.value,
            f"penalty_{name}_measure": worst(c.measure),
            f"penalty_{name}_ratio": own / norm,
            f"penalty_{name}_cosine": dot.sum() / (own * norm),
        }
    update = added(task, contributions)
    with_task = torch.stack([(v * update[g][n]).sum() for g, members in task.items() for n, v in members.items()]).sum()
    found["penalty_share"] = 1 - with_task / grouped_norm(update).square()
    return found
