"""A nudge that oscillates slowly, and its response in phase: equilibrium propagation with a lock-in amplifier.

The corrected nudged dynamics, linearised at the free state, is driven by beta(t) = r sin(w t):
    d' = J^T d - r sin(w t) g.
After its transients its response in phase, -r Re[(i w - J^T)^{-1} g], is that of a static nudge r up to O((w/rate)^2)
relative, rate being how fast the dynamics contracts. Whatever is constant, such as what a free phase not converged
leaves, drops out over whole periods; so do even harmonics, which makes the error of the nudge O(r^2). What drifts does
not drop out.

The relaxation is discrete: a period is a whole number of steps, so that sines and cosines are exactly orthogonal, and
i w stands for (e^{i w eps} - 1)/eps.

Over whole periods that average is the least-squares fit of the sine to what was recorded. Taken over what has been
recorded so far, the fit is a read-out at any time: what a phase that blows up before its periods are over leaves.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.residuals import sample_norm
from dyneq.dynamics.spectra import leading_spectrum
from dyneq.errors import UsageError
from dyneq.gradients.contrast import BLOW_UP, SETTLED, Contrast, choose
from dyneq.gradients.equilibrium import AdjointEstimate, AveragedParams, EquilibriumEstimator
from dyneq.gradients.free import FreePhase
from dyneq.gradients.nudge import Nudge, Skew
from dyneq.gradients.nudged import phase_estimate
from dyneq.gradients.window import Circle, Nudged
from dyneq.linalg.targets import LargestModulus
from dyneq.systems.protocol import System

#: The drive is slower than the contraction by this factor, unless the options name its frequency.
SLOWER = 10
#: Fewest steps a period can have: with fewer the sine is not resolved.
FEWEST = 4
#: Response out of phase relative to that in phase, above which the phase is called unsettled: the drive is then so fast
#: that the response in phase is off by about the square of this.
LAG = 0.15


class LockinParams(AveragedParams):
    """Options of :class:`Lockin`."""

    r: float = Field(1e-2, gt=0, description="amplitude of the nudge, on the loss summed over samples and tokens")
    w: float | None = Field(
        None,
        gt=0,
        description="frequency of the nudge, radians per unit of time; a tenth of a sample's contraction rate if None",
    )
    periods: int = Field(1, gt=0, description="periods averaged over, after one of settling")
    t2: int = Field(4000, gt=0, description="most steps of the nudged phase, which bounds the length of a period")
    head_clamp: float | None = Field(
        None, gt=0, description="largest norm of the summed loss's gradient at one token; no clamp if None"
    )


class Lockin(EquilibriumEstimator):
    """Drive the corrected dynamics, frozen at z*, by a slow sine and read its response in phase.

    Every sample has a frequency of its own, a tenth of its contraction rate (1 - rho)/eps, rho the spectral radius of
    the relaxation map, or what ``t2`` steps leave room for. Where rho is 1 or more nothing contracts: such a sample is
    driven at the slowest frequency there is room for and marked ``NUDGE_DIVERGED``, whatever comes out.

    A sample that overflows, or whose response grows a thousandfold past its quietest read-out, keeps that: of the
    read-outs after every unit of time, each over all that was recorded so far, the one that had moved least since the
    one before. It is marked ``NUDGE_DIVERGED``, ``t2`` is its step, ``increment`` how far it had moved, relative, and
    ``lag`` is NaN.

    ``NUDGE_NOT_SETTLED`` where the drive is too fast (``lag`` above :data:`LAG`) or the state drifts (``increment``
    above :data:`dyneq.gradients.contrast.SETTLED`).

    Diagnostics: those of :class:`EquilibriumEstimator` and of :func:`dyneq.gradients.nudged.phase_estimate`, with
    ``increment`` the size, relative to a, of what a drift as large as the one from beginning to end of the periods
    averaged would add to a if it were linear, and ``displacement`` the amplitude of the response in phase;
    ``frequency``, w in radians per unit of time; ``lag``, the response out of phase relative to that in phase, whose
    square is about the relative bias of a; ``contraction_rate`` per unit of time, where it was measured.
    """

    name = "lockin"
    main = "t2"
    Params = LockinParams
    params: LockinParams

    def adjoint(self, system: System, free: FreePhase) -> AdjointEstimate:
        """Return the estimate -J^{-T} g.

        Raises:
            UsageError: If the frequency asked for is not resolved by the steps, or its periods do not fit into ``t2``.
            DyneqError: If the system declares itself causal but is not.
        """
        p, z = self.params, free.z
        if p.w is None:
            rate, products = contraction_rate(system, z)
            period = _slow_periods(rate, system.eps, p)
            diverged, measured = rate <= 0, {"contraction_rate": rate}
        else:
            period, products = _given_periods(p.w, system.eps, p, z), 0
            diverged, measured = torch.zeros(len(z), dtype=torch.bool, device=z.device), {}
        nudge = Nudge(system, p.head_clamp)
        response, quiet = _drive(system, z, nudge, period, p.periods, p.r)
        size = sample_norm(response.in_phase)
        finite = torch.isfinite(response.in_phase).flatten(1).all(1)
        known = quiet.step > 0  # else the phase was too short to compare, and its end is kept
        blown = ~finite | known & (size > BLOW_UP * sample_norm(quiet.in_phase))
        fallen = blown & known
        in_phase = choose(fallen, quiet.in_phase, response.in_phase)
        size = sample_norm(in_phase)
        increment = torch.where(fallen, quiet.moved, response.drift) / size
        lag = torch.where(fallen, torch.nan, sample_norm(response.out_of_phase) / size)
        settled = (increment <= SETTLED) & (lag <= LAG)
        steps = (1 + p.periods) * period
        kept = torch.where(fallen, quiet.step, steps)
        found = Contrast(in_phase * -nudge.scale, (), kept, increment, settled, diverged | blown)
        cost = int(steps.max()) * (1 + Skew.PRODUCTS) + products
        swing = in_phase * p.r
        estimate = phase_estimate(system, z, found, Nudged(Circle(2), [swing, -swing], p.r), nudge, cost)
        frequency = (2 * math.pi / system.eps) / period.to(size.dtype)
        return replace(estimate, diagnostics={**estimate.diagnostics, "frequency": frequency, "lag": lag, **measured})


def contraction_rate(system: System, z: Tensor) -> tuple[Tensor, int]:
    """Return (1 - rho)/eps ``[sample]``, rho the spectral radius of I + eps J at ``z``, and the products it took.

    Asymptotically deviations shrink at least this fast per unit of time, and no eigenvalue of J is smaller in modulus;
    at most 0 where they do not shrink. NaN where the state is not finite or rho not converged.

    Args:
        system: The system.
        z: State ``[sample, ...]``.

    Raises:
        CausalityError: If the system declares itself causal but is not.
    """
    rho = np.full(len(z), np.nan)
    index = torch.isfinite(z).flatten(1).all(1).nonzero().flatten()
    products = 0
    if len(index):
        part = system if len(index) == len(z) else system.select(index)
        target = LargestModulus(system.eps)
        generator = torch.Generator(device=z.device).manual_seed(0)
        spectrum = leading_spectrum(Linearization(part, z[index]), [target], 1, generator=generator)
        pairs, products = spectrum.pairs, spectrum.matvecs
        modulus = np.where(pairs.converged, target.key(pairs.mu), np.nan)
        found = np.zeros(len(index))
        np.maximum.at(found, pairs.block // spectrum.tokens, modulus)  # NaN wins
        rho[index.cpu().numpy()] = found
    return torch.as_tensor((1 - rho) / system.eps, dtype=z.dtype, device=z.device), products


def _slow_periods(rate: Tensor, eps: float, params: LockinParams) -> Tensor:
    """Return each sample's period in steps ``[sample]``, the longest there is room for where no rate is known.

    Raises:
        UsageError: If there is no room for any.
    """
    longest = params.t2 // (1 + params.periods)
    if longest < FEWEST:
        raise UsageError(
            f"lockin averages over {params.periods} periods after one of settling, each of at least {FEWEST} steps, "
            f"but t2={params.t2} leaves {longest} steps a period; raise t2 to {FEWEST * (1 + params.periods)} or more"
        )
    steps = torch.ceil(2 * math.pi * SLOWER / (rate.double() * eps))
    return torch.where(rate > 0, steps, longest).clamp(FEWEST, longest).to(torch.int64)


def _given_periods(w: float, eps: float, params: LockinParams, z: Tensor) -> Tensor:
    """Return the period in steps that is nearest to that of ``w``, for every sample ``[sample]``.

    Raises:
        UsageError: If it is too short, or too long for ``t2``.
    """
    period = round(2 * math.pi / (w * eps))
    if period < FEWEST:
        raise UsageError(
            f"lockin needs at least {FEWEST} steps a period, but w={w:g} at eps={eps:g} has {period}; "
            f"lower w to {2 * math.pi / (FEWEST * eps):.3g} or less"
        )
    if period * (1 + params.periods) > params.t2:
        raise UsageError(
            f"lockin with w={w:g} takes {period} steps a period, so {period * (1 + params.periods)} for "
            f"{params.periods} periods after one of settling, but t2={params.t2}; raise t2 or w"
        )
    return torch.full((len(z),), period, dtype=torch.int64, device=z.device)


@dataclass(frozen=True)
class _Response:
    """The response to a nudge of amplitude 1 on the summed loss.

    Attributes:
        in_phase: Its part that goes as the sine ``[sample, ...]``.
        out_of_phase: Its part that goes as the cosine.
        drift: Norm of what a linear drift between the ends of the average adds to ``in_phase`` ``[sample]``.
    """

    in_phase: Tensor
    out_of_phase: Tensor
    drift: Tensor


class _Quiet:
    """The read-out that had moved least over a unit of time, of those made after every unit.

    Attributes:
        in_phase: The fit of the sine to all that was recorded until then ``[sample, ...]``.
        step: When that was ``[sample]``; 0 where there is none.
        moved: How far it had moved over that time ``[sample]``.
    """

    def __init__(self, like: Tensor, r: float) -> None:
        self._r, self._product = r, torch.zeros_like(like)
        self._before = torch.full_like(like, torch.nan)  # the first read-out has moved from nowhere
        self._square, self._axes = like.new_zeros(len(like)), (-1, *[1] * (like.ndim - 1))
        self.in_phase = torch.zeros_like(like)
        self.step = torch.zeros(len(like), dtype=torch.int64, device=like.device)
        self.moved = like.new_full((len(like),), torch.inf)

    def record(self, deviation: Tensor, sine: Tensor) -> None:
        """Record a deviation ``[sample, ...]`` and the drive at that time ``[sample]``."""
        self._product.addcmul_(deviation, sine.view(self._axes))
        self._square += sine.square()

    def look(self, step: int, driven: Tensor) -> None:
        """Make a read-out after ``step`` steps, and keep it where it has moved less than ever before.

        Args:
            step: Steps taken.
            driven: Which samples are not done, bool ``[sample]``; only theirs is kept.
        """
        fit = self._product / (self._r * self._square).view(self._axes)
        moved = sample_norm(fit - self._before)
        better = driven & (moved < self.moved)  # never where it is not finite
        self.in_phase = choose(better, fit, self.in_phase)
        self.step, self.moved = torch.where(better, step, self.step), torch.where(better, moved, self.moved)
        self._before = fit


@torch.no_grad()
def _drive(
    system: System, z0: Tensor, nudge: Nudge, period: Tensor, periods: int, r: float
) -> tuple[_Response, _Quiet]:
    """Return the response of the corrected dynamics at ``z0``, averaged over ``periods`` after one of settling.

    Beside it the quietest read-out on the way.
    """
    correction, eps, axes = Skew(system, z0), system.eps, (-1, *[1] * (z0.ndim - 1))
    last = (1 + periods) * period
    steps = int(last.max())
    n = torch.arange(steps, device=z0.device)[:, None]
    # the remainder first: sines of large arguments would lose digits
    angle = 2 * math.pi * (n % period).double() / period.double()
    sine, cosine = angle.sin().to(z0.dtype), angle.cos().to(z0.dtype)
    averaged = ((n >= period) & (n < last)).to(z0.dtype)
    z, in_phase, out_of_phase, moved = z0, *(torch.zeros_like(z0) for _ in range(3))
    quiet, unit = _Quiet(z0, r), max(2, round(1 / eps))
    for k in range(steps):
        deviation = z - z0
        quiet.record(deviation, sine[k])
        in_phase.addcmul_(deviation, (sine[k] * averaged[k]).view(axes))
        out_of_phase.addcmul_(deviation, (cosine[k] * averaged[k]).view(axes))
        f = system.force(z) - (r * sine[k]).view(axes) * nudge(z) + correction(deviation)
        # a sample that is done rests: it must not blow up and spoil what was found
        new = torch.where((k < last).view(axes), z.add(f, alpha=eps), z)
        moved.addcmul_(new - z, averaged[k].view(axes))
        z = new
        if (k + 1) % unit == 0:
            quiet.look(k + 1, k < last)
    scale = 2 / (r * periods * period.to(z0.dtype))
    # the sum of k sin(2 pi k/P) over whole periods is -cot(pi/P)/2 times their number of steps
    slope = scale / (2 * (math.pi / period.to(z0.dtype)).tan())
    shape = scale.view(axes)
    return _Response(in_phase * shape, out_of_phase * shape, sample_norm(moved) * slope), quiet
