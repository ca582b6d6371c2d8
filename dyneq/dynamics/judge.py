"""The cause of what a relaxation does, sample by sample: roots and their spectra, checked by simulations.

What the linearisation at a root predicts is never the verdict alone: a root called stable has to be reached, a step
called too large has to be what makes the motion (it dies at a smaller one), an unstable root has to have an attractor.
"""

import torch
from torch import Tensor

from dyneq.dynamics.escape import SHARE, enter_escape, escapes
from dyneq.dynamics.judgement import Judgement, part_of, show
from dyneq.dynamics.moving import PATIENCE, MovingJudge
from dyneq.dynamics.residuals import least_size, relative_size, sample_norm
from dyneq.dynamics.roots import find_root
from dyneq.dynamics.rootview import Standing, view_roots
from dyneq.dynamics.settle import Settling, settle
from dyneq.dynamics.status import Status
from dyneq.dynamics.verdict import Confidence, Verdict
from dyneq.dynamics.watching import WATCH
from dyneq.systems.protocol import System, Time

#: Relative size of the displacement that tells whether a state returns.
KICK = 1e-3
#: Steps it is given to return to half of it.
KICK_STEPS = 200
#: Shares of the step at which a diverged sample is relaxed again.
SHARES = (4, SHARE)
#: Most steps of a relaxation at a smaller step.
SMALLER = 32000


class Judge:
    """Judges the samples of one system.

    Args:
        system: The system; samples that do not settle are judged as wholes, so a causal block is judged token by token
            through :class:`dyneq.dynamics.subsystem.TokenSystem` (see :mod:`dyneq.dynamics.census`).
        generator: All randomness.
        watch: Steps an attractor is watched for at most.
        patience: Steps a slow relaxation is continued for at most.
    """

    def __init__(
        self, system: System, *, generator: torch.Generator, watch: int = WATCH, patience: int = PATIENCE
    ) -> None:
        self.system, self.generator, self.watch, self.patience = system, generator, watch, patience
        self.moving = MovingJudge(system, generator=generator, watch=watch, patience=patience)
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
            for i, standing in self.returning(settling, settled, found).items():
                self._not_stable(settling, i, standing, found)
        if lost := settling.where(Status.DIVERGED):
            self._lost(settling, lost, found)
        if moving := settling.where(Status.MAX_STEPS):
            self.moving.judge(settling, moving, found)
        return found

    # --- samples that converged ---------------------------------------------------------------------------------

    @torch.no_grad()
    def returning(self, settling: Settling, samples: list[int], found: list[Judgement]) -> dict[int, Standing]:
        """Give converged samples on stable roots their verdict; return the others with how their roots stand.

        The spectrum decides, for one bad direction of many hardly shows in how a displaced state returns; that it does
        return is the simulation beside it.

        Args:
            settling: The end of the relaxation.
            samples: Converged ones.
            found: One judgement a sample of the batch; verdicts are entered there.
        """
        part, z = part_of(self.system, samples), settling.z[torch.tensor(samples)]
        view = view_roots(part, z, generator=self.generator)
        half, end = self._return(part, z, self._displaced(part, z))
        left: dict[int, Standing] = {}
        for row, (i, standing) in enumerate(zip(samples, view.standing(), strict=True)):
            found[i].see_root(view, row, float(settling.residual[i]))
            back = f"a displacement of {KICK:g} shrinks to {end[row]:.1e} of itself in {KICK_STEPS} steps"
            if standing is Standing.STABLE:
                sure = end[row] <= 0.5
                why = f"stable by its spectrum ({show(found[i].mu)}); {back}"
                found[i].decide(Verdict.FIXED_POINT, Confidence.CONFIRMED if sure else Confidence.PREDICTED, why=why)
            elif standing is Standing.UNKNOWN and end[row] <= min(0.1, 0.5 * half[row]):
                found[i].decide(Verdict.FIXED_POINT, Confidence.OBSERVED, why=back)
                found[i].against.append("the error of its eigenvalues is not known: its spectrum does not confirm it")
            else:
                left[i] = Standing.BOUNDARY if standing is Standing.BOUNDARY and view.neutral(row) else standing
                if standing is Standing.BOUNDARY and not view.neutral(row):
                    left[i] = Standing.UNKNOWN
        return left

    def _displaced(self, part: System, z: Tensor) -> Tensor:
        noise = torch.randn(z.shape, generator=self.generator, dtype=torch.float64).to(z)
        size = KICK * sample_norm(z).maximum(least_size(part)) / sample_norm(noise)
        # a state of exactly 0 from a start of 0 has no size of its own
        size = torch.where(size > 0, size, KICK / sample_norm(noise))
        return z + noise * size.view(-1, *[1] * (z.ndim - 1))

    def _return(self, part: System, z: Tensor, kicked: Tensor) -> tuple[list[float], list[float]]:
        """Return the distance after half of the steps and after all, in units of the displacement."""
        y, ratios = kicked, []
        for n in range(KICK_STEPS):
            y = y + part.eps * part.force(y)
            if n + 1 in (KICK_STEPS // 2, KICK_STEPS):
                ratio = sample_norm(y - z) / sample_norm(kicked - z)
                ratios.append(torch.where(torch.isfinite(ratio), ratio, torch.inf).tolist())
        return ratios[0], ratios[1]

    def _not_stable(self, settling: Settling, i: int, standing: Standing, found: list[Judgement]) -> None:
        """Judge a sample that rests on a root which is not stable."""
        judged, part = found[i], part_of(self.system, [i])
        z = settling.z[i : i + 1]
        if standing is Standing.UNKNOWN:
            judged.undetermined(f"it rests, but whether its root is stable is not resolved ({show(judged.mu)})")
        elif standing is Standing.BOUNDARY:
            if hint := self.moving.fold(part, z, 0, judged):
                hint.enter(judged)
            else:
                judged.undetermined(f"it rests, with an eigenvalue of 0 within its error ({judged.mu.real:+.1e})")
        elif standing is Standing.UNSTABLE and judged.mu.imag == 0 and (self.flow or judged.mu.real > 0):
            why = f"it rests on a root with a real eigenvalue {show(judged.mu)}"
            judged.decide(Verdict.SADDLE, Confidence.CONFIRMED, why=why)
        else:
            found[i] = self._from_displaced(part, settling, z)

    def _from_displaced(self, part: System, settling: Settling, z: Tensor) -> Judgement:
        """Judge what becomes of a sample once it is displaced from an unstable root."""
        late = settle(part, settling.depth, start=self._displaced(part, z), tol=settling.tol)
        found = [Judgement()]
        judge = Judge(part, generator=self.generator, watch=self.watch, patience=self.patience)
        if late.status[0] is Status.CONVERGED:
            away = float(relative_size(late.z - z, z, least_size(part))[0])
            view = view_roots(part, late.z, generator=self.generator)
            found[0].see_root(view, 0, float(late.residual[0]))
            if away > 10 * KICK and view.standing() == [Standing.STABLE]:
                found[0].decide(Verdict.FIXED_POINT, Confidence.OBSERVED, why="displaced, it settles on a stable root")
            else:
                found[0].undetermined(
                    "the root is unstable by its spectrum, but the displaced state has not left it yet"
                )
        elif late.status[0] is Status.DIVERGED:
            judge._lost(late, [0], found)
        elif late.status[0] is Status.MAX_STEPS:
            judge.moving.judge(late, [0], found)
        found[0].supports.insert(0, "it rests on a root that is not stable, and was displaced")
        return found[0]

    # --- samples that diverged ----------------------------------------------------------------------------------

    def _lost(self, settling: Settling, samples: list[int], found: list[Judgement]) -> None:
        """Ask whether a smaller step saves a diverged relaxation: then the step is to blame."""
        left = samples
        for share in SHARES if self.flow else ():
            part = part_of(self.system, left)
            smaller = part.with_eps(part.eps / share)
            late = settle(smaller, min(settling.depth * share, SMALLER), tol=settling.tol)
            self._saved(smaller, late, left, found, share)
            left = [left[row] for row in late.where(Status.DIVERGED)]
            if not left:
                return
        part = part_of(self.system, left)
        for i, seen in zip(left, escapes(part, part.initial_state()), strict=True):
            enter_escape(found[i], seen, Confidence.CONFIRMED, self.flow)
        if self.flow:
            self._stiff(part, left, found)

    def _stiff(self, part: System, samples: list[int], found: list[Judgement]) -> None:
        """Leave open what diverges at every step tried beside a root whose flow is stable but stiffer than that."""
        depth = settle(part, 1)
        roots = find_root(part, relaxation=depth.relaxation(part, list(range(len(samples)))), starts=("initial",))
        good = [row for row, s in enumerate(roots.status) if s.good]
        if not good:
            return
        view = view_roots(part_of(part, good), roots.z[torch.tensor(good)], generator=self.generator)
        flow = view.flow_side().max(1)
        for k, row in enumerate(good):
            judged = found[samples[row]]
            judged.see_root(view, k, float(roots.residual[row]))
            if flow[k] < 0 and judged.critical_eps < part.eps / SHARE:
                judged.undetermined(
                    f"there is a root whose flow is stable; its critical step {judged.critical_eps:.2g} is below every "
                    "step tried: relax with a smaller one"
                )

    def _saved(self, part: System, late: Settling, samples: list[int], found: list[Judgement], share: int) -> None:
        """Judge samples that diverge at the step asked for but not at a smaller one."""
        own = self.system.eps
        settled = late.where(Status.CONVERGED)
        if settled:
            which = [samples[r] for r in settled]
            view = view_roots(part_of(self.system, which), late.z[torch.tensor(settled)], generator=self.generator)
            for k, (i, standing) in enumerate(zip(which, view.standing(), strict=True)):
                found[i].see_root(view, k, float(late.residual[settled[k]]))
                found[i].supports.append(f"it diverges at this step, and settles at one {share} times smaller")
                if standing is Standing.STEP:
                    self.moving.blame_step(found[i], Confidence.CONFIRMED)
                elif standing is Standing.STABLE:
                    self._overflow(found[i])
                else:
                    found[i].undetermined("the root reached at the smaller step is not stable by its spectrum")
        moving = late.where(Status.MAX_STEPS)
        if moving:
            judge = Judge(part, generator=self.generator, watch=self.watch, patience=self.patience)
            inner = [Judgement() for _ in late.status]
            judge.moving.judge(late, moving, inner)
            for row in moving:
                slow = inner[row].verdict is Verdict.SLOW
                if slow and inner[row].critical_eps < own:
                    self.moving.blame_step(inner[row], inner[row].confidence)
                    inner[row].supports.append(
                        f"it diverges at this step, and only decays at one {share} times smaller"
                    )
                elif slow:
                    self._overflow(inner[row])
                else:
                    inner[row].against.append(
                        f"at this step the state diverges; judged at a {share} times smaller one ({own / share:g})"
                    )
                found[samples[row]] = inner[row]

    def _overflow(self, judged: Judgement) -> None:
        judged.decide(Verdict.DISCRETE_INSTABILITY, Confidence.OBSERVED, "overflow")
        judged.against.append("the step is below the critical one at that root: only its start is too far for it")
