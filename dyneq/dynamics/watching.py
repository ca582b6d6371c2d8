"""Naming what a sample moves on, and holding it against what its root says."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.attractor import Attractor, AttractorKind, classify_attractors
from dyneq.dynamics.judgement import Judgement, part_of, show
from dyneq.dynamics.settle import settle
from dyneq.dynamics.status import Status
from dyneq.dynamics.verdict import Confidence, Verdict
from dyneq.systems.protocol import System, Time

#: Steps an attractor is watched for at most; it is first watched for a sixteenth of them.
WATCH = 24000
#: Least of these, where fewer would show nothing.
LEAST_WATCH = 1000
#: Periods that name a cycle, with some to spare.
ENOUGH = 16

#: Ends that a passage past a fold can have.
_LEAVING = (AttractorKind.SLOW, AttractorKind.FIXED_POINT, AttractorKind.DIVERGED)


@dataclass(frozen=True)
class Hint:
    """What the scalar equation at a state says of a fold; a verdict only where the state is seen to come or go.

    Attributes:
        kind: ``coalescing`` or ``ghost``.
        why: The sentence.
        passage: Time the passage of a ghost takes.
        mu: Real eigenvalue nearest to 0 where there is no root.
    """

    kind: str
    why: str
    passage: float = math.nan
    mu: complex | None = None

    def enter(self, judged: Judgement) -> None:
        """Give the verdict."""
        judged.passage = self.passage
        judged.mu = judged.mu if self.mu is None else self.mu
        judged.decide(Verdict.FOLD, Confidence.PREDICTED, self.kind, self.why)


class Watcher:
    """Names what samples move on.

    Args:
        system: The system.
        generator: All randomness.
        watch: Steps an attractor is watched for at most.
    """

    def __init__(self, system: System, *, generator: torch.Generator, watch: int) -> None:
        self.system, self.generator, self.watch = system, generator, watch
        self.flow = system.time is Time.FLOW

    def name(
        self,
        part: System,
        z: Tensor,
        rows: list[int],
        judged: list[Judgement],
        unstable: set[int],
        hints: dict[int, Hint],
    ) -> None:
        """Give verdicts to samples that move and whose roots do not explain it away.

        Args:
            part: The system of the moving samples.
            z: Their states.
            rows: Which of them to name.
            judged: Judgements of the rows of ``part``; changed in place.
            unstable: Rows whose root is unstable, for the flow or the map.
            hints: For some rows what speaks for a fold.
        """
        own, at = part_of(part, rows), torch.tensor(rows)
        found, watched = self._watched(own, z[at])
        for k, row in enumerate(rows):
            self._enter(judged[row], found[k])
        doubted = [
            k
            for k, row in enumerate(rows)
            if self.flow
            and (row not in unstable or found[k].kind in (AttractorKind.CHAOS, AttractorKind.DIVERGED))
            and found[k].kind in (AttractorKind.CYCLE, AttractorKind.TORUS, AttractorKind.CHAOS, AttractorKind.DIVERGED)
        ]
        enough = max((_enough(found[k], watched[k]) for k in doubted), default=0)
        confirmed = self._at_smaller_step(own, z[at], doubted, enough)
        for k, row in enumerate(rows):
            hint = hints.get(row)
            if hint is not None and found[k].kind in _LEAVING:
                hint.enter(judged[row])
                continue
            if hint is not None:
                judged[row].against.append(f"{hint.why}, but the state was not seen to come to rest or to leave")
            self._name(judged[row], found[k], row in unstable, confirmed.get(k))

    def _watched(self, own: System, z: Tensor) -> tuple[list[Attractor], list[int]]:
        """Return what every row moves on and the steps it was watched for: longer where fewer did not tell."""
        steps = min(max(self.watch // 16, LEAST_WATCH), self.watch)
        found: list[Attractor] = []
        watched = [steps] * len(z)
        left = list(range(len(z)))
        while True:
            part, at = part_of(own, left), torch.tensor(left)
            seen = classify_attractors(part, z[at], steps=steps, generator=self.generator)
            found = seen if not found else [seen[left.index(k)] if k in left else found[k] for k in range(len(z))]
            watched = [steps if k in left else watched[k] for k in range(len(z))]
            left = [k for k in left if found[k].kind is AttractorKind.UNDETERMINED]
            if not left or steps >= self.watch:
                return found, watched
            # as many periods as are needed where one is seen, else more of the same
            wanted = max(_enough(found[k], 4 * steps) for k in left)
            steps = min(self.watch, max(wanted, 2 * steps))

    def _enter(self, judged: Judgement, found: Attractor) -> None:
        eps = self.system.eps
        judged.period, judged.amplitude = found.period_steps * eps, found.amplitude
        if len(found.exponents):
            judged.exponent = float(found.exponents[0]) / eps
            judged.exponent_error = float(found.exponent_errors[0]) / eps
        judged.supports += found.evidence
        judged.against += found.against

    def _at_smaller_step(
        self, own: System, z: Tensor, rows: list[int], watched: int
    ) -> dict[int, tuple[AttractorKind | None]]:
        """Return what the doubted rows move on at a quarter of the step; (None,) where they settle."""
        if not rows:
            return {}
        part, at = part_of(own, rows), torch.tensor(rows)
        smaller = part.with_eps(part.eps / 4)
        late = settle(smaller, 2 * watched, start=z[at])
        still = late.where(Status.MAX_STEPS)
        ends = {Status.CONVERGED: None, Status.DIVERGED: AttractorKind.DIVERGED}
        seen: dict[int, tuple[AttractorKind | None]] = {
            row: (ends.get(late.status[k], AttractorKind.UNDETERMINED),) for k, row in enumerate(rows)
        }
        if still:
            again = classify_attractors(
                part_of(smaller, still), late.z[torch.tensor(still)], steps=4 * watched, generator=self.generator
            )
            seen |= {rows[k]: (a.kind,) for k, a in zip(still, again, strict=True)}
        return seen

    def _name(
        self, judged: Judgement, found: Attractor, unstable: bool, smaller: tuple[AttractorKind | None] | None
    ) -> None:
        """Give the verdict on what a sample moves on.

        Args:
            judged: Where it is entered.
            found: What it moves on.
            unstable: Whether the root is unstable for the flow (or the map), so that nothing else was to be expected.
            smaller: What it moves on at a quarter of the step (None: it settles); None if that was not asked.
        """
        named = {
            AttractorKind.CYCLE: Verdict.LIMIT_CYCLE,
            AttractorKind.TORUS: Verdict.TORUS,
            AttractorKind.CHAOS: Verdict.CHAOS,
            AttractorKind.DIVERGED: Verdict.DIVERGED,
        }
        if found.kind in (AttractorKind.FIXED_POINT, AttractorKind.SLOW):
            judged.decide(Verdict.SLOW, Confidence.OBSERVED, why="it still decays, or settles within the steps watched")
        elif found.kind not in named:
            judged.undetermined("what it moves on could not be named")
        elif smaller == (None,):
            if unstable:
                judged.undetermined("at a quarter of the step it settles, though the root found is unstable")
            else:
                why = "at a quarter of the step, from the same state, it settles: Euler's step makes the motion"
                judged.decide(Verdict.DISCRETE_INSTABILITY, Confidence.OBSERVED, "coexisting", why)
        elif smaller is not None and smaller != (found.kind,):
            other = smaller[0].value if smaller[0] is not None else "a fixed point"
            judged.undetermined(f"at a quarter of the step it moves on something else ({other})")
        else:
            if smaller is not None:
                judged.supports.append("it does the same at a quarter of the step")
            if unstable:
                judged.supports.append(f"the root it left is unstable ({show(judged.mu)})")
            confidence = Confidence.CONFIRMED if unstable else Confidence.OBSERVED
            kind = self._crossing(judged.mu) if unstable and found.kind is AttractorKind.CYCLE else ""
            judged.decide(named[found.kind], confidence, kind)

    def _crossing(self, mu: complex) -> str:
        """Return how an unstable pair crosses the boundary of stability."""
        if mu.imag != 0:
            return "hopf" if self.flow else "neimark-sacker"
        return "flip" if not self.flow and mu.real < 0 else ""


def _enough(found: Attractor, otherwise: int) -> int:
    """Return the steps that hold enough periods to name a cycle, ``otherwise`` where no period is seen."""
    known = math.isfinite(found.period_steps) and found.period_steps > 0
    return min(otherwise, math.ceil(ENOUGH * found.period_steps)) if known else otherwise
