"""The cause of what a relaxation does, sample by sample: roots and their spectra, checked by simulations.

What the linearisation at a root predicts is never the verdict alone: a root called stable has to be reached, a step
called too large has to be what makes the motion (it dies at a smaller one), an unstable root has to have an attractor.
"""

import math

import numpy as np
import torch
from torch import Tensor

from dyneq.dynamics.approach import AGREEMENT, approach
from dyneq.dynamics.attractor import Attractor, AttractorKind, classify_attractors
from dyneq.dynamics.fold import read_fold
from dyneq.dynamics.judgement import Judgement, show
from dyneq.dynamics.residuals import least_size, relative_size, sample_norm
from dyneq.dynamics.roots import STARTS, find_root
from dyneq.dynamics.rootview import RootView, view_roots
from dyneq.dynamics.settle import Settling, settle
from dyneq.dynamics.status import Status
from dyneq.dynamics.verdict import Confidence, Verdict
from dyneq.systems.protocol import System, Time

#: Relative size of the displacement that tells whether a state returns.
KICK = 1e-3
#: Steps it is given to return to half of it, and how many times as many when it has not.
KICK_STEPS = 200
#: Steps a confirmation by simulation may take.
CONFIRM = 3000
#: Steps a slow relaxation is continued for at most.
PATIENCE = 20000
#: Steps an attractor is watched for.
WATCH = 6000


class Judge:
    """Judges the samples of one system.

    Args:
        system: The system; samples that do not settle are judged as wholes, so a causal block is judged token by token
            through :class:`dyneq.dynamics.subsystem.TokenSystem` (see :mod:`dyneq.dynamics.census`).
        generator: All randomness.
        watch: Steps an attractor is watched for.
        patience: Steps a slow relaxation is continued for at most.
    """

    def __init__(
        self, system: System, *, generator: torch.Generator, watch: int = WATCH, patience: int = PATIENCE
    ) -> None:
        self.system, self.generator, self.watch, self.patience = system, generator, watch, patience
        self.flow = system.time is Time.FLOW

    @torch.no_grad()
    def run(self, settling: Settling) -> list[Judgement]:
        """Return a verdict on every sample.

        Args:
            settling: The end of the relaxation.
        """
        found = [Judgement() for _ in settling.status]
        for i in settling.where(Status.ABSORBED):
            found[i].decide(Verdict.ABSORBED, Confidence.OBSERVED, why=Status.ABSORBED.sentence)
        if settled := settling.where(Status.CONVERGED):
            self._settled(settling, settled, found)
        if lost := settling.where(Status.DIVERGED):
            self._lost(settling, lost, found)
        if moving := settling.where(Status.MAX_STEPS):
            self._moving(settling, moving, found)
        return found

    def _part(self, samples: list[int], system: System | None = None) -> System:
        system = system or self.system
        if len(samples) == system.initial_state().shape[0]:
            return system
        return system.select(torch.tensor(samples, device=system.initial_state().device))

    # --- samples that converged ---------------------------------------------------------------------------------

    def _settled(self, settling: Settling, samples: list[int], found: list[Judgement]) -> None:
        """Displace converged states: those that do not return are on a root that is not stable."""
        if left := self.returning(settling, samples, found):
            self._not_returning(settling, left, found)

    @torch.no_grad()
    def returning(self, settling: Settling, samples: list[int], found: list[Judgement]) -> list[int]:
        """Displace converged states, give those that return their verdict, and return the samples that do not.

        Args:
            settling: The end of the relaxation.
            samples: Converged ones.
            found: One a sample of the batch; verdicts are entered there.
        """
        part, z = self._part(samples), settling.z[torch.tensor(samples)]
        ratio = self._return(part, z, self._displaced(part, z), KICK_STEPS).tolist()
        for i, r in zip(samples, ratio, strict=True):
            found[i].root_residual = float(settling.residual[i])
            if r <= 0.5:
                why = f"a displacement of {KICK:g} shrinks to {r:.1e} of itself in {KICK_STEPS} steps"
                found[i].decide(Verdict.FIXED_POINT, Confidence.CONFIRMED, why=why)
        return [i for i, r in zip(samples, ratio, strict=True) if not r <= 0.5]

    def _displaced(self, part: System, z: Tensor) -> Tensor:
        noise = torch.randn(z.shape, generator=self.generator, dtype=torch.float64).to(z)
        size = KICK * sample_norm(z).maximum(least_size(part)) / sample_norm(noise)
        # a state of exactly 0 from a start of 0 has no size of its own
        size = torch.where(size > 0, size, KICK / sample_norm(noise))
        return z + noise * size.view(-1, *[1] * (z.ndim - 1))

    def _return(self, part: System, z: Tensor, kicked: Tensor, steps: int) -> Tensor:
        """Return the distance after some steps in units of the displacement ``[sample]``."""
        y = kicked
        for _ in range(steps):
            y = y + part.eps * part.force(y)
        ratio = sample_norm(y - z) / sample_norm(kicked - z)
        return torch.where(torch.isfinite(ratio), ratio, torch.inf)

    def _not_returning(self, settling: Settling, samples: list[int], found: list[Judgement]) -> None:
        part, z = self._part(samples), settling.z[torch.tensor(samples)]
        view = view_roots(part, z, generator=self.generator)
        flow, stepped = view.flow_side().max(1), view.map_side().max(1)
        moving = []
        for row, i in enumerate(samples):
            found[i].see_root(view, row, float(settling.residual[i]))
            if flow[row] < 0 and stepped[row] < 0:
                why = f"stable by its spectrum ({show(found[i].mu)}), though a displacement returns only slowly"
                found[i].decide(Verdict.FIXED_POINT, Confidence.PREDICTED, why=why)
            elif flow[row] > 0 and found[i].mu.imag == 0:
                if self.flow or found[i].mu.real > 0:
                    why = (
                        f"it rests on a root with a real eigenvalue {show(found[i].mu)}, which a displaced state leaves"
                    )
                    found[i].decide(Verdict.SADDLE, Confidence.CONFIRMED, why=why)
                else:
                    moving.append(row)
            elif flow[row] == 0 and found[i].mu.imag == 0:
                if not self._fold(part, z, row, found[i]):
                    found[i].undetermined(f"its eigenvalue {found[i].mu.real:+.1e} is not told from 0")
            else:
                moving.append(row)
        if moving:
            which = [samples[row] for row in moving]
            again = self._part(which)
            start = self._displaced(again, settling.z[torch.tensor(which)])
            late = settle(again, settling.depth, start=start, tol=settling.tol)
            for row, judged in enumerate(self._again(again, late)):
                judged.supports.insert(0, "the state rests on a root that is not stable; it was displaced")
                if judged.verdict is Verdict.FIXED_POINT:
                    judged.against.append("from the displaced start it settles elsewhere")
                found[which[row]] = judged

    def _again(self, part: System, late: Settling) -> list[Judgement]:
        """Judge a displaced relaxation; what still rests on an unstable root stays open."""
        judge = Judge(part, generator=self.generator, watch=self.watch, patience=self.patience)
        found = [Judgement() for _ in late.status]
        for i in late.where(Status.CONVERGED):
            found[i].decide(Verdict.FIXED_POINT, Confidence.OBSERVED, why="the displaced state settles")
        if lost := late.where(Status.DIVERGED):
            judge._lost(late, lost, found)
        if moving := late.where(Status.MAX_STEPS):
            judge._moving(late, moving, found)
        return found

    # --- samples that diverged ----------------------------------------------------------------------------------

    def _lost(self, settling: Settling, samples: list[int], found: list[Judgement]) -> None:
        """Ask whether a smaller step saves a diverged relaxation: then the step is to blame."""
        if not self.flow:
            for i in samples:
                found[i].decide(Verdict.DIVERGED, Confidence.OBSERVED, why="the state grows without bound")
            return
        left = samples
        for share in (4, 32):
            part = self._part(left)
            smaller = part.with_eps(part.eps / share)
            steps = min(settling.depth * share, 4 * self.watch)
            late = settle(smaller, steps, tol=settling.tol)
            self._saved(smaller, late, left, found, share)
            left = [left[row] for row in late.where(Status.DIVERGED)]
            if not left:
                return
        for i in left:
            found[i].decide(
                Verdict.DIVERGED, Confidence.CONFIRMED, why="it grows without bound also at a 32 times smaller step"
            )

    def _saved(self, part: System, late: Settling, samples: list[int], found: list[Judgement], share: int) -> None:
        """Judge samples that diverge at the step asked for but not at a smaller one."""
        rows = [row for row, s in enumerate(late.status) if s in (Status.CONVERGED, Status.MAX_STEPS)]
        if not rows:
            return
        which = [samples[row] for row in rows]
        own = self._part(which)
        settled = [row for row in rows if late.status[row] is Status.CONVERGED]
        if settled:
            at = torch.tensor(settled)
            view = view_roots(self._part([samples[r] for r in settled]), late.z[at], generator=self.generator)
            flow, stepped = view.flow_side().max(1), view.map_side().max(1)
            for k, row in enumerate(settled):
                judged = found[samples[row]]
                judged.see_root(view, k, float(late.residual[row]))
                judged.supports.append(f"it diverges at this step, and settles at one {share} times smaller")
                if flow[k] < 0 and stepped[k] > 0:
                    self._blame_step(judged, Confidence.CONFIRMED)
                elif flow[k] < 0:
                    judged.decide(Verdict.DISCRETE_INSTABILITY, Confidence.OBSERVED, "overflow")
                    judged.against.append("the step is below the critical one at that root: only its start is too far")
                else:
                    judged.undetermined("the root reached at the smaller step is not stable by its spectrum")
        moving = [row for row in rows if late.status[row] is Status.MAX_STEPS]
        if moving:
            judge = Judge(part, generator=self.generator, watch=self.watch, patience=self.patience)
            inner = [Judgement() for _ in late.status]
            judge._moving(late, moving, inner)
            for row in moving:
                if inner[row].verdict is Verdict.SLOW and inner[row].critical_eps < own.eps:
                    self._blame_step(inner[row], inner[row].confidence)
                    inner[row].supports.append(f"it diverges at this step, and only decays at one {share} times smaller")
                else:
                    inner[row].against.append(
                        f"at this step the state diverges; judged at a {share} times smaller one ({own.eps / share:g})"
                    )
                found[samples[row]] = inner[row]

    # --- samples that still move --------------------------------------------------------------------------------

    def _moving(self, settling: Settling, samples: list[int], found: list[Judgement]) -> None:
        """Find the roots near moving samples and treat each sample by what its root says."""
        part = self._part(samples)
        relaxation = settling.relaxation(self.system, samples)
        roots = find_root(part, relaxation=relaxation, starts=STARTS, generator=self.generator)
        good = [row for row, s in enumerate(roots.status) if s.good]
        stable, step, unstable, open_ = [], [], [], [row for row in range(len(samples)) if row not in good]
        views: dict[int, tuple[RootView, int]] = {}
        if good:
            at = torch.tensor(good)
            view = view_roots(self._part(good, part), roots.z[at], generator=self.generator)
            flow, stepped = view.flow_side().max(1), view.map_side().max(1)
            for k, row in enumerate(good):
                found[samples[row]].see_root(view, k, float(roots.residual[row]))
                views[row] = (view, k)
                if flow[k] > 0:
                    unstable.append(row)
                elif flow[k] < 0 and stepped[k] < 0:
                    stable.append(row)
                elif flow[k] < 0 and stepped[k] > 0:
                    step.append(row)
                else:
                    open_.append(row)
        judged = [found[i] for i in samples]
        z = settling.z[torch.tensor(samples)]
        watch: list[int] = list(unstable)
        if stable:
            watch += self.slow(part, settling, samples, stable, roots.z, judged, views)
        if step:
            watch += self._step(part, z, step, roots.z, judged, views)
        for row in open_:
            if row in views and judged[row].mu.imag != 0:
                judged[row].against.append(f"the pair {show(judged[row].mu)} at the root lies on the boundary")
                watch.append(row)
            elif not self._fold(part, roots.z if row in views else z, row, judged[row]):
                watch.append(row)
        if watch:
            self._attractors(part, z, sorted(watch), judged, set(unstable))

    def slow(
        self,
        part: System,
        settling: Settling,
        samples: list[int],
        rows: list[int],
        roots: Tensor,
        judged: list[Judgement],
        views: dict[int, tuple[RootView, int]],
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
        steps = int(min(self.patience, 1.3 * float(needed.max()) + 2 * KICK_STEPS))
        own = self._part(rows, part)
        at = torch.tensor([samples[r] for r in rows])
        late = settle(own, steps, start=settling.z[at], tol=settling.tol)
        there, least = roots[torch.tensor(rows)], least_size(own)
        begun, distance = (relative_size(z - there, there, least).double() for z in (settling.z[at], late.z))
        # over the whole stretch: within a turn of a non-normal pair the distance rises and falls
        measured = (torch.log(distance / begun) / steps).cpu().numpy()
        still = []
        for k, row in enumerate(rows):
            mode = f"slowest multiplier {math.exp(rates[k]):.6f} a step"
            if late.status[k] is Status.CONVERGED and float(distance[k]) > 1e-2:
                why = f"it settles after {int(late.steps[k])} more steps, on another root"
                judged[row].decide(Verdict.SLOW, Confidence.OBSERVED, why=why)
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
        views: dict[int, tuple[RootView, int]],
    ) -> list[int]:
        """Relax at half of the critical step where the flow is stable: motion made by Euler's step dies there."""
        left = rows
        for flow in (False, True):
            own, at = self._part(left, part), torch.tensor(left)
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
                    self._blame_step(judged[row], Confidence.CONFIRMED)
                    judged[row].supports.append(f"{how} the motion dies: {moved} time units")
                elif agrees[k]:
                    self._blame_step(judged[row], Confidence.CONFIRMED)
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

    def _blame_step(self, judged: Judgement, confidence: Confidence) -> None:
        pair = judged.critical_mu
        kind = "flip" if pair.imag == 0 else "neimark-sacker"
        why = (
            f"the flow is stable ({show(judged.mu)}), but the step {self.system.eps:g} is above the critical one, "
            f"{judged.critical_eps:.4g}, set by {show(pair)}"
        )
        judged.decide(Verdict.DISCRETE_INSTABILITY, confidence, kind, why)

    def _fold(self, part: System, z: Tensor, row: int, judged: Judgement) -> bool:
        """Read the scalar equation at a state; return whether it decides."""
        if not bool(torch.isfinite(z[row]).all()):
            return False
        fold = read_fold(self._part([row], part), z[row : row + 1])
        if fold is None:
            return False
        if math.isfinite(judged.mu.real):  # there is a root, with a real eigenvalue not told from 0
            bent = abs(fold.quadratic) * fold.norm
            kind = (
                "coalescing"
                if bent > 1e-6 * max(fold.gap if math.isfinite(fold.gap) else 0.0, 1e-300)
                else "degenerate"
            )
            why = (
                f"the root has a real eigenvalue of 0 within its error ({judged.mu.real:+.1e} +- {judged.mu_error:.0e})"
            )
            judged.decide(Verdict.FOLD, Confidence.PREDICTED, kind, why)
            return True
        if fold.ghost:
            judged.passage = fold.passage
            judged.mu = complex(fold.linear, 0.0)
            why = (
                "there is no root near: along one direction the state obeys s' = a + b s + c s^2 with "
                f"4 a c - b^2 = {-fold.discriminant:.2e} > 0, a passage of {fold.passage:.0f} time units"
            )
            judged.decide(Verdict.FOLD, Confidence.PREDICTED, "ghost", why)
            return True
        return False

    # --- what moves on ------------------------------------------------------------------------------------------

    def _attractors(
        self,
        part: System,
        z: Tensor,
        rows: list[int],
        judged: list[Judgement],
        unstable: set[int],
    ) -> None:
        """Name what samples move on, and hold it against what their roots say."""
        own, at = self._part(rows, part), torch.tensor(rows)
        found = classify_attractors(own, z[at], steps=self.watch, generator=self.generator)
        for k, row in enumerate(rows):
            self._enter(judged[row], found[k])
        doubted = [
            k
            for k, row in enumerate(rows)
            if self.flow
            and (row not in unstable or found[k].kind is AttractorKind.CHAOS)
            and found[k].kind in (AttractorKind.CYCLE, AttractorKind.TORUS, AttractorKind.CHAOS)
        ]
        confirmed = self._at_smaller_step(own, z[at], doubted)
        for k, row in enumerate(rows):
            self._name(judged[row], found[k], row in unstable, confirmed.get(k))

    def _enter(self, judged: Judgement, found: Attractor) -> None:
        eps = self.system.eps
        judged.period, judged.amplitude = found.period_steps * eps, found.amplitude
        if len(found.exponents):
            judged.exponent = float(found.exponents[0]) / eps
            judged.exponent_error = float(found.exponent_errors[0]) / eps
        judged.supports += found.evidence
        judged.against += found.against

    def _at_smaller_step(self, own: System, z: Tensor, rows: list[int]) -> dict[int, tuple[AttractorKind | None]]:
        """Return what the doubted rows move on at a quarter of the step; (None,) where they settle."""
        if not rows:
            return {}
        part, at = self._part(rows, own), torch.tensor(rows)
        smaller = part.with_eps(part.eps / 4)
        late = settle(smaller, 2 * self.watch, start=z[at])
        still = late.where(Status.MAX_STEPS)
        seen: dict[int, tuple[AttractorKind | None]] = {
            row: (None,) if late.status[k] is Status.CONVERGED else (AttractorKind.UNDETERMINED,)
            for k, row in enumerate(rows)
        }
        if still:
            again = classify_attractors(
                self._part(still, smaller), late.z[torch.tensor(still)], steps=2 * self.watch, generator=self.generator
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
        }
        if found.kind is AttractorKind.DIVERGED:
            judged.decide(Verdict.DIVERGED, Confidence.OBSERVED)
        elif found.kind in (AttractorKind.FIXED_POINT, AttractorKind.SLOW):
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
            judged.decide(named[found.kind], confidence, self._crossing(judged.mu) if unstable else "")

    def _crossing(self, mu: complex) -> str:
        """Return how an unstable pair crosses the boundary of stability."""
        if mu.imag != 0:
            return "hopf" if self.flow else "neimark-sacker"
        return "flip" if not self.flow and mu.real < 0 else ""
