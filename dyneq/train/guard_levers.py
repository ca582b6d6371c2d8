"""What the guard can move, and what it has moved: the learning rate's share and the factor on penalties' weights."""

from typing import TYPE_CHECKING, Any

from dyneq.train.log import Record
from dyneq.train.sections import GuardSection

if TYPE_CHECKING:
    from dyneq.train.trainer import Trainer

ROLLED_BACK, LOWERED, BOOSTED, CALLED, TAKEN_BACK = "rolled_back", "lowered", "boosted", "called", "taken_back"
_WORDS = {
    ROLLED_BACK: "rolled back",
    LOWERED: "lowered the learning rate",
    BOOSTED: "raised the penalties' weights",
    CALLED: "added its penalty",
    TAKEN_BACK: "took an act back",
}


class Levers:
    """The learning rate and the penalties of a run, within the bounds of its guard.

    Args:
        section: The guard of the recipe.

    Attributes:
        counts: How often what was done.
    """

    def __init__(self, section: GuardSection) -> None:
        self.section = section
        self.counts = dict.fromkeys(_WORDS, 0)
        self._undoable: list[tuple[str, float]] = []

    def slow_down(self, trainer: "Trainer") -> list[str]:
        """Lower the learning rate; return what was done, nothing at the bound."""
        before, share = trainer.lr_share, max(self.section.smallest, trainer.lr_share * self.section.lower)
        if share >= before:
            return []
        trainer.lr_share = share
        self._note(LOWERED, before)
        return [f"lowers the learning rate to {share:.3g} of the recipe's"]

    def strengthen(self, trainer: "Trainer") -> list[str]:
        """Raise the weights of the penalties, or add the reserve; return what was done, nothing at the bound."""
        if called := self.call(trainer):
            return called
        before, boost = trainer.terms.boost, min(self.section.largest, trainer.terms.boost * self.section.boost)
        if not trainer.terms.act_after(trainer.step) or boost <= before:
            return []
        trainer.terms.boost = boost
        self._note(BOOSTED, before)
        return [f"raises the penalties' weights to {boost:.3g} times the recipe's"]

    def call(self, trainer: "Trainer") -> list[str]:
        """Add the reserve, for good, to a run that has no penalty to come, nor had it; return what was done."""
        reserve, terms = self.section.reserve, trainer.terms
        if reserve is None or terms.act_after(trainer.step) or terms.has(reserve):
            return []
        terms.call(reserve)
        self.counts[CALLED] += 1  # what a run could not do without is not taken back
        return [f"adds the penalty {reserve}"]

    @property
    def undoable(self) -> bool:
        """Whether an act is left to take back."""
        return bool(self._undoable)

    def take_back(self, trainer: "Trainer") -> str:
        """Take the last act back; return what was done."""
        self.counts[TAKEN_BACK] += 1
        act, before = self._undoable.pop()
        if act == LOWERED:
            trainer.lr_share = before
            return f"raises the learning rate again, to {trainer.lr_share:.3g} of the recipe's"
        trainer.terms.boost = before
        return f"lowers the penalties' weights again, to {trainer.terms.boost:.3g} times the recipe's"

    def _note(self, act: str, before: float) -> None:
        self._undoable.append((act, before))
        self.counts[act] += 1

    def settings(self, trainer: "Trainer") -> Record:
        """Return where they stand, for the log."""
        return {"guard_lr_share": trainer.lr_share, "guard_boost": trainer.terms.boost}

    def summary(self) -> str:
        """Return what the guard did in a run, in one sentence."""
        done = [f"{words} {n} time{'s' if n > 1 else ''}" for act, words in _WORDS.items() if (n := self.counts[act])]
        return f"the guard {', '.join(done)}" if done else "the guard had nothing to do"

    def state(self) -> dict[str, Any]:
        """Return what it remembers."""
        return {"counts": dict(self.counts), "undoable": [list(pair) for pair in self._undoable]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` gave."""
        self.counts |= state["counts"]
        self._undoable = [(act, before) for act, before in state["undoable"]]
