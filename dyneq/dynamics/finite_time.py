"""Finite-time Lyapunov exponents: logarithms of the singular values of a whole product of tangent maps, per step.

The largest is the fastest growth any perturbation makes over the horizon. On a non-normal system it is far above the
asymptotic exponent until the horizon is long, and unlike that one it is not per token: it belongs to the whole sample.

Where the state is small all singular values are had from a frame that fills the space. Where it is large a frame of k
vectors is carried forwards and what it has become is carried backwards by the transposed maps, which is one step of
subspace iteration with Rayleigh and Ritz (Halko, Martinsson, Tropp 2011, SIAM Review 53, 217, section 4): lower bounds,
and over a horizon that separates the singular values tight ones. States are recomputed in segments, never kept.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.averages import Plan
from dyneq.dynamics.growth import Exponents, Growth
from dyneq.dynamics.stepping import Scheme
from dyneq.dynamics.tangent import TangentStepper
from dyneq.linalg.graded import GradedProduct
from dyneq.systems.protocol import System

#: Up to this dimension of a sample's state the frame fills the space.
COMPLETE = 64
#: Largest disagreement of the sum of all logarithms with the logarithm of the determinant, in nats.
AGREEMENT = 1e-6


@dataclass(frozen=True)
class FiniteTime:
    """Finite-time exponents of every whole sample.

    Attributes:
        values: Logarithms of the largest singular values divided by the steps ``[sample, k]``, nats per STEP, float64,
            largest first. NaN where the sample did not stay finite, or the value was lost in rounding.
        gain: What carrying backwards added ``[sample, k]``, nats per step: 0 where ``complete``, else a scale for what
            is still missing, which is smaller the better the horizon separates the singular values.
        complete: Whether the values are exact up to rounding; else they are lower bounds.
        exponents: The asymptotic exponents by QR along the same horizon, all of them where ``complete``.
        steps: Length of the horizon.
        forces: Forces evaluated, each of the whole batch.
        products: Products with the Jacobian or its transpose, each of the whole batch.
    """

    values: Tensor
    gain: Tensor
    complete: bool
    exponents: Exponents
    steps: int
    forces: int
    products: int


@torch.no_grad()
def finite_time_exponents(
    system: System,
    z: Tensor,
    steps: int,
    count: int,
    *,
    generator: torch.Generator,
    qr_every: int = 1,
    batches: int = 20,
    scheme: Scheme = "euler",
    step: float | None = None,
    complete: int = COMPLETE,
    backwards: bool = True,
) -> FiniteTime:
    """Return the leading finite-time exponents of every sample, and its asymptotic ones by QR.

    Args:
        system: What is stepped.
        z: State the horizon begins at ``[sample, ...]``.
        steps: Length of the horizon in steps.
        count: How many exponents k, at most the dimension of a sample's state; all where that is at most ``complete``.
        generator: Source of the first tangent vectors.
        qr_every: Steps between orthonormalisations.
        batches: Number of batches of the error bars of the asymptotic exponents.
        scheme: Euler's step (the relaxation; the map, for a map) or Runge-Kutta's.
        step: Step size, time units; the system's eps if None.
        complete: Dimension of a sample's state up to which the frame fills the space.
        backwards: Whether to carry the frame backwards where it does not; the bounds are much weaker without.

    Raises:
        UsageError: If a number does not fit the state or the horizon.
    """
    stepper, plan = TangentStepper(system, scheme, step), Plan.of(steps, qr_every, batches)
    dim = z[0].numel()
    whole = dim <= complete
    growth = Growth(z, 1, max(count, dim) if whole else count, plan, generator, product=True)
    z, segment, kept = z.detach(), max(1, math.isqrt(steps)), []
    for i in range(steps):
        if i % segment == 0:
            kept.append(z)
        z, growth.frame.vectors = stepper.advance_with(z, growth.frame.vectors)
        growth.after(i + 1, z)
    assert growth.product is not None
    forward = growth.product.log_singular_values()
    stages, vectors = (1 if scheme == "euler" else 4), growth.frame.vectors.shape[0]
    forces, products = stages * steps, stages * steps * vectors
    found = forward
    if whole:
        found = _trusted(forward, growth, dim)
    elif backwards:
        found = _backwards(stepper, growth, _reversed(stepper, kept, steps, segment), forward)
        forces, products = forces + (2 * stages - 1) * steps, 2 * products
    valid = growth.frame.valid.unsqueeze(-1)
    values, gain = (torch.where(valid, x / steps, torch.nan) for x in (found, found - forward))
    return FiniteTime(
        values, torch.zeros_like(gain) if whole else gain, whole, growth.finish(z), steps, forces, products
    )


def _trusted(values: Tensor, growth: Growth, dim: int) -> Tensor:
    """Return the logarithms, NaN where rounding may have made them.

    Small singular values are trusted where no growth was lost between two orthonormalisations and their sum is the
    logarithm of the determinant; the others only where an explicit product would resolve them, far above an ulp of the
    largest.
    """
    total, determinant = values.sum(-1), growth.volume.sum(-1)
    agree = ((total - determinant).abs() <= AGREEMENT) | (total.isneginf() & determinant.isneginf())
    seen = values > values[..., :1] + math.log(1e3 * dim * torch.finfo(torch.float64).eps)
    return torch.where((agree & growth.resolved.all(-1)).unsqueeze(-1) | seen, values, torch.nan)


def _reversed(stepper: TangentStepper, kept: list[Tensor], steps: int, segment: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the steps from the last to the first, each with the state it was taken from."""
    for number in reversed(range(len(kept))):
        first = number * segment
        states = [kept[number]]
        while first + len(states) < min(first + segment, steps):
            states.append(stepper.advance(states[-1]))
        for offset in reversed(range(len(states))):
            yield first + offset, states[offset]


def _backwards(
    stepper: TangentStepper, growth: Growth, states: Iterator[tuple[int, Tensor]], forward: Tensor
) -> Tensor:
    """Return the logarithms of the singular values of the product's transpose on what the frame has become."""
    frame = growth.frame
    product = GradedProduct((*forward.shape, forward.shape[-1]), forward.device)
    for i, z in states:
        frame.vectors = stepper.pull_back(z, frame.vectors)
        if i % growth.plan.every == 0:
            product.multiply(frame.orthonormalise())
    return product.log_singular_values()
