"""Following a root through a parameter: F(z; alpha) = 0 from one value of alpha to the next.

Each step goes along the tangent of the branch as predictor, with Newton's method as corrector (Kuznetsov, Elements of
Applied Bifurcation Theory, 2004, section 10.2; natural parametrisation). A step counts only where the corrector stays
near the predictor, so that another branch is not taken for this one, and is halved where it does not. Where even the
shortest step fails the branch has ended, in a fold if its neutral eigenvalue says so.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.block_newton import SubstitutionDirection
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.newton import DenseDirection, Direction, KrylovDirection, default_correction_tolerance, newton
from dyneq.dynamics.residuals import least_size, relative_size
from dyneq.dynamics.roots import DENSE_LIMIT, default_root_tolerance
from dyneq.errors import UsageError
from dyneq.systems.protocol import System

#: From a value of the parameter to the system there; all have the same samples and the same layout of the state.
Family = Callable[[float], System]
#: Longest predictor step, relative to the larger of the state and z_0 (for causal systems also token by token).
STRIDE = 0.2
#: How far the corrector may lead from the predictor, in units of the predictor's step. At a fold a step that leaves
#: an eighth of the way to it uses all of that, and the other branch lies more than four times as far.
TRUST = 0.5
#: A step between two values of the grid is halved this often before the branch is called lost.
HALVINGS = 14
#: Share of a step over which the force is differenced with respect to the parameter.
DIFFERENCE = 1e-3
#: The square of the neutral eigenvalue counts as linear in alpha if its second difference is at most this share of its
#: first one, and at most half of the same share of the eigenvalue itself, which is linear where a pitchfork is missed.
CURVED = 0.15


@dataclass(frozen=True)
class Loss:
    """Where one sample's branch could not be followed any further.

    Attributes:
        sample: The sample.
        token: Token whose root folds back; -1 without tokens, or where no fold shows.
        alpha: Last value at which the branch has a root.
        beyond: The next value tried, without one.
        fold: Where the branch folds back, extrapolated from its neutral eigenvalue, whose square is linear in alpha
            there; NaN where the eigenvalues do not show a fold.
    """

    sample: int
    token: int
    alpha: float
    beyond: float
    fold: float

    @property
    def error(self) -> float:
        """How far off :attr:`fold` can be: the step that found no root."""
        return abs(self.beyond - self.alpha)


@dataclass
class Branch:
    """Roots of every sample along a grid of parameter values.

    Attributes:
        alphas: The values, increasing, ``[alpha]``.
        z: ``[alpha, sample, ...]``; NaN where there is no root.
        residual: norm(F)/norm(z) of the whole force, ``[alpha, sample]``; NaN without a root.
        correction: Relative Newton correction at the root, ``[alpha, sample]``; NaN without a root.
        losses: Where branches ended before the grid did.
        steps: Steps made, each on one or more samples.
    """

    alphas: NDArray[np.float64]
    z: Tensor
    residual: NDArray[np.float64]
    correction: NDArray[np.float64]
    losses: list[Loss]
    steps: int

    @property
    def found(self) -> NDArray[np.bool_]:
        """Where there is a root, ``[alpha, sample]``."""
        return ~np.isnan(self.residual)


@dataclass
class Walker:
    """Moves roots along a family.

    Args:
        family: The systems.
        tol: Force residual accepted as a root; that of :func:`dyneq.dynamics.roots.find_root` if None.
        generator: Randomness of Krylov solves.

    Attributes:
        steps: Steps made, each on one or more samples.
        losses: Branches lost, by sample.
        residual: Force residual of the last root of each sample.
        correction: Relative Newton correction there.
    """

    family: Family
    tol: float | None
    generator: torch.Generator
    steps: int = 0
    losses: list[Loss] = field(default_factory=list)
    residual: dict[int, float] = field(default_factory=dict)
    correction: dict[int, float] = field(default_factory=dict)

    def system(self, rows: Tensor, alpha: float) -> System:
        """Return the system of the samples ``rows`` at ``alpha``."""
        whole = self.family(alpha)
        return whole if len(rows) == whole.samples else whole.select(rows)

    def polish(self, rows: Tensor, start: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """Return the roots that Newton's method finds from ``start`` ``[row, ...]``, and which were found."""
        self.steps += 1
        return self._newton(rows, self.system(rows, alpha), start)

    def walk(self, rows: Tensor, z: Tensor, here: float, there: float, level: int = 0) -> tuple[Tensor, Tensor]:
        """Return the roots at ``there`` of the branches through the roots at ``here``, and which were reached.

        Args:
            rows: Samples ``[row]``.
            z: Their roots ``[row, ...]`` at ``here``.
            here: Value of the parameter.
            there: Value wanted.
            level: How often the step has been halved already.
        """
        z, reached = z.clone(), torch.zeros(len(rows), dtype=torch.bool, device=z.device)
        if not len(rows):
            return z, reached
        made, good = self._step(rows, z, here, there)
        short = (~good).nonzero().flatten()
        if len(short) and level >= HALVINGS:
            for i in short.tolist():
                self._lose(rows[i : i + 1], z[i : i + 1], here, there)
        elif len(short):
            middle = (here + there) / 2
            half, halfway = self.walk(rows[short], z[short], here, middle, level + 1)
            on = short[halfway]
            rest, arrived = self.walk(rows[on], half[halfway], middle, there, level + 1)
            made[on], good[on] = rest, arrived
        z[good], reached[good] = made[good], True
        return z, reached

    def _step(
        self, rows: Tensor, z: Tensor, here: float, there: float, stride: float = STRIDE
    ) -> tuple[Tensor, Tensor]:
        """Return where one step leads, and whether it may be trusted, ``[row]``."""
        self.steps += 1
        tangent = direction_of(self.system(rows, here), self.generator)
        tangent.refresh(z.flatten(1))
        # the true derivative with respect to alpha, and J here: near a bifurcation a Newton step from here to there
        # would mix in how J changes, which the tangent does not know
        ahead = self.system(rows, here + DIFFERENCE * (there - here)).force(z).flatten(1) / DIFFERENCE
        # where the force does not change no step is needed, even where the Jacobian is singular
        step = torch.where((ahead == 0).all(1, keepdim=True), 0.0, tangent.solve(ahead)).view_as(z)
        system = self.system(rows, there)
        size = _extent(system, step, z)
        good = size <= stride
        made = z.clone()
        index = good.nonzero().flatten()
        if len(index):
            part = system if len(index) == len(rows) else system.select(index)
            predicted = z[index] + step[index]
            found, converged = self._newton(rows[index], part, predicted)
            near = default_correction_tolerance(z.dtype)
            made[index] = found
            good[index] = converged & (_extent(part, found - predicted, z[index]) <= TRUST * size[index] + near)
        return made, good

    def _newton(self, rows: Tensor, system: System, guess: Tensor) -> tuple[Tensor, Tensor]:
        """Return the roots Newton's method finds, and which it found, ``[row]``."""
        found = newton(
            lambda y: system.force(y.view_as(guess)).flatten(1),
            direction_of(system, self.generator),
            guess.flatten(1),
            least=least_size(system),
            tol=self._tol(guess),
        )
        self._note(rows, found.residual, found.correction)
        return found.z.view_as(guess), found.converged

    def _tol(self, z: Tensor) -> float:
        return default_root_tolerance(z.dtype) if self.tol is None else self.tol

    def _note(self, rows: Tensor, residual: Tensor, correction: Tensor) -> None:
        self.residual.update(zip(rows.tolist(), residual.tolist(), strict=True))
        self.correction.update(zip(rows.tolist(), correction.tolist(), strict=True))

    def _lose(self, row: Tensor, z: Tensor, here: float, there: float) -> None:
        """Record the end of one branch, and whether it looks like a fold."""
        fold, token, step = math.nan, -1, here - there
        points = [(here, z)]
        for _ in range(2):  # away from a fold there is no need for short steps
            alpha, y = points[-1]
            before, good = self._step(row, y, alpha, alpha + step, math.inf)
            points += [(alpha + step, before)] if bool(good) else []
        if len(points) == 3:
            found = [_neutral(self.system(row, a), y) for a, y in points]
            if _like_a_root([mu for mu, _ in found]) and len({t for _, t in found}) == 1:
                near, middle = (mu**2 for mu, _ in found[:2])
                token = found[0][1]
                end = here - step * near / (middle - near)
                fold = end if abs(end - there) <= 4 * abs(step) else math.nan
        self.losses.append(Loss(int(row), token if math.isfinite(fold) else -1, here, there, fold))


def direction_of(system: System, generator: torch.Generator) -> Direction:
    """Return how Newton directions of a system are found, on flat states ``[sample, n]``."""
    shape = system.initial_state().shape
    if system.structure.causal:
        return SubstitutionDirection(system)
    if shape[1:].numel() <= DENSE_LIMIT:
        return DenseDirection(lambda y: Linearization(system, y.view(shape)).dense())
    return KrylovDirection(lambda y: Linearization(system, y.view(shape)).whole, generator)


def _extent(system: System, step: Tensor, z: Tensor) -> Tensor:
    """Return the size of a step relative to the larger of the state and z_0 ``[row]``, NaN as infinite.

    For causal systems it is the largest of the whole and of all tokens.
    """
    z0 = system.initial_state().detach()
    size = relative_size(step, z, torch.linalg.vector_norm(z0.flatten(1), dim=1))
    if system.structure.causal:
        moved, here, there = (torch.linalg.vector_norm(x, dim=2) for x in (step, z, z0))
        size = torch.maximum(size, (moved / torch.maximum(here, there)).nan_to_num(torch.inf).amax(1))
    return torch.where(torch.isfinite(size), size, torch.inf)


def _like_a_root(mu: list[float]) -> bool:
    """Return whether three eigenvalues, nearest to the end of the branch first, go to 0 like a square root."""

    def curvature(x: list[float]) -> float:
        return abs(x[0] - 2 * x[1] + x[2]) / abs(x[1] - x[0]) if x[0] != x[1] else math.inf

    squares = [m * m for m in mu]
    share = curvature(squares)
    return 0 < squares[0] < squares[1] and share <= CURVED and share <= curvature(mu) / 2


def _neutral(system: System, z: Tensor) -> tuple[float, int]:
    """Return the eigenvalue nearest to 0 of one sample's Jacobian if it is real, else NaN, and its token or -1."""
    linearization = Linearization(system, z)
    if system.structure.causal:
        blocks = linearization.token_blocks()[0]
    elif z[0].numel() <= DENSE_LIMIT:
        blocks = linearization.dense()
    else:
        return math.nan, -1
    mu = torch.linalg.eigvals(blocks.double())
    at = int(mu.abs().argmin())
    least = complex(mu.flatten()[at])
    return (least.real if least.imag == 0 else math.nan), (at // mu.shape[1] if system.structure.causal else -1)


@torch.no_grad()
def follow_root(
    family: Family,
    alphas: Sequence[float],
    start: Tensor,
    *,
    anchor: int = 0,
    tol: float | None = None,
    generator: torch.Generator | None = None,
) -> Branch:
    """Follow one root of every sample along a grid of parameter values, in both directions from one of them.

    Args:
        family: The systems.
        alphas: Values of the parameter, increasing.
        start: State ``[sample, ...]`` near the roots at the anchor.
        anchor: Index of the value to start at.
        tol: Force residual accepted as a root; that of :func:`dyneq.dynamics.roots.find_root` if None.
        generator: Randomness of Krylov solves; seed 0 if None.

    Raises:
        UsageError: If the values do not increase, are not finite or are none, or the anchor is none of them.
    """
    values = np.asarray(alphas, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
        raise UsageError(f"a root is followed along increasing finite values, but {list(alphas)} were given; sort them")
    if not 0 <= anchor < len(values):
        raise UsageError(f"the anchor is an index 0 to {len(values) - 1} into the values, but {anchor} was given")
    walker = Walker(family, tol, generator or torch.Generator().manual_seed(0))
    samples = start.shape[0]
    z = start.new_full((len(values), *start.shape), torch.nan)
    residual, correction = np.full((2, len(values), samples), np.nan)

    def keep(k: int, rows: Tensor, found: Tensor) -> None:
        z[k, rows] = found
        for s in rows.tolist():
            residual[k, s], correction[k, s] = walker.residual[s], walker.correction[s]

    everyone = torch.arange(samples, device=start.device)
    first, good = walker.polish(everyone, start, float(values[anchor]))
    keep(anchor, everyone[good], first[good])
    for sense, end in ((-1, -1), (1, len(values))):
        rows, here = everyone[good], first[good]
        for k in range(anchor + sense, end, sense):
            moved, reached = walker.walk(rows, here, float(values[k - sense]), float(values[k]))
            rows, here = rows[reached], moved[reached]
            keep(k, rows, here)
    return Branch(values, z, residual, correction, walker.losses, walker.steps)
