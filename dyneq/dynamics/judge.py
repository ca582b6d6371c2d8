"""The cause of what a relaxation does, sample by sample: roots and their spectra, checked by simulations.

What the linearisation at a root predicts is never the verdict alone: a root called stable has to be reached, a step
called too large has to be what makes the motion (it dies at a smaller one), an unstable root has to have an attractor.
"""

import torch
from torch import Tensor

from dyneq.dynamics.judgement import Judgement, part_of, show
from dyneq.dynamics.moving import PATIENCE, MovingJudge
from dyneq.dynamics.residuals import least_size, sample_norm
from dyneq.dynamics.rootview import view_roots
from dyneq.dynamics.settle import Settling, settle
from dyneq.dynamics.status import Status
from dyneq.dynamics.verdict import Confidence, Verdict
from dyneq.dynamics.watching import WATCH
from dyneq.systems.protocol import System, Time

#: Relative size of the displacement that tells whether a state returns.
KICK = 1e-3
#: Steps it is given to return to half of it.
KICK_STEPS = 200
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
            self._settled(settling, settled, found)
        if lost := settling.where(Status.DIVERGED):
            self._lost(settling, lost, found)
        if moving := settling.where(Status.MAX_STEPS):
            self.moving.judge(settling, moving, found)
        return found

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
        part, z = part_of(self.system, samples), settling.z[torch.tensor(samples)]
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
        part, z = part_of(self.system, samples), settling.z[torch.tensor(samples)]
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
                if hint := self.moving.fold(part, z, row, found[i]):
                    hint.enter(found[i])
                else:
                    found[i].undetermined(f"its eigenvalue {found[i].mu.real:+.1e} is not told from 0")
            else:
                moving.append(row)
        if moving:
            which = [samples[row] for row in moving]
            again = part_of(self.system, which)
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
            judge.moving.judge(late, moving, found)
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
            part = part_of(self.system, left)
            smaller = part.with_eps(part.eps / share)
            steps = min(settling.depth * share, SMALLER)
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
        own = part_of(self.system, which)
        settled = [row for row in rows if late.status[row] is Status.CONVERGED]
        if settled:
            at = torch.tensor(settled)
            view = view_roots(part_of(self.system, [samples[r] for r in settled]), late.z[at], generator=self.generator)
            flow, stepped = view.flow_side().max(1), view.map_side().max(1)
            for k, row in enumerate(settled):
                judged = found[samples[row]]
                judged.see_root(view, k, float(late.residual[row]))
                judged.supports.append(f"it diverges at this step, and settles at one {share} times smaller")
                if flow[k] < 0 and stepped[k] > 0:
                    self.moving.blame_step(judged, Confidence.CONFIRMED)
                elif flow[k] < 0:
                    judged.decide(Verdict.DISCRETE_INSTABILITY, Confidence.OBSERVED, "overflow")
                    judged.against.append("the step is below the critical one at that root: only its start is too far")
                else:
                    judged.undetermined("the root reached at the smaller step is not stable by its spectrum")
        moving = [row for row in rows if late.status[row] is Status.MAX_STEPS]
        if moving:
            judge = Judge(part, generator=self.generator, watch=self.watch, patience=self.patience)
            inner = [Judgement() for _ in late.status]
            judge.moving.judge(late, moving, inner)
            for row in moving:
                if inner[row].verdict is Verdict.SLOW and inner[row].critical_eps < own.eps:
                    self.moving.blame_step(inner[row], inner[row].confidence)
                    inner[row].supports.append(
                        f"it diverges at this step, and only decays at one {share} times smaller"
                    )
                else:
                    inner[row].against.append(
                        f"at this step the state diverges; judged at a {share} times smaller one ({own.eps / share:g})"
                    )
                found[samples[row]] = inner[row]
