"""The guard: looks at the weights now and then, foresees that fixed points will be lost, and acts before they are."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from dyneq.errors import UsageError
from dyneq.probes.penalties import registry
from dyneq.systems.block import EquilibriumBlock
from dyneq.train import parallel
from dyneq.train.guard_levers import ROLLED_BACK, Levers
from dyneq.train.guard_look import Look, take_look
from dyneq.train.guard_pulse import FEW, Pulse
from dyneq.train.guard_rules import NEAR, Mood, Verdict, blown_up, judge
from dyneq.train.guard_trend import FEWEST
from dyneq.train.log import Record
from dyneq.train.sections import GuardSection
from dyneq.train.snapshots import read_state, write_snapshot

if TYPE_CHECKING:
    from dyneq.train.trainer import Trainer

#: Looks an act is given to show, unless the crossing is near.
PATIENCE = 2
#: Least updates from one look to one that does not wait for its turn.
APART = FEW
VALIDATION, TRAINING, SEEN = "validation loss", "training loss", "loss of the samples it looks at"


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
        levers: What it moves, with how often it did.
        ended: Why it ended the run; None if it did not.

    Raises:
        UsageError: If the block does not relax, fewer samples are pinned than it looks at, or its reserve is no spec
            or has a schedule.
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
        if section.reserve is not None:
            schedule = registry.parse(section.reserve).params
            if schedule.start or schedule.ramp or schedule.until is not None:
                raise UsageError(
                    f"guard.reserve is {section.reserve!r}, whose start, ramp or until would count from the run's "
                    "first update and not from when it is added; leave them out"
                )
        self.section = section
        self.looks: list[Look] = []
        self.stable: Look | None = None
        self.stable_step: int | None = None
        self.levers = Levers(section)
        self.ended: str | None = None
        self._bests = dict.fromkeys((VALIDATION, TRAINING, SEEN), math.inf)
        self._undone, self._calm_from, self._acted, self._looked = 0, 0, -math.inf, 0
        self._pulse = Pulse(section.every)
        self._uneasy, self._exhausted = True, False
        self._generator = torch.Generator().manual_seed(0)

    def begin(self, trainer: "Trainer", shelf: Shelf) -> Record:
        """Look at the weights a run starts from, whose loss none may exceed by far; return the numbers for its log."""
        record: Record = {}
        self._see(trainer, record, "")
        self._bests = dict.fromkeys(self._bests, self.looks[-1].loss)
        self._remember(trainer, shelf)
        return record | self.levers.settings(trainer)

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
        pulse, last, rolled_back = self._pulse, trainer.step == trainer.recipe.run.steps, False
        if trainer.step == trainer.recipe.stability.prewarm + 1:
            pulse.clear()  # its gradients were those of a penalty alone
        pulse.add(record)
        measured = {VALIDATION: record.get("validation_loss"), TRAINING: pulse.loss}
        losses = {name: (found, self._bests[name]) for name, found in measured.items() if found is not None}
        # where gradients are clipped, one spike does no lasting harm, and is only looked into
        clipped = trainer.recipe.optimizer.clip is not None
        blown = blown_up(self.section, losses, "" if clipped else pulse.spike)
        alarmed = (pulse.jumped or pulse.spike) and trainer.step - self._looked >= APART
        if blown or alarmed or last or self._due(trainer.step):
            before = self.levers.counts[ROLLED_BACK]
            verdict = self._see(trainer, record, blown)
            act = self._respond(trainer, verdict, shelf, last)
            if act is not None:
                record["act"] = act
            rolled_back = self.levers.counts[ROLLED_BACK] > before
            if rolled_back:
                record["rolled_back_to"] = self.stable_step
            if not verdict.soon:  # what is about to be lost is no place to go back to
                self._remember(trainer, shelf)
            record |= {"guard_stable_step": self.stable_step, **self.levers.settings(trainer)}
        for name, (found, best) in losses.items():
            self._bests[name] = found if found < best else best
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
        record |= {"act": self._roll_back(trainer, why, shelf), "rolled_back_to": self.stable_step}
        return record | self.levers.settings(trainer)

    def _due(self, step: int) -> bool:
        """Return whether it is time for a regular look: at multiples of ``every``, at every other one in safety."""
        every = self.section.every
        return step % every == 0 and (self._uneasy or step - self._looked > every)

    @torch.no_grad()
    def _see(self, trainer: "Trainer", record: Record, blown: str) -> Verdict:
        """Look, add what was seen to a record, and return what to make of it."""
        began, section = time.perf_counter(), self.section
        batch = trainer.evaluation.first(section.samples)
        system = trainer.block.bind(batch.tokens.to(trainer.device), batch.targets.to(trainer.device))
        t1 = self._pulse.take_residual()
        taken = take_look(system, section.depth, self._generator, trainer.step - self._undone, t1)
        look = Look.of(parallel.agreed(taken.to_plain()))
        self._looked = trainer.step
        self.looks = [*self.looks, look][-section.history :]
        verdict = judge(section, self.looks, self.stable, blown)
        known = len(self.looks) >= FEWEST and verdict.mood is Mood.CALM
        self._uneasy = not (known and look.modulus < NEAR)
        record |= {
            "guard_modulus": look.modulus,
            "guard_residual": look.residual,
            "guard_restless": look.restless,
            "guard_loss": look.loss,
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
            calm, safe = step - self._calm_from, self.looks[-1].modulus < NEAR
            long = calm >= self.section.recover * (1 + self.levers.counts[ROLLED_BACK])
            if not (long and safe and self.levers.undoable):
                return None
            self._calm_from = step
            return f"the guard {self.levers.take_back(trainer)}, because {calm} updates were calm ({self.looks[-1]})"
        self._calm_from = step
        if not verdict.soon and step - self._acted < PATIENCE * self.section.every:
            return None
        done = self.levers.strengthen(trainer)
        if verdict.soon or not done:
            done += self.levers.slow_down(trainer)
        self._acted = step
        told, self._exhausted = self._exhausted, not done
        if not done:
            if told:
                return None  # said once, until it can act again
            return (
                f"the guard has nothing left to do (learning rate and penalties at their bounds), though {verdict.why}"
            )
        return f"the guard {' and '.join(done)}, because {verdict.why}"

    def _at_limit(self, why: str) -> bool:
        if self.levers.counts[ROLLED_BACK] < self.section.rollbacks:
            return False
        self.ended = (
            f"the guard gives the run up after {self.section.rollbacks} rollbacks, the most that guard.rollbacks "
            f"allows, because {why}; the last stable snapshot is that of update {self.stable_step}; lower "
            "optimizer.lr, or add a penalty such as --reg floss"
        )
        return True

    def _roll_back(self, trainer: "Trainer", why: str, shelf: Shelf) -> str:
        assert self.stable is not None
        assert self.stable_step is not None
        step = trainer.step
        trainer.roll_back(*read_state(shelf.stable_file(self.stable_step)))
        self.levers.counts[ROLLED_BACK] += 1
        self._undone = step - self.stable.at
        self.looks = [look for look in self.looks if look.at <= self.stable.at]
        self._calm_from = self._acted = step
        self._pulse.clear()
        self._uneasy = True
        done = [*self.levers.slow_down(trainer), *self.levers.call(trainer)]
        more = f", {' and '.join(done)}" if done else f", the learning rate at {trainer.lr_share:.3g} of the recipe's"
        return (
            f"the guard rolls back from update {step} to the stable weights of update {self.stable_step}{more} "
            f"(rollback {self.levers.counts[ROLLED_BACK]} of {self.section.rollbacks}), because {why}"
        )

    def _remember(self, trainer: "Trainer", shelf: Shelf) -> None:
        """Keep the weights of a stable look that computes what it should, with all that training needs to go on."""
        loss, best = self.looks[-1].loss, self._bests[SEEN]
        if self.looks[-1].stable and loss <= best + self.section.blow_up:
            self._bests[SEEN] = min(loss, best)
            self.stable, self.stable_step = self.looks[-1], trainer.step
            write_snapshot(shelf.stable_file(trainer.step), trainer.checkpoint(with_state=True))

    def state(self) -> dict[str, Any]:
        """Return all it remembers, plain values and tensors."""
        return {
            "looks": [look.to_plain() for look in self.looks],
            "stable": None if self.stable is None else self.stable.to_plain(),
            "stable_step": self.stable_step,
            "levers": self.levers.state(),
            "ended": self.ended,
            "bests": dict(self._bests),
            "times": [self._undone, self._calm_from, self._acted, self._looked],
            "flags": [self._uneasy, self._exhausted],
            "pulse": self._pulse.state(),
            "generator": self._generator.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` gave."""
        self.looks = [Look.of(plain) for plain in state["looks"]]
        self.stable = None if state["stable"] is None else Look.of(state["stable"])
        self.stable_step, self.ended = state["stable_step"], state["ended"]
        self.levers.restore(state["levers"])
        self._bests |= state["bests"]
        self._undone, self._calm_from, self._acted, self._looked = state["times"]
        self._uneasy, self._exhausted = state["flags"]
        self._pulse.restore(state["pulse"])
        self._generator.set_state(state["generator"])
