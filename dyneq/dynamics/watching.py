"""Naming what a sample moves on, and holding it against what its root says."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.attractor import Attractor, AttractorKind, classify_attractors
from dyneq.dynamics.escape import enter_escape, escapes
from dyneq.dynamics.judgement import Judgement, part_of, show
from dyneq.dynamics.roots import STARTS, find_root
from dyneq.dynamics.rootview import Standing, view_roots
from dyneq.dynamics.settle import settle
from dyneq.dynamics.status import Status
from dyneq.dynamics.verdict import Confidence, Verdict
from dyneq.systems.protocol import System, Time

#: Steps an attractor is watched for at most; it is first watched for a sixteenth of them.
WATCH = 24000
#: Least of these, where fewer would show nothing.
LEAST_WATCH = 1000
#: Places along a chaotic trajectory from which roots are looked for, and the steps between them.
PLACES, APART = 4, 100
#: Periods that name a cycle, with some to spare.
ENOUGH = 16

#: The verdict on what is no rest and no escape.
_NAMED = {
    AttractorKind.CYCLE: Verdict.LIMIT_CYCLE,
    AttractorKind.TORUS: Verdict.TORUS,
    AttractorKind.CHAOS: Verdict.CHAOS,
}
#: How many times smaller the step is at which a motion has to be the same.
SMALLER = 4
#: Relative differences of period and amplitude up to which two cycles at different steps are the same one.
SAME_PERIOD, SAME_AMPLITUDE = 0.25, 0.5
#: A trajectory this near to a periodic orbit, in amplitudes of it, is on it.
ON_ORBIT = 0.2


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
        standings: dict[int, Standing],
        hints: dict[int, Hint],
    ) -> None:
        """Give verdicts to samples that move and whose roots do not explain it away.

        Args:
            part: The system of the moving samples.
            z: Their states.
            rows: Which of them to name.
            judged: Judgements of the rows of ``part``; changed in place.
            standings: How the root of a row stands; none where no root was found.
            hints: For some rows what speaks for a fold.
        """
        own, at = part_of(part, rows), torch.tensor(rows)
        found, watched = self._watched(own, z[at])
        for k, row in enumerate(rows):
            self._enter(judged[row], found[k])
        doubted = [k for k, a in enumerate(found) if self.flow and a.kind in _NAMED and not _of_the_flow(a)]
        enough = max((_enough(found[k], watched[k]) for k in doubted), default=0)
        smaller = self._at_smaller_step(own, z[at], doubted, enough)
        gone = [k for k, a in enumerate(found) if a.kind is AttractorKind.DIVERGED]
        lost = dict(zip(gone, escapes(part_of(own, gone), z[at[gone]]) if gone else [], strict=True))
        rests = [k for k, a in enumerate(found) if a.kind is AttractorKind.FIXED_POINT]
        stable = self._rests_on_stable(own, z[at], rests, max((watched[k] for k in rests), default=0))
        chaotic = [k for k, a in enumerate(found) if a.kind is AttractorKind.CHAOS]
        passing = {k for k in chaotic if self._passes_stable(part_of(own, [k]), z[at[k : k + 1]])}
        for k, row in enumerate(rows):
            hint, standing = hints.get(row), standings.get(row)
            leaves = found[k].kind in (AttractorKind.SLOW, AttractorKind.FIXED_POINT, AttractorKind.DIVERGED)
            if hint is not None and leaves:
                hint.enter(judged[row])
                continue
            if hint is not None:
                judged[row].against.append(f"{hint.why}, but the state was not seen to come to rest or to leave")
            if k in lost:
                enter_escape(judged[row], lost[k], Confidence.OBSERVED, self.flow)
            elif k in rests:
                self._rest(judged[row], stable[k])
            elif found[k].kind is AttractorKind.SLOW:
                self._decays(judged[row], standing)
            elif k in passing:
                judged[row].undetermined("there is a stable root within its reach: the chaos may be a transient")
            elif found[k].kind in _NAMED:
                self._name(judged[row], found[k], standing, smaller.get(k))
            else:
                judged[row].undetermined("what it moves on could not be named")

    def _rests_on_stable(self, own: System, z: Tensor, rows: list[int], steps: int) -> dict[int, bool]:
        """Return for rows that come to rest whether it is on a root that is stable by its spectrum."""
        if not rows:
            return {}
        part, at = part_of(own, rows), torch.tensor(rows)
        late = settle(part, 2 * steps, start=z[at])
        stands = view_roots(part, late.z, generator=self.generator).standing()
        settled = [s is Status.CONVERGED for s in late.status]
        return {row: settled[k] and stands[k] is Standing.STABLE for k, row in enumerate(rows)}

    def _passes_stable(self, one: System, z: Tensor) -> bool:
        """Return whether Newton's method finds a stable root from somewhere along a trajectory of one sample."""
        for _ in range(PLACES):
            late = settle(one, APART, window=APART, start=z)
            z = late.z
            relaxation = late.relaxation(one, [0])
            roots = find_root(one, relaxation=relaxation, starts=STARTS, explore=True, generator=self.generator)
            if not roots.status[0].good:
                continue
            for root in (roots.z, *(o.z[None] for o in roots.others)):
                view = view_roots(one, root, generator=self.generator)
                if view.flow_side().max() < 0:
                    return True
        return False

    def _rest(self, judged: Judgement, stable: bool) -> None:
        if stable:
            why = "it settles within the steps watched, on a root that is stable by its spectrum"
            judged.decide(Verdict.SLOW, Confidence.OBSERVED, why=why)
        else:
            judged.undetermined("it comes to rest, but not on a root whose spectrum is known to be stable")

    def _decays(self, judged: Judgement, standing: Standing | None) -> None:
        if standing is Standing.STABLE:
            judged.decide(Verdict.SLOW, Confidence.OBSERVED, why="it still decays, and the root found is stable")
        else:
            judged.undetermined("it still decays, but to no root that is known to be stable")

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

    def _at_smaller_step(self, own: System, z: Tensor, rows: list[int], watched: int) -> dict[int, Attractor | None]:
        """Return what the doubted rows move on at a quarter of the step; None where they settle."""
        if not rows:
            return {}
        part, at = part_of(own, rows), torch.tensor(rows)
        smaller = part.with_eps(part.eps / SMALLER)
        late = settle(smaller, 2 * watched, start=z[at])
        seen: dict[int, Attractor | None] = dict.fromkeys(rows)
        still = [k for k, s in enumerate(late.status) if s is not Status.CONVERGED]
        if still:
            finite = torch.isfinite(late.z).view(len(rows), -1).all(1)
            begin = torch.where(finite.view(-1, *[1] * (z.ndim - 1)), late.z, z[at])
            again = classify_attractors(
                part_of(smaller, still), begin[torch.tensor(still)], steps=4 * watched, generator=self.generator
            )
            seen |= {rows[k]: a for k, a in zip(still, again, strict=True)}
        return seen

    def _name(self, judged: Judgement, found: Attractor, standing: Standing | None, smaller: Attractor | None) -> None:
        """Give the verdict on a cycle, torus or chaos.

        Args:
            judged: Where it is entered.
            found: What it moves on.
            standing: How the root stands; None where none was found.
            smaller: What it moves on at a quarter of the step, None where it settles there or that was not asked.
        """
        unstable = standing is Standing.UNSTABLE
        if not self.flow:
            lock = found.first is not None and found.first.lock > 0
            if found.kind is AttractorKind.CYCLE and lock and found.orbit is None:
                judged.undetermined(
                    "it seems to repeat itself, but Newton's method finds no such orbit: intermittency?"
                )
                return
        elif not _of_the_flow(found):
            if smaller is None:
                if unstable:
                    judged.undetermined("at a quarter of the step it settles, though the root found is unstable")
                else:
                    why = "at a quarter of the step, from the same state, it settles: Euler's step makes the motion"
                    judged.decide(Verdict.DISCRETE_INSTABILITY, Confidence.OBSERVED, "coexisting", why)
                return
            if not _alike(found, smaller):
                judged.undetermined(f"at a quarter of the step it does something else ({smaller.kind.value})")
                return
            judged.supports.append("it does the same at a quarter of the step")
        if found.kind is AttractorKind.CHAOS and standing in (Standing.STABLE, Standing.STEP):
            judged.undetermined("the root found is stable for the flow: the chaos may be a transient, or Euler's")
            return
        if unstable:
            judged.supports.append(f"the root it left is unstable ({show(judged.mu)})")
        confidence = Confidence.CONFIRMED if unstable else Confidence.OBSERVED
        kind = self._crossing(judged.mu) if unstable and found.kind is AttractorKind.CYCLE else ""
        judged.decide(_NAMED[found.kind], confidence, kind)

    def _crossing(self, mu: complex) -> str:
        """Return how an unstable pair crosses the boundary of stability."""
        if mu.imag != 0:
            return "hopf" if self.flow else "neimark-sacker"
        return "flip" if not self.flow and mu.real < 0 else ""


def _enough(found: Attractor, otherwise: int) -> int:
    """Return the steps that hold enough periods to name a cycle, ``otherwise`` where no period is seen."""
    known = math.isfinite(found.period_steps) and found.period_steps > 0
    return min(otherwise, math.ceil(ENOUGH * found.period_steps)) if known else otherwise


def _of_the_flow(found: Attractor) -> bool:
    """Return whether shooting found the cycle in the flow itself, from a state that the flow had come to."""
    return bool(found.of_the_flow and found.orbit is not None and found.orbit.distance <= ON_ORBIT)


def _alike(first: Attractor, second: Attractor) -> bool:
    """Return whether a motion is the same at a smaller step: of one kind, a cycle of like period and amplitude."""
    if first.kind is not second.kind:
        return False
    if first.kind is not AttractorKind.CYCLE:
        return True
    period = second.period_steps / SMALLER / first.period_steps
    size = second.amplitude / first.amplitude
    return abs(period - 1) <= SAME_PERIOD and abs(math.log(size)) <= math.log1p(SAME_AMPLITUDE)
