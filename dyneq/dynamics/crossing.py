"""The critical value of a parameter, where the leading pair of a followed root crosses the stability boundary."""

import enum
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from dyneq.dynamics.continuation import Family, Walker
from dyneq.dynamics.normal_form import Criticality, NormalForm, at_token, criticality, hopf_normal_form, unknown
from dyneq.dynamics.root_pairs import RootPairs, leading_margin, root_pairs
from dyneq.errors import DyneqError, UsageError

#: Relative accuracy to which the critical value is bracketed.
PRECISION = 1e-10
#: Share of the bracket by which neighbouring values differ that give derivatives with respect to the parameter.
NEIGHBOUR = 1e-3
#: Imaginary parts, and margins at the critical value, below this share of the largest margin or eigenvalue count as 0.
RESOLUTION = 1e-5


#: Other values of the parameter are reached from those whose margin is at least this share of the largest.
CLEAR = 1e-3


class Kind(enum.StrEnum):
    """How stability is lost."""

    HOPF = "hopf"
    REAL = "real"
    NEIMARK_SACKER = "neimark-sacker"
    FLIP = "flip"
    UNDETERMINED = "undetermined"


@dataclass(frozen=True)
class Crossing:
    """One sample's critical value.

    Attributes:
        sample: The sample.
        token: Token of the pair; -1 without tokens.
        alpha: Critical value.
        alpha_error: First-order bar of it: error of the margin over its slope, and the bracket.
        kind: Hopf (a pair crosses), real (an eigenvalue crosses 0 while the branch goes on: transcritical or
            pitchfork; a fold ends the branch instead), for maps Neimark-Sacker or flip; undetermined where the margin
            jumps or two of these meet.
        frequency: Angular frequency abs(Im mu) of a flow's pair per unit time; of a map's multiplier, radians per step.
        frequency_error: Bar of it, that of the critical value included.
        slope: d margin/d alpha.
        mu: The pair there.
        z: Root there ``[1, ...]``.
        normal_form: Cubic coefficient there; unknown with a reason where it does not apply.
        coefficient_error: Bar of Re c1: its own, that of the critical value and that of the root.
        evaluations: Values of the parameter at which a root and its pair were computed.
    """

    sample: int
    token: int
    alpha: float
    alpha_error: float
    kind: Kind
    frequency: float
    frequency_error: float
    slope: float
    mu: complex
    z: Tensor
    normal_form: NormalForm
    coefficient_error: float
    evaluations: int

    @property
    def criticality(self) -> Criticality:
        """Super- or subcritical, undetermined where the sign of Re c1 is not clear of its error."""
        return criticality(self.normal_form.c1.real, self.coefficient_error)


class _Lost(DyneqError):
    """The branch could not be followed to a value inside the bracket."""


class _Path:
    """The followed root of one sample and its margin, at any value of the parameter near those known."""

    def __init__(self, walker: Walker, sample: int, known: dict[float, Tensor]) -> None:
        self.walker, self.known = walker, dict(known)
        device = next(iter(known.values())).device
        self.row = torch.tensor([sample], device=device)
        self.margins: dict[float, float] = {}
        self.evaluations = 0

    def root(self, alpha: float) -> Tensor:
        if alpha not in self.known:
            # not from where the margin is nearly 0: at a singular Jacobian another branch is as near as this one
            largest = max(map(abs, self.margins.values()), default=0.0)
            bases = [a for a in self.known if abs(self.margins.get(a, 0.0)) >= CLEAR * largest]
            here = min(bases, key=lambda a: abs(a - alpha))
            z, reached = self.walker.walk(self.row, self.known[here], here, alpha)
            if not bool(reached):
                raise _Lost(f"the branch of sample {int(self.row)} was lost on the way to {alpha}; refine the grid")
            self.known[alpha] = z
        return self.known[alpha]

    def margin(self, alpha: float) -> float:
        self.evaluations += 1
        system = self.walker.system(self.row, alpha)
        self.margins[alpha] = leading_margin(system, self.root(alpha), generator=self.walker.generator)
        return self.margins[alpha]

    def bracket(self) -> tuple[float, float]:
        """Return the closest two values with margins of opposite signs."""
        values = sorted(self.margins)
        pairs = [(a, b) for a, b in itertools.pairwise(values) if self.margins[a] * self.margins[b] <= 0]
        return min(pairs, key=lambda pair: pair[1] - pair[0])

    def pairs(self, alpha: float) -> RootPairs:
        self.evaluations += 1
        return root_pairs(self.walker.system(self.row, alpha), self.root(alpha), generator=self.walker.generator)

    def normal_form(self, alpha: float, token: int, frequency: float, z: Tensor | None = None) -> NormalForm:
        system, at = at_token(self.walker.system(self.row, alpha), self.root(alpha) if z is None else z, token)
        return hopf_normal_form(system, at, frequency)


@torch.no_grad()
def locate_crossing(
    family: Family,
    sample: int,
    known: dict[float, Tensor],
    *,
    tol: float | None = None,
    generator: torch.Generator | None = None,
) -> Crossing | None:
    """Find where the leading pair of one sample's root crosses the boundary between two values of the parameter.

    Args:
        family: The systems.
        sample: The sample.
        known: Roots ``[1, ...]`` of one branch at the two values, on either side of the crossing.
        tol: Force residual accepted as a root; that of :func:`dyneq.dynamics.roots.find_root` if None.
        generator: Randomness of Krylov methods and of the roots' errors; seed 0 if None.

    Returns:
        The crossing; None where the branch was lost between the values.

    Raises:
        UsageError: If not two values are given, or the margin has one sign at both.
    """
    if len(known) != 2:
        raise UsageError(f"a crossing lies between two values of the parameter, but {len(known)} were given")
    path = _Path(Walker(family, tol, generator or torch.Generator().manual_seed(0)), sample, known)
    low, high = sorted(known)
    ends = path.margin(low), path.margin(high)
    if not ends[0] * ends[1] < 0:
        raise UsageError(
            f"a crossing needs margins of opposite signs at its two ends, but at {low} and {high} they are "
            f"{ends[0]:.3g} and {ends[1]:.3g}; choose other values"
        )
    accuracy, h = PRECISION * (high - low), NEIGHBOUR * (high - low)
    try:
        alpha = float(brentq(path.margin, low, high, xtol=accuracy, rtol=4 * np.finfo(float).eps))
    except _Lost:  # where a real eigenvalue is nearly 0 the root itself is hardly known
        bracket = path.bracket()
        alpha, accuracy = min(bracket, key=lambda a: abs(path.margins[a])), bracket[1] - bracket[0]
    for near in ((max(low, alpha - h), min(high, alpha + h)), path.bracket()):
        try:
            return _describe(path, sample, alpha, near, accuracy)
        except _Lost:
            continue
    return None


def _describe(path: _Path, sample: int, alpha: float, near: tuple[float, float], accuracy: float) -> Crossing:
    """Return the crossing at ``alpha``, with derivatives between the two values ``near`` it."""
    pairs, sides = path.pairs(alpha), [path.pairs(a) for a in near]
    margin, error, scale = (float(x[0]) for x in (pairs.margin, pairs.error, pairs.scale))
    mu, token = complex(pairs.mu[0]), int(pairs.token[0])
    width = near[1] - near[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = float(np.float64(sides[1].margin[0] - sides[0].margin[0]) / width)
        alpha_error = float(np.float64(abs(margin) + error) / abs(slope)) + accuracy
    if math.isnan(error):
        # a root with a singular Jacobian does not know its own error, but its neighbours with margins of both signs do
        error = max(float(side.error[0]) for side in sides)
        known = all(abs(side.margin[0]) > side.error[0] for side in sides)
        alpha_error = width if known and sides[0].margin[0] * sides[1].margin[0] < 0 else math.nan
    kind = _kind(mu, margin, error, max(scale, *map(abs, path.margins.values())), pairs.flow)
    turning = [_frequency(complex(p.mu[0]), p.flow) for p in (pairs, *sides)]
    drift = abs(turning[2] - turning[1]) / width * alpha_error if width else math.nan
    form, bar = unknown(_inapplicable(kind)), math.nan
    if kind is Kind.HOPF:
        form = path.normal_form(alpha, token, mu.imag)
        bar = _bar(path, form, alpha, alpha_error, near, token, mu.imag)
    return Crossing(
        sample=sample,
        token=token,
        alpha=alpha,
        alpha_error=alpha_error,
        kind=kind,
        frequency=turning[0],
        frequency_error=error + drift,
        slope=slope,
        mu=mu,
        z=path.root(alpha),
        normal_form=form,
        coefficient_error=bar,
        evaluations=path.evaluations,
    )


def _frequency(mu: complex, flow: bool) -> float:
    return abs(mu.imag) if flow else abs(math.atan2(mu.imag, 1 + mu.real))


def _kind(mu: complex, margin: float, error: float, scale: float, flow: bool) -> Kind:
    """Return how stability is lost by a pair found at the critical value."""
    resolution = max(RESOLUTION * scale, 10 * error)
    # where the leading pair jumps (another branch), the bracket closes on a place that is no zero
    if math.isnan(error) or abs(margin) > resolution:
        return Kind.UNDETERMINED
    if abs(mu.imag) > resolution:
        return Kind.HOPF if flow else Kind.NEIMARK_SACKER
    if mu.imag != 0:
        return Kind.UNDETERMINED
    return Kind.FLIP if not flow and mu.real < -1 else Kind.REAL


def _inapplicable(kind: Kind) -> str:
    if kind is Kind.NEIMARK_SACKER:
        return "it is computed for flows, and this is a map"
    return "it belongs to a Hopf bifurcation, and this is none"


def _bar(
    path: _Path,
    form: NormalForm,
    alpha: float,
    alpha_error: float,
    near: tuple[float, float],
    token: int,
    frequency: float,
) -> float:
    """Return the error of Re c1: its own, and what the errors of the critical value and of the root make of it."""
    if not form.known:
        return math.nan
    sides = [path.normal_form(a, token, frequency) for a in near]
    if not all(s.known for s in sides):
        return math.nan
    slope = abs(sides[1].c1.real - sides[0].c1.real) / (near[1] - near[0])
    z = path.root(alpha)
    # c1 changes on the scale of the state: a root off by a relative correction moves it by about as much of its terms
    off = 2 * max(path.walker.correction[int(path.row)], torch.finfo(z.dtype).eps) * form.scale
    return form.error + slope * alpha_error + off
