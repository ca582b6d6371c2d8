"""What each solver needs to bring the force residual down, counted at the system's own door.

The counts do not come from the solvers: a :class:`MeteredSystem` stands between them and the system, counts what is
asked of it sample by sample, and looks at every force that is returned.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from dyneq.dynamics.anderson import anderson
from dyneq.dynamics.relax import GROWTH
from dyneq.dynamics.residuals import least_size, relative_size, sample_norm
from dyneq.dynamics.roots import find_root
from dyneq.systems.delegate import Delegate
from dyneq.systems.protocol import Product, System

#: Euler's method looks every this many evaluations which samples are done.
CHECK_EVERY = 32
#: Largest number of rows of the residual's history.
ROWS = 100
#: A sample whose best residual falls by less than this factor in the second half of the budget has stalled.
STALLED = 2.0
#: So has one whose residual is more than this many times its best at the end.
NEAR = 10.0


class Meter:
    """Counts a sample, and the evaluations after which each target was first met.

    Args:
        least: Smallest norm that residuals are taken relative to, ``[sample]``.
        targets: Force residuals.
        budget: Most evaluations of a sample; its half and the rows of the history depend on it.

    Attributes:
        forces: Evaluations of the force on the whole sample, ``[sample]``.
        products: Products with its Jacobian.
        token_forces: Evaluations on one of its tokens.
        token_products: Products with the Jacobian of one token.
        first: Evaluations after which a target was first met, -1 if never, ``[target, sample]``.
        best: Smallest force residual seen, infinite before any was, ``[sample]``.
        last: Force residual seen last.
        halfway: ``best`` at half the budget; NaN for samples that did not get there.
        rows: Numbers of evaluations of the rows of the history.
        history: ``best`` after them, ``[row, sample]``; NaN for samples that were no longer evaluated.
    """

    def __init__(self, least: Tensor, targets: Sequence[float], budget: int) -> None:
        samples = len(least)
        self._least, self._budget = least, budget
        self._targets = torch.tensor(list(targets), dtype=least.dtype, device=least.device)[:, None]
        # of numpy: inside a derivative torch forbids changing a tensor in place
        self.forces, self.products, self.token_forces, self.token_products = np.zeros((4, samples), dtype=np.int64)
        self.first = torch.full((len(targets), samples), -1, dtype=torch.int64, device=least.device)
        self.best = torch.full_like(least, torch.inf)
        self.last = torch.full_like(least, torch.nan)
        self.halfway = torch.full_like(least, torch.nan)
        self.rows = sorted({min(budget, round(budget ** (i / (ROWS - 1)))) for i in range(ROWS)})
        self.history = least.new_full((len(self.rows), samples), torch.nan)
        self._seen = 0

    def see(self, index: Tensor, z: Tensor, f: Tensor) -> None:
        """Look at the force on some of the samples, the next evaluation of each of them."""
        self._seen += 1
        residual = relative_size(f, z, self._least[index])
        self.last[index] = residual
        best = torch.fmin(self.best[index], residual)
        self.best[index] = best
        first = self.first[:, index]
        self.first[:, index] = torch.where((first < 0) & (residual <= self._targets), self._seen, first)
        if self._seen == max(1, self._budget // 2):
            self.halfway[index] = best
        if self._seen in self.rows:
            self.history[self.rows.index(self._seen), index] = best

    def equivalents(self, tokens: int) -> Tensor:
        """Return all that was asked of each sample in whole force evaluations ``[sample]``, float64.

        A product with the Jacobian counts as one force, what was done on one of n tokens as an n-th.

        Args:
            tokens: Number of tokens n.
        """
        return torch.from_numpy(self.forces + self.products + (self.token_forces + self.token_products) / tokens)


class MeteredSystem(Delegate):
    """A system whose every use is counted by a :class:`Meter`, also through its selections and steps.

    Args:
        parent: The system.
        meter: Where the counts go.
        index: Samples of the meter that the parent's are; all, in order, if None.
        watch: Whether the residuals of the forces are looked at.
    """

    def __init__(self, parent: System, meter: Meter, index: Tensor | None = None, *, watch: bool = True) -> None:
        super().__init__(parent)
        self.meter, self.watch = meter, watch
        self._z0 = parent.initial_state().detach()
        self.index = torch.arange(len(self._z0), device=self._z0.device) if index is None else index
        self._rows = self.index.cpu().numpy()

    def force(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the parent's force, counted."""
        self.meter.forces[self._rows] += 1
        f = self.parent.force(z, context)
        if self.watch:
            self.meter.see(self.index, z, f)
        return f

    def initial_state(self) -> Tensor:
        """Return the parent's start."""
        return self._z0

    def select(self, samples: Tensor) -> "MeteredSystem":
        """Return some of the samples, counted by the same meter."""
        part = MeteredSystem(self.parent.select(samples), self.meter, self.index[samples], watch=self.watch)
        part.eps = self.eps
        return part

    def linearize(self, z: Tensor) -> tuple[Product, Product]:
        """Return the parent's products, counted."""
        return self._counted(self.parent.linearize(z), 1)

    def linearize_tokens(self, z: Tensor) -> tuple[Product, Product]:
        """Return the parent's token-diagonal products, counted as products with all tokens."""
        return self._counted(self.parent.linearize_tokens(z), 1)

    def token_force(self, token: int, context: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the parent's force on one token, counted.

        In forward mode it is asked for all columns of the token's Jacobian at once, and counted as that many products.
        """
        of = self.parent.token_force(token, context)

        def counted(z_t: Tensor) -> Tensor:
            if forward_ad.unpack_dual(z_t).tangent is None:
                self.meter.token_forces[self._rows] += 1
            else:
                self.meter.token_products[self._rows] += z_t.shape[1]
            return of(z_t)

        return counted

    def _counted(self, products: tuple[Product, Product], weight: int) -> tuple[Product, Product]:
        def of(product: Product) -> Product:
            def counted(v: Tensor) -> Tensor:
                self.meter.products[self._rows] += weight
                return product(v)

            return counted

        return of(products[0]), of(products[1])


@dataclass(frozen=True)
class Passage:
    """What one solver needed.

    Attributes:
        evaluations: Force evaluations after which each target was first met, ``[target, sample]``; NaN if never.
        best: Smallest force residual, ``[sample]``.
        last: Force residual at the end.
        gain: Decades by which the best residual fell in the second half of the budget; NaN for samples that reached
            every target or did not get there.
        outcome: ``reached``, ``stalled``, ``falling``, ``diverged`` or ``no root``, one a sample.
        spent: Evaluations asked for, ``[sample]``: of solvers that go on until every sample is done, more than needed.
        rows: Numbers of evaluations of the rows of the history.
        history: Best residual after them, ``[row, sample]``; NaN for samples that were no longer evaluated.
        seconds: Time it took.
    """

    evaluations: Tensor
    best: Tensor
    last: Tensor
    gain: Tensor
    outcome: list[str]
    spent: Tensor
    rows: list[int]
    history: Tensor
    seconds: float


@torch.no_grad()
def euler_passage(system: System, targets: Sequence[float], budget: int) -> Passage:
    """Take Euler's steps until every sample has met the smallest target, or the budget is spent.

    Samples that are done or have diverged are left out from time to time. The residual of the state after n steps is
    known after n + 1 evaluations.

    Args:
        system: What is relaxed, with its own step size.
        targets: Force residuals.
        budget: Most force evaluations.
    """
    begun = time.perf_counter()
    meter = Meter(least_size(system), targets, budget)
    part = MeteredSystem(system, meter)
    z = system.initial_state().detach()
    limit = GROWTH * sample_norm(z).clamp(min=1.0)
    diverged = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    smallest = min(range(len(targets)), key=lambda i: targets[i])
    for n in range(1, budget + 1):
        f = part.force(z)
        z = torch.add(z, f, alpha=system.eps)
        if n % CHECK_EVERY == 0 or n == budget:
            size = sample_norm(z)
            gone = ~torch.isfinite(size) | (size > limit[part.index])
            diverged[part.index] |= gone
            active = ~gone & (meter.first[smallest, part.index] < 0)
            if not bool(active.any()):
                break
            if int(active.sum()) < 0.75 * len(active):
                part, z = part.select(active.nonzero().flatten()), z[active]
    return _passage(meter, targets, diverged, time.perf_counter() - begun)


@torch.no_grad()
def anderson_passage(system: System, memory: int, targets: Sequence[float], budget: int) -> Passage:
    """Run Anderson acceleration until every sample has met the smallest target, or the budget is spent.

    Args:
        system: What is relaxed; its eps is the mixing step.
        memory: Differences kept.
        targets: Force residuals.
        budget: Most force evaluations.
    """
    begun = time.perf_counter()
    meter = Meter(least_size(system), targets, budget)
    anderson(MeteredSystem(system, meter), memory=memory, max_evaluations=budget, tol=min(targets))
    diverged = ~torch.isfinite(meter.best)
    return _passage(meter, targets, diverged, time.perf_counter() - begun)


@torch.no_grad()
def root_passage(
    system: System, targets: Sequence[float], budget: int, *, depth: int, generator: torch.Generator
) -> Passage:
    """Find roots by Newton's method from a short relaxation; all targets are met at once, or none.

    Args:
        system: The system.
        targets: Force residuals.
        budget: Most evaluations of the other solvers, for the rows of the history.
        depth: Steps of the relaxation that gives the starts.
        generator: Randomness of the starts.
    """
    begun = time.perf_counter()
    meter = Meter(least_size(system), targets, budget)
    roots = find_root(MeteredSystem(system, meter, watch=False), depth=depth, generator=generator)
    tokens = roots.z.shape[1] if system.structure.causal else 1
    spent = meter.equivalents(tokens)
    found, residual = roots.found, roots.residual.cpu()
    met = found & (residual <= torch.tensor(list(targets), dtype=residual.dtype)[:, None])
    evaluations = torch.where(met, spent, torch.nan)
    outcome = [("reached" if m else "falling") if f else "no root" for f, m in zip(found, met.all(0), strict=True)]
    unknown = torch.full_like(residual, torch.nan)
    seconds = time.perf_counter() - begun
    return Passage(evaluations, residual, residual, unknown, outcome, spent, meter.rows, meter.history.cpu(), seconds)


def _passage(meter: Meter, targets: Sequence[float], diverged: Tensor, seconds: float) -> Passage:
    first, best, diverged = meter.first.cpu(), meter.best.cpu(), diverged.cpu()
    reached = (first >= 0).all(0)
    last = meter.last.cpu()
    gain = torch.where(reached | diverged, torch.nan, (meter.halfway.cpu() / best).log10())
    # the best of a state that wanders gets smaller by chance, but does not stay with it
    falls = (gain >= math.log10(STALLED)) & (last <= NEAR * best)
    outcome = []
    for r, d, g in zip(reached.tolist(), diverged.tolist(), falls.tolist(), strict=True):
        ending = "falling" if g else "stalled"
        outcome.append("reached" if r else "diverged" if d else ending)
    evaluations = torch.where(first >= 0, first.double(), torch.nan)
    spent = torch.from_numpy(meter.forces).double()
    return Passage(evaluations, best, last, gain, outcome, spent, meter.rows, meter.history.cpu(), seconds)
