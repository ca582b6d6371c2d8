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
        self.unsure = np.zeros(samples, dtype=bool)
        self.z = torch.where(torch.isfinite(settling.z), settling.z, system.initial_state())

    def run(self, progress: Callable[[str, float], None]) -> None:
        """Judge every sample."""
        settling, judge = self.settling, self.judge
        for i in settling.where(Status.ABSORBED):
            self.found[i].decide(Verdict.ABSORBED, Confidence.OBSERVED, why=Status.ABSORBED.sentence)
        settled = settling.where(Status.CONVERGED)
        doubtful: list[int] = []
        if settled:
            progress("spectra of what has converged", 0.3)
            doubtful = list(judge.returning(settling, settled, self.found))
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
        view = view_roots(part, z, generator=self.judge.generator)
        stepped, standing = view.map_side(), self._standing(view, samples)
        candidates: dict[int, list[int]] = {}
        slow: list[int] = []
        views: dict[int, tuple[RootView, int]] = {}
        for row, sample in enumerate(samples):
            failed = int(roots.failed_token[row]) if not roots.status[row].good else -1
            tokens = np.union1d(np.flatnonzero(stepped[row] >= 0), standing[row][:1])
            if failed >= 0:  # the spectra from there on belong to no root
                tokens = np.append(tokens[tokens < failed], failed)
            else:
                self._record(view, row, sample)
                self.found[sample].see_root(view, row, float(roots.residual[row]))
                views[row] = (view, row)
            if len(tokens):
                candidates[row] = [int(t) for t in tokens[:ROUNDS]]
            elif self.settling.status[sample] is Status.CONVERGED:
                self.found[sample].undetermined("it rests, but whether its root is stable is not resolved")
            elif self.settling.status[sample] is Status.DIVERGED:
                self.found[sample].undetermined("it diverges, though the root found is stable for flow and step")
            else:
                slow.append(row)
        if slow:
            progress(f"continuing {len(slow)} slow samples", 0.5)
            judged = [self.found[i] for i in samples]
            stay = self.judge.moving.slow(part, self.settling, samples, slow, z, judged, views)
            for row in slow:
                self.token[samples[row]] = int(np.argmax(view.radius[row]))
                if row in stay:
                    candidates[row] = [self._first_moving(samples[row])]
        progress(f"judging {len(candidates)} samples where they start", 0.6)
        self._origins(samples, z, candidates, stepped)
        self._settle_on([i for i in samples if self.found[i].verdict is Verdict.SLOW and self.unsure[i]])
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

    def _origins(
        self, samples: list[int], roots: Tensor, candidates: dict[int, list[int]], stepped: NDArray[np.int8]
    ) -> None:
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
                self.found[sample] = judged
                if harmless and self.settling.status[sample] is not Status.CONVERGED:
                    self.unsure[sample] = True  # unless the whole sample is seen to settle
                    judged.decide(Verdict.SLOW, Confidence.OBSERVED, why="the token settles once those before it have")
                else:
                    self.unsure[sample] = False
                    self._hold_against_sample(sample, token)
                # a token that left its root for another one has changed what later ones see
                if not harmless or stepped[row, token] >= 0:
                    candidates[row] = []

    def _hold_against_sample(self, sample: int, token: int) -> None:
        """Leave open what a token does by itself but not in the sample."""
        judged, status = self.found[sample], self.settling.status[sample]
        halves = self.settling.token_halves
        assert halves is not None
        moves = status is not Status.MAX_STEPS or float(halves[sample, 1, token]) > self.settling.tol
        if judged.verdict is Verdict.DIVERGED and status is not Status.DIVERGED:
            judged.undetermined("the token diverges by itself, but the sample stays bounded")
        elif judged.verdict in (Verdict.LIMIT_CYCLE, Verdict.TORUS, Verdict.CHAOS) and not moves:
            judged.undetermined("the token moves by itself, but rests in the sample")

    def _settle_on(self, samples: list[int]) -> None:
        """Call slow only what is seen to settle as a whole."""
        lost = [i for i in samples if self.settling.status[i] is Status.DIVERGED]
        for i in lost:
            self.found[i].undetermined("the sample diverges, but no token was found that does so by itself")
        left = [i for i in samples if i not in lost]
        if not left:
            return
        part, at = self.system.select(torch.tensor(left)), torch.tensor(left)
        late = settle(part, self.judge.patience, start=self.z[at], tol=self.settling.tol)
        for k, i in enumerate(left):
            if late.status[k] is not Status.CONVERGED:
                why = f"each token tried settles by itself, the sample does not within {self.judge.patience} more steps"
                self.found[i].undetermined(why)

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
