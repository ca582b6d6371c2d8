"""The guard: looks at the weights now and then, foresees that fixed points will be lost, and acts before they are."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from dyneq.errors import UsageError
from dyneq.systems.block import EquilibriumBlock
from dyneq.train import parallel
from dyneq.train.guard_look import Look, take_look
from dyneq.train.guard_rules import NEAR, Mood, Verdict, judge
from dyneq.train.guard_trend import FEWEST
from dyneq.train.log import Record
from dyneq.train.sections import GuardSection
from dyneq.train.snapshots import read_state, write_snapshot

if TYPE_CHECKING:
    from dyneq.train.trainer import Trainer

#: Looks an act is given to show, unless the crossing is near.
PATIENCE = 2
#: Factor over the largest force residual of the last updates, at which it does not wait for the next regular look.
ALARM = 3.0
#: Least updates between two looks.
APART = 5

LOWERED, BOOSTED, ROLLED_BACK, TAKEN_BACK = "lowered", "boosted", "rolled_back", "taken_back"


class Shelf(Protocol):
    """Where stable snapshots are kept, as a run's folder has one."""

    def stable_file(self, step: int) -> Path:
        """Return where the stable snapshot after ``step`` updates is kept."""


class Guard:
    """Watches a run and acts on its learning rate, on its penalties' weights, and on its weights themselves.

    Args:
        section: The guard of the recipe.
        block: The block under training.
        pinned: Samples of the evaluation batch.

    Attributes:
        looks: Those the trend is fitted to.
        stable: The last look that found the run stable; None before there was one.
        stable_step: Updates after which its snapshot was kept.
        counts: How often it did what.
        ended: Why it ended the run; None if it did not.

    Raises:
        UsageError: If the block does not relax, or fewer samples are pinned than it looks at.
    """

    def __init__(self, section: GuardSection, block: EquilibriumBlock, pinned: int) -> None:
        if not block.relaxes:
            raise UsageError(
                f"the guard watches a relaxation, but {type(block).__name__} computes its output in one "
                "pass and does not relax; train it with --no-guard (guard.enabled=false)"
            )
        if section.samples > pinned:
            raise UsageError(
                f"the guard looks at guard.samples={section.samples} samples of the pinned batch, but "
                f"data.evaluation_samples is {pinned}; lower the one or raise the other"
            )
        self.section = section
        self.looks: list[Look] = []
        self.stable: Look | None = None
        self.stable_step: int | None = None
        self.counts = dict.fromkeys((LOWERED, BOOSTED, ROLLED_BACK, TAKEN_BACK), 0)
        self.ended: str | None = None
        self._best = math.inf
        self._undone, self._calm_from, self._acted, self._looked = 0, 0, -math.inf, 0
        self._undoable: list[str] = []
        self._residuals: list[float] = []  # of the last updates, for the alarm
        self._since: list[float] = []  # since the last look, for the trend
        self._uneasy, self._exhausted = True, False
        self._generator = torch.Generator().manual_seed(0)

    def begin(self, trainer: "Trainer", shelf: Shelf) -> Record:
        """Look at the weights a run starts from; return the numbers for its log."""
        record: Record = {}
        self._see(trainer, record, None)
        self._remember(trainer, shelf)
        return record | self._settings(trainer)

    def after(self, trainer: "Trainer", record: Record, shelf: Shelf) -> bool:
        """Take note of an update that was applied; look and act if it is time to.

        Args:
            trainer: The run.
            record: The update's, which gains what was seen, and under ``act`` what was done and why.
            shelf: Where stable snapshots are.

        Returns:
            Whether the weights were rolled back.

        Raises:
            DyneqError: If a stable snapshot cannot be written, or not be read.
        """
        loss = record.get("validation_loss")
        alarmed = self._alarm(record)
        last = trainer.step == trainer.recipe.run.steps
        rolled_back = False
        if alarmed or last or self._due(trainer.step) or self._blown(loss):
            before = self.counts[ROLLED_BACK]
            verdict = self._see(trainer, record, loss)
            act = self._respond(trainer, verdict, shelf, last)
            if act is not None:
                record["act"] = act
            rolled_back = self.counts[ROLLED_BACK] > before
            if verdict.mood is not Mood.BROKEN:
                self._remember(trainer, shelf)
            record |= self._settings(trainer)
        if loss is not None and loss < self._best:
            self._best = loss
        return rolled_back

    def rescue(self, trainer: "Trainer", why: str, shelf: Shelf) -> Record | None:
        """Roll back after an update that was not finite; it counts as one of the run's updates.

        Args:
            trainer: The run, as it was before the update.
            why: What happened.
            shelf: Where stable snapshots are.

        Returns:
            The update's record; None if there is no way back, with :attr:`ended` set if the limit forbids it.

        Raises:
            DyneqError: If the stable snapshot cannot be read.
        """
        if self.stable is None or self._at_limit(why):
            return None
        record: Record = {"step": trainer.step + 1, "status": "non-finite", "message": why}
        switched = trainer.skip()
        if switched is not None:
            record["switch"] = switched
        record["act"] = self._roll_back(trainer, why, shelf)
        return record | self._settings(trainer)

    def _due(self, step: int) -> bool:
        """Return whether it is time for a regular look: at multiples of ``every``, at every other one in safety."""
        every = self.section.every
        return step % every == 0 and (self._uneasy or step - self._looked > every)

    def _alarm(self, record: Record) -> bool:
        """Return whether the force residual of the batch has jumped so that a look should not wait."""
        residual: float = record["force_residual_t1" if "force_residual_t1" in record else "force_residual"]
        self._since = [*self._since, residual]
        before, self._residuals = self._residuals, [*self._residuals, residual][-self.section.every :]
        jumped = len(before) >= APART and not residual <= ALARM * max(before)
        return jumped and record["step"] - self._looked >= APART

    def _blown(self, loss: float | None) -> bool:
        return loss is not None and not loss <= self._best + self.section.blow_up

    @torch.no_grad()
    def _see(self, trainer: "Trainer", record: Record, loss: float | None) -> Verdict:
        """Look, add what was seen to a record, and return what to make of it."""
        began, section = time.perf_counter(), self.section
        batch = trainer.evaluation.first(section.samples)
        system = trainer.block.bind(batch.tokens.to(trainer.device), batch.targets.to(trainer.device))
        t1 = float(np.median(self._since)) if self._since else None
        taken = take_look(system, section.depth, self._generator, trainer.step - self._undone, t1)
        look = Look.of(parallel.agreed(taken.to_plain()))
        self._looked, self._since = trainer.step, []
        self.looks = [*self.looks, look][-section.history :]
        verdict = judge(section, self.looks, self.stable, loss, self._best)
        known = len(self.looks) >= FEWEST and verdict.mood is Mood.CALM
        self._uneasy = not (known and look.modulus < NEAR)
        record |= {
            "guard_modulus": look.modulus,
            "guard_residual": look.residual,
            "guard_restless": look.restless,
            "guard_forecast": verdict.multiplier.number(),
            "guard_forecast_residual": verdict.residual.number(),
            "guard_forecast_t1": verdict.t1.number(),
            "guard_seconds": round(time.perf_counter() - began, 4),
        }
        return verdict

    def _respond(self, trainer: "Trainer", verdict: Verdict, shelf: Shelf, last: bool) -> str | None:
        step = trainer.step
        if verdict.mood is Mood.BROKEN and self.stable is not None:
            return None if self._at_limit(verdict.why) else self._roll_back(trainer, verdict.why, shelf)
        if last:
            return None  # there is no update left for which anything else would matter
        if verdict.mood is Mood.CALM:
            patience = self.section.recover * (1 + self.counts[ROLLED_BACK])
            if step - self._calm_from < patience or not self._undoable:
                return None
            return self._take_back(trainer, step - self._calm_from)
        self._calm_from = step
        if not verdict.soon and step - self._acted < PATIENCE * self.section.every:
            return None
        done = self._strengthen(trainer) if trainer.terms.penalties else []
        if verdict.soon or not done:
            done += self._slow_down(trainer)
        self._acted = step
        told, self._exhausted = self._exhausted, not done
        if not done:
            if told:
                return None  # said once, until it can act again
            return (
                f"the guard has nothing left to do (learning rate and penalties at their bounds), though {verdict.why}"
            )
        return f"the guard {' and '.join(done)}, because {verdict.why}"

    def _slow_down(self, trainer: "Trainer") -> list[str]:
        share = max(self.section.smallest, trainer.lr_share * self.section.lower)
        if share >= trainer.lr_share:
            return []
        trainer.lr_share = share
        self._undoable.append(LOWERED)
        self.counts[LOWERED] += 1
        return [f"lowers the learning rate to {share:.3g} of the recipe's"]

    def _strengthen(self, trainer: "Trainer") -> list[str]:
        boost = min(self.section.largest, trainer.terms.boost * self.section.boost)
        if boost <= trainer.terms.boost:
            return []
        trainer.terms.boost = boost
        self._undoable.append(BOOSTED)
        self.counts[BOOSTED] += 1
        return [f"raises the penalties' weights to {boost:.3g} times the recipe's"]

    def _take_back(self, trainer: "Trainer", calm: int) -> str:
        self._calm_from = trainer.step
        self.counts[TAKEN_BACK] += 1
        if self._undoable.pop() == LOWERED:
            trainer.lr_share = min(1.0, trainer.lr_share / self.section.lower)
            done = f"raises the learning rate again, to {trainer.lr_share:.3g} of the recipe's"
        else:
            trainer.terms.boost = max(1.0, trainer.terms.boost / self.section.boost)
            done = f"lowers the penalties' weights again, to {trainer.terms.boost:.3g} times the recipe's"
        return f"the guard {done}, because {calm} updates were calm ({self.looks[-1]})"

    def _at_limit(self, why: str) -> bool:
        if self.counts[ROLLED_BACK] < self.section.rollbacks:
            return False
        self.ended = (
            f"the guard gives the run up after {self.counts[ROLLED_BACK]} rollbacks, the most that guard.rollbacks "
            f"allows, because {why}; the last stable snapshot is that of update {self.stable_step}; lower "
            "optimizer.lr, or add a penalty such as --reg floss"
        )
        return True

    def _roll_back(self, trainer: "Trainer", why: str, shelf: Shelf) -> str:
        assert self.stable is not None
        assert self.stable_step is not None
        step = trainer.step
        trainer.roll_back(*read_state(shelf.stable_file(self.stable_step)))
        self.counts[ROLLED_BACK] += 1
        self._undone = step - self.stable.at
        self.looks = [look for look in self.looks if look.at <= self.stable.at]
        self._calm_from = self._acted = step
        self._residuals, self._since, self._uneasy = [], [], True
        lowered = self._slow_down(trainer)
        slower = f" and {lowered[0]}" if lowered else f", the learning rate at {trainer.lr_share:.3g} of the recipe's"
        return (
            f"the guard rolls back from update {step} to the stable weights of update {self.stable_step}{slower} "
            f"(rollback {self.counts[ROLLED_BACK]} of {self.section.rollbacks}), because {why}"
        )

    def _remember(self, trainer: "Trainer", shelf: Shelf) -> None:
        """Keep the weights of a stable look, with all that training needs to go on from them."""
        if self.looks[-1].stable:
            self.stable, self.stable_step = self.looks[-1], trainer.step
            write_snapshot(shelf.stable_file(trainer.step), trainer.checkpoint(with_state=True))

    def _settings(self, trainer: "Trainer") -> Record:
        return {"guard_lr_share": trainer.lr_share, "guard_boost": trainer.terms.boost}

    def summary(self) -> str:
        """Return what it did in a run, in one sentence."""
        words = {
            ROLLED_BACK: "rolled back",
            LOWERED: "lowered the learning rate",
            BOOSTED: "raised the penalties' weights",
            TAKEN_BACK: "took an act back",
        }
        done = [f"{words[act]} {n} time{'s' if n > 1 else ''}" for act in words if (n := self.counts[act])]
        return f"the guard {', '.join(done)}" if done else "the guard had nothing to do"

    def state(self) -> dict[str, Any]:
        """Return all it remembers, plain values and tensors."""
        return {
            "looks": [look.to_plain() for look in self.looks],
            "stable": None if self.stable is None else self.stable.to_plain(),
            "stable_step": self.stable_step,
            "counts": dict(self.counts),
            "ended": self.ended,
            "best": self._best,
            "times": [self._undone, self._calm_from, self._acted, self._looked],
            "undoable": list(self._undoable),
            "flags": [self._uneasy, self._exhausted],
            "residuals": [list(self._residuals), list(self._since)],
            "generator": self._generator.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` gave."""
        self.looks = [Look.of(plain) for plain in state["looks"]]
        self.stable = None if state["stable"] is None else Look.of(state["stable"])
        self.stable_step, self.counts, self.ended = state["stable_step"], dict(state["counts"]), state["ended"]
        self._best = state["best"]
        self._undone, self._calm_from, self._acted, self._looked = state["times"]
        self._undoable = list(state["undoable"])
        self._uneasy, self._exhausted = state["flags"]
        self._residuals, self._since = (list(part) for part in state["residuals"])
        self._generator.set_state(state["generator"])
