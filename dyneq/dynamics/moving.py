"""The cause of motion: what the root of a moving sample predicts, tested by a simulation."""

import math

import numpy as np
import torch
from torch import Tensor

from dyneq.dynamics.approach import AGREEMENT, approach
from dyneq.dynamics.fold import read_fold
from dyneq.dynamics.judgement import Judgement, part_of, show
from dyneq.dynamics.residuals import SMALLEST, least_size, relative_size
from dyneq.dynamics.roots import STARTS, find_root
from dyneq.dynamics.rootview import RootView, Standing, view_roots
from dyneq.dynamics.settle import Settling, settle
from dyneq.dynamics.status import Status
from dyneq.dynamics.verdict import Confidence, Verdict
from dyneq.dynamics.watching import Hint, Watcher
from dyneq.systems.protocol import System

#: Steps a confirmation by simulation may take.
CONFIRM = 3000
#: Steps a slow relaxation is continued for at most.
PATIENCE = 20000
#: A quadratic coefficient times the size of the state below this share of the other rates is none.
CURVED = 1e-6
#: Steps added to what a slow relaxation is predicted to need.
SPARE = 400

#: For each row its view and the place in it.
Views = dict[int, tuple[RootView, int]]


class MovingJudge:
    """Judges samples that have not settled, by their roots.

    Args:
        system: The system.
        generator: All randomness.
        watch: Steps an attractor is watched for at most.
        patience: Steps a slow relaxation is continued for at most.
    """

    def __init__(self, system: System, *, generator: torch.Generator, watch: int, patience: int) -> None:
        self.system, self.generator, self.patience = system, generator, patience
        self.watcher = Watcher(system, generator=generator, watch=watch)

    def judge(self, settling: Settling, samples: list[int], found: list[Judgement]) -> None:
        """Find the roots near moving samples and treat each sample by what its root says.

        Args:
            settling: The end of the relaxation of the whole batch.
            samples: Samples that move.
            found: One judgement a sample of the batch; changed in place.
        """
        part = part_of(self.system, samples)
        relaxation = settling.relaxation(self.system, samples)
        roots = find_root(part, relaxation=relaxation, starts=STARTS, generator=self.generator)
        good = [row for row, s in enumerate(roots.status) if s.good]
        standings: dict[int, Standing] = {}
        views: Views = {}
        if good:
            view = view_roots(part_of(part, good), roots.z[torch.tensor(good)], generator=self.generator)
            for k, (row, standing) in enumerate(zip(good, view.standing(), strict=True)):
                found[samples[row]].see_root(view, k, float(roots.residual[row]))
                views[row], standings[row] = (view, k), standing
        judged = [found[i] for i in samples]
        z = settling.z[torch.tensor(samples)]
        of = {standing: [row for row, s in standings.items() if s is standing] for standing in Standing}
        watch = of[Standing.UNSTABLE]
        if stable := of[Standing.STABLE]:
            watch += self.slow(part, settling, samples, stable, roots.z, judged, views)
        if step := of[Standing.STEP]:
            watch += self._step(part, z, step, roots.z, judged, views)
        hints: dict[int, Hint] = {}
        for row in range(len(samples)):
            stands = standings.get(row)
            if stands not in (None, Standing.BOUNDARY, Standing.UNKNOWN):
                continue
            if row in views and not views[row][0].neutral(views[row][1]):
                judged[row].against.append(f"whether the root is stable is not resolved ({show(judged[row].mu)})")
            elif hint := self.fold(part, roots.z if row in views else z, row, judged[row]):
                hints[row] = hint
            if not self._comes_to(part, z, row, roots.z, hints.get(row), judged[row]):
                watch.append(row)
        if watch:
            self.watcher.name(part, z, sorted(watch), judged, standings, hints)

    def _comes_to(self, part: System, z: Tensor, row: int, roots: Tensor, hint: Hint | None, judged: Judgement) -> bool:
        """Enter a fold where the state is seen to approach the marginal root; return whether it is."""
        if hint is None or hint.kind != "coalescing":
            return False
        one, here, there = part_of(part, [row]), z[row : row + 1], roots[row : row + 1]
        way = approach(one, here, there, torch.tensor([part.eps]), CONFIRM)
        if not way.decelerates()[0]:
            return False
        hint.enter(judged)
        left = f"{way.end[0] / way.begin[0]:.2g} of the distance to it is left after {way.time[0]:.0f} time units"
        judged.supports.append(f"the state comes to that root, ever more slowly: {left}")
        return True

    def slow(
        self,
        part: System,
        settling: Settling,
        samples: list[int],
        rows: list[int],
        roots: Tensor,
        judged: list[Judgement],
        views: Views,
    ) -> list[int]:
        """Continue relaxations whose root is stable; return those that do not come to it.

        Args:
            part: The system of the moving samples.
            settling: The end of the relaxation of the whole batch.
            samples: Samples of ``part`` in the batch.
            rows: Rows of ``part`` to continue.
            roots: Roots of the rows of ``part``.
            judged: Judgements of the rows of ``part``.
            views: For each row its view and the place in it.
        """
        rates = np.array([self._rate(views[row], part.eps) for row in rows])
        residual = settling.residual[torch.tensor([samples[r] for r in rows])].double().cpu().numpy()
        needed = np.log(np.maximum(residual / settling.tol, 1.0)) / -rates
        steps = int(min(self.patience, 1.3 * float(needed.max()) + SPARE))
        own = part_of(part, rows)
        at = torch.tensor([samples[r] for r in rows])
        late = settle(own, steps, start=settling.z[at], tol=settling.tol)
        there = roots[torch.tensor(rows)]
        begun, distance = (_distance(own, z, there).double() for z in (settling.z[at], late.z))
        # over the whole stretch: within a turn of a non-normal pair the distance rises and falls
        measured = (torch.log(distance / begun) / steps).cpu().numpy()
        still = []
        for k, row in enumerate(rows):
            mode = f"slowest multiplier {math.exp(rates[k]):.6f} a step"
            if late.status[k] is Status.CONVERGED and float(distance[k]) > 1e-2:
                seen = view_roots(part_of(own, [k]), late.z[k : k + 1], generator=self.generator)
                if seen.standing() == [Standing.STABLE]:
                    why = f"it settles after {int(late.steps[k])} more steps, on another stable root"
                    judged[row].decide(Verdict.SLOW, Confidence.OBSERVED, why=why)
                else:
                    judged[row].undetermined("it settles on another root than the one found, which is not stable")
            elif late.status[k] is Status.CONVERGED:
                why = f"{mode}; it settles after {int(late.steps[k])} more steps"
                judged[row].decide(Verdict.SLOW, Confidence.CONFIRMED, why=why)
            elif late.status[k] is Status.MAX_STEPS and abs(measured[k] - rates[k]) <= AGREEMENT * abs(rates[k]):
                why = f"{mode}; over {steps} more steps it decays at that rate ({needed[k]:.0f} were predicted)"
                judged[row].decide(Verdict.SLOW, Confidence.PREDICTED, why=why)
            else:
                judged[row].against.append(f"the root it does not reach is stable ({show(judged[row].mu)})")
                still.append(row)
        return still

    def _rate(self, view: tuple[RootView, int], eps: float) -> float:
        """Return the logarithm of the largest multiplier at a root, per step."""
        seen, k = view
        with np.errstate(divide="ignore"):  # a multiplier of exactly 0 has no logarithm but that of the limit
            return float(np.log(np.abs(1 + eps * seen.largest.mu[k])).max())

    def _step(
        self,
        part: System,
        z: Tensor,
        rows: list[int],
        roots: Tensor,
        judged: list[Judgement],
        views: Views,
    ) -> list[int]:
        """Relax at half of the critical step where the flow is stable: motion made by Euler's step dies there."""
        left = rows
        for flow in (False, True):
            own, at = part_of(part, left), torch.tensor(left)
            steps = torch.tensor([part.eps if flow else judged[row].critical_eps / 2 for row in left])
            way = approach(own, z[at], roots[at], steps, CONFIRM, flow=flow)
            predicted = np.array([self._rate_at(views[row], s) for row, s in zip(left, steps.tolist(), strict=True)])
            if flow:
                predicted = np.array([judged[row].mu.real for row in left])
            arrived, agrees = way.arrived(), way.agrees(predicted)
            for k, row in enumerate(left):
                how = "followed exactly (Runge-Kutta)" if flow else f"at half of it ({steps[k]:.4g})"
                moved = f"{way.end[k] / way.begin[k]:.0e} of its distance to the root is left after {way.time[k]:.0f}"
                if arrived[k]:
                    self.blame_step(judged[row], Confidence.CONFIRMED)
                    judged[row].supports.append(f"{how} the motion dies: {moved} time units")
                elif agrees[k]:
                    self.blame_step(judged[row], Confidence.CONFIRMED)
                    rates = f"{way.rate[k]:.4f} per unit time, {predicted[k]:.4f} predicted"
                    judged[row].supports.append(f"{how} the motion decays at {rates}")
            left = [row for k, row in enumerate(left) if not (arrived[k] or agrees[k])]
            if not left:
                return []
        for row in left:
            judged[row].against.append("below the critical step the motion does not die as the linearisation predicts")
        return left

    def _rate_at(self, view: tuple[RootView, int], eps: float) -> float:
        seen, k = view
        modes = np.concatenate([seen.largest.mu[k], seen.rightmost.mu[k], seen.critical.mu[k]])
        with np.errstate(divide="ignore"):
            return float(np.log(np.abs(1 + eps * modes)).max() / eps)

    def blame_step(self, judged: Judgement, confidence: Confidence) -> None:
        """Give the verdict that the step is too large for a stable flow."""
        pair = judged.critical_mu
        kind = "flip" if pair.imag == 0 else "neimark-sacker"
        why = (
            f"the flow is stable ({show(judged.mu)}), but the step {self.system.eps:g} is above the critical one, "
            f"{judged.critical_eps:.4g}, set by {show(pair)}"
        )
        judged.decide(Verdict.DISCRETE_INSTABILITY, confidence, kind, why)

    def fold(self, part: System, z: Tensor, row: int, judged: Judgement) -> Hint | None:
        """Return what the scalar equation at the state of one row says of a fold, None where it says nothing."""
        if not bool(torch.isfinite(z[row]).all()):
            return None
        fold = read_fold(part_of(part, [row]), z[row : row + 1])
        if fold is None:
            return None
        if math.isfinite(judged.mu.real):  # there is a root, with a real eigenvalue not told from 0
            size = f"{judged.mu.real:+.1e} +- {judged.mu_error:.0e}"
            if abs(fold.quadratic) * fold.norm <= CURVED * (fold.gap if math.isfinite(fold.gap) else 1.0):
                judged.against.append(
                    f"the root has a real eigenvalue of 0 within its error ({size}) but nothing bends there: a neutral "
                    "direction, a pitchfork or another degeneracy"
                )
                return None
            return Hint("coalescing", f"the root has a real eigenvalue of 0 within its error ({size})")
        if not fold.ghost:
            return None
        why = (
            "there is no root near: along one direction the state obeys s' = a + b s + c s^2 with "
            f"4 a c - b^2 = {-fold.discriminant:.2e} > 0, a passage of {fold.passage:.0f} time units"
        )
        return Hint("ghost", why, fold.passage, complex(fold.linear, 0.0))


def _distance(system: System, z: Tensor, root: Tensor) -> Tensor:
    """Return the distance to a root relative to it ``[sample]``; the largest of the tokens', each by its own size."""
    if system.structure.token_axis != 1 or z.ndim < 3:
        return relative_size(z - root, root, least_size(system))
    norm = torch.linalg.vector_norm
    least = SMALLEST * norm(system.initial_state().detach().flatten(2), dim=2)
    off = norm((z - root).flatten(2), dim=2)
    return torch.where(off == 0, 0.0, off / norm(root.flatten(2), dim=2).maximum(least)).amax(1)
