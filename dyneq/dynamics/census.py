"""A census of a relaxation: for every sample the token where it does not settle, and why.

A causal block is judged token by token. The first token that does not settle obeys an autonomous equation of the
dimension of the channels: those before it have settled, later ones do not act on it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.counting import Cost, counted
from dyneq.dynamics.judge import Judge
from dyneq.dynamics.judgement import Judgement, show
from dyneq.dynamics.moving import PATIENCE
from dyneq.dynamics.roots import STARTS, Roots, find_root
from dyneq.dynamics.rootview import RootView, view_roots
from dyneq.dynamics.settle import Settling, settle
from dyneq.dynamics.status import Status
from dyneq.dynamics.structure import check_causality
from dyneq.dynamics.subsystem import TokenSystem
from dyneq.dynamics.verdict import Confidence, Verdict
from dyneq.dynamics.watching import WATCH
from dyneq.systems.protocol import System

#: Steps one token is relaxed alone, the earlier ones at their roots, before it is judged.
ALONE = 600
#: How many tokens of a sample are tried as the one where it starts.
ROUNDS = 4
#: A token whose residual keeps this share over half of the window is called standing, unless slow modes explain it.
STANDING = 0.9

#: What a token does: entries of ``token_state``.
SETTLED, SLOW_TOKEN, ORIGIN, DRIVEN = 0, 1, 2, 3


@dataclass(frozen=True)
class Census:
    """The verdicts of a batch.

    Attributes:
        judgements: One a sample.
        token: Token where each sample starts not to settle; -1 where it settles or there are no tokens.
        settling: The relaxation they were judged from.
        token_state: 0 settled, 1 slow, 2 where it starts, 3 moves because an earlier one does, ``[sample, token]``;
            None without tokens.
        token_mu: Rightmost eigenvalue of each token's block at the root (for a map the largest multiplier minus 1),
            NaN where no root was sought, ``[sample, token]``; None without tokens.
        sample_critical_eps: Smallest critical step of all tokens of a sample whose flow is stable, NaN elsewhere.
        cost: What it took, in force evaluations of the whole batch.
    """

    judgements: list[Judgement]
    token: list[int]
    settling: Settling
    token_state: NDArray[np.int8] | None
    token_mu: NDArray[np.complex128] | None
    sample_critical_eps: NDArray[np.float64]
    cost: Cost


def _quiet(what: str, share: float) -> None:
    """Ignore progress."""


@torch.no_grad()
def take_census(
    system: System,
    *,
    depth: int = 1000,
    generator: torch.Generator,
    watch: int = WATCH,
    patience: int = PATIENCE,
    progress: Callable[[str, float], None] = _quiet,
) -> Census:
    """Relax a batch and name for every sample what it does and why.

    Args:
        system: The system.
        depth: Relaxation steps after which a sample that has not converged is looked at.
        generator: All randomness.
        watch: Steps an attractor is watched for at most.
        patience: Steps a slow relaxation is continued for at most.
        progress: Told what is being done and how far it is.
    """
    system = counted(system)
    progress(f"relaxing to depth {depth}", 0.0)
    settling = settle(system, depth)
    judge = Judge(system, generator=generator, watch=watch, patience=patience)
    if not system.structure.causal:
        progress("judging what still moves", 0.3)
        found = judge.run(settling)
        steps = np.array([j.critical_eps for j in found])
        return Census(found, [-1] * len(found), settling, None, None, steps, system.cost)
    finite = torch.isfinite(settling.z).flatten(1).all(1)
    check_causality(system, torch.where(finite.view(-1, 1, 1), settling.z, system.initial_state()))
    taken = _TokenCensus(system, judge, settling)
    taken.run(progress)
    return Census(
        taken.found,
        taken.token.tolist(),
        settling,
        taken.state,
        taken.mu,
        taken.sample_critical_eps,
        system.cost,
    )


class _TokenCensus:
    """The census of a causal system."""

    def __init__(self, system: System, judge: Judge, settling: Settling) -> None:
        self.system, self.judge, self.settling = system, judge, settling
        samples, tokens = settling.z.shape[:2]
        self.found = [Judgement() for _ in range(samples)]
        self.token = np.full(samples, -1)
        self.state = np.zeros((samples, tokens), dtype=np.int8)
        self.mu = np.full((samples, tokens), complex(np.nan, np.nan))
        self.sample_critical_eps = np.full(samples, np.nan)
        self.z = torch.where(torch.isfinite(settling.z), settling.z, system.initial_state())

    def run(self, progress: Callable[[str, float], None]) -> None:
        """Judge every sample."""
        settling, judge = self.settling, self.judge
        for i in settling.where(Status.ABSORBED):
            self.found[i].decide(Verdict.ABSORBED, Confidence.OBSERVED, why=Status.ABSORBED.sentence)
        settled = settling.where(Status.CONVERGED)
        doubtful: list[int] = []
        if settled:
            progress("displacing what has converged", 0.3)
            doubtful = judge.returning(settling, settled, self.found)
        open_ = sorted(doubtful + settling.where(Status.MAX_STEPS) + settling.where(Status.DIVERGED))
        if not open_:
            return
        progress(f"roots of {len(open_)} samples", 0.4)
        part = self.system.select(torch.tensor(open_))
        roots = find_root(
            part, relaxation=settling.relaxation(self.system, open_), starts=STARTS, generator=judge.generator
        )
        self._look(part, open_, roots, progress)

    def _look(self, part: System, samples: list[int], roots: Roots, progress: Callable[[str, float], None]) -> None:
        """Find where each open sample starts, and judge it there."""
        z = torch.where(torch.isfinite(roots.z), roots.z, part.initial_state())
        whole = [row for row, s in enumerate(roots.status) if s.good]
        candidates: dict[int, list[int]] = {
            row: [int(roots.failed_token[row])] for row in range(len(samples)) if row not in whole
        }
        slow: list[int] = []
        views: dict[int, tuple[RootView, int]] = {}
        if whole:
            own = part.select(torch.tensor(whole)) if len(whole) < len(samples) else part
            view = view_roots(own, z[torch.tensor(whole)], generator=self.judge.generator)
            stepped, standing = view.map_side(), self._standing(view, [samples[r] for r in whole])
            for k, row in enumerate(whole):
                self._record(view, k, samples[row])
                self.found[samples[row]].see_root(view, k, float(roots.residual[row]))
                views[row] = (view, k)
                tokens = np.flatnonzero(stepped[k] >= 0)
                tokens = np.union1d(tokens, standing[k][:1])
                if len(tokens):
                    candidates[row] = tokens[:ROUNDS].tolist()
                elif self.settling.status[samples[row]] is Status.CONVERGED:
                    why = "stable by its spectrum at every token, though a displacement returns only slowly"
                    self.found[samples[row]].decide(Verdict.FIXED_POINT, Confidence.PREDICTED, why=why)
                else:
                    slow.append(row)
        if slow:
            progress(f"continuing {len(slow)} slow samples", 0.5)
            judged = [self.found[i] for i in samples]
            stay = self.judge.moving.slow(part, self.settling, samples, slow, z, judged, views)
            for row in slow:
                view, k = views[row]
                self.token[samples[row]] = int(np.argmax(view.radius[k]))
                if row in stay:
                    candidates[row] = [self._first_moving(samples[row])]
        progress(f"judging {len(candidates)} samples where they start", 0.6)
        self._origins(samples, z, candidates)
        for row, i in enumerate(samples):
            self._also(i, views.get(row))
            self._states(i)

    def _record(self, view: RootView, k: int, sample: int) -> None:
        self.mu[sample] = (view.rightmost if view.flow else view.largest).mu[k]
        if view.flow and bool((view.rightmost.mu[k].real < 0).all()):
            self.sample_critical_eps[sample] = float(view.critical_eps[k].min())

    def _standing(self, view: RootView, samples: list[int]) -> list[NDArray[np.intp]]:
        """Return the tokens of each sample whose residual stands although the modes at the root say it should fall."""
        halves = self.settling.token_halves
        assert halves is not None
        peaks = halves[torch.tensor(samples)].double().cpu().numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = peaks[:, 1] / peaks[:, 0]
        explained = np.maximum.accumulate(view.radius, axis=1) ** (self.settling.window / 2)
        stands = (peaks[:, 1] > self.settling.tol) & (ratio > STANDING) & (explained < 0.6 * ratio)
        return [np.flatnonzero(row) for row in stands]

    def _first_moving(self, sample: int) -> int:
        halves = self.settling.token_halves
        assert halves is not None
        moving = (halves[sample, 1] > self.settling.tol).nonzero().flatten()
        return int(moving[0]) if len(moving) else 0

    def _origins(self, samples: list[int], roots: Tensor, candidates: dict[int, list[int]]) -> None:
        """Judge the candidates of each sample in turn until one does not settle by itself."""
        for turn in range(ROUNDS):
            rows = [row for row, tokens in candidates.items() if len(tokens) > turn]
            if not rows:
                return
            tokens = [candidates[row][turn] for row in rows]
            alone = TokenSystem(self.system, self._context(samples, roots), [samples[r] for r in rows], tokens)
            at = torch.tensor([samples[r] for r in rows]), torch.tensor(tokens)
            late = settle(alone, ALONE, start=self.z[at], tol=self.settling.tol)
            judge = Judge(alone, generator=self.judge.generator, watch=self.judge.watch, patience=self.judge.patience)
            for row, token, judged in zip(rows, tokens, judge.run(late), strict=True):
                sample = samples[row]
                self.token[sample] = token
                harmless = judged.verdict in (Verdict.FIXED_POINT, Verdict.SLOW)
                if harmless and self.settling.status[sample] is not Status.CONVERGED:
                    judged.decide(Verdict.SLOW, Confidence.OBSERVED, why="the token settles once those before it have")
                self.found[sample] = judged
                if not harmless:
                    candidates[row] = []

    def _context(self, samples: list[int], roots: Tensor) -> Tensor:
        """Return a state of the whole batch that holds the roots found."""
        context = self.z.clone()
        context[torch.tensor(samples)] = roots
        return context

    def _also(self, sample: int, seen: tuple[RootView, int] | None) -> None:
        """Say which later tokens would not settle either, once the cause named is gone."""
        if seen is None or self.found[sample].verdict is not Verdict.DISCRETE_INSTABILITY:
            return
        view, k = seen
        later = [t for t in np.flatnonzero(view.flow_side()[k] > 0) if t > self.token[sample]]
        if later:
            pair = show(complex(view.rightmost.mu[k, later[0]]))
            self.found[sample].against.append(
                f"a smaller step would not be enough: the flow of token {later[0]} is unstable at the root ({pair})"
            )

    def _states(self, sample: int) -> None:
        halves = self.settling.token_halves
        assert halves is not None
        if self.settling.status[sample] is Status.CONVERGED:
            moving = np.zeros(self.state.shape[1], dtype=bool)
        else:
            moving = (halves[sample, 1] > self.settling.tol).cpu().numpy() | (
                self.settling.status[sample] is Status.DIVERGED
            )
        origin, verdict = int(self.token[sample]), self.found[sample].verdict
        if verdict in (Verdict.FIXED_POINT, Verdict.SLOW):
            self.state[sample, moving] = SLOW_TOKEN
            return
        self.state[sample, moving] = DRIVEN
        self.state[sample, :origin][moving[:origin]] = SLOW_TOKEN
        self.state[sample, origin] = ORIGIN
