"""Leading Lyapunov exponents of a relaxation by QR, with error bars and a convergence history.

The method is that of Benettin, Galgani, Giorgilli and Strelcyn (1980, Meccanica 15, 9), as Shimada and Nagashima (1979)
have it: tangent vectors are carried along the trajectory and orthonormalised, and the i-th exponent is the mean of
log abs(R_ii). Of causal blocks a product of the tangent map is block lower triangular over tokens, so the exponents of
the whole are those of the products of its token-diagonal blocks, all tokens together.

These are estimates of ASYMPTOTIC exponents, one (sample, or token) each. The finite-time exponents of a whole product,
logarithms of its singular values, are another thing: see :mod:`dyneq.dynamics.finite_time`.
"""

import torch
from torch import Tensor

from dyneq.dynamics.averages import Plan
from dyneq.dynamics.growth import Exponents, Growth
from dyneq.dynamics.stepping import Scheme
from dyneq.dynamics.tangent import TangentStepper
from dyneq.errors import UsageError
from dyneq.systems.protocol import System

__all__ = ["Exponents", "lyapunov_exponents", "product_exponents", "token_exponents"]


@torch.no_grad()
def lyapunov_exponents(
    system: System,
    z: Tensor,
    steps: int,
    count: int,
    *,
    generator: torch.Generator,
    warmup: int = 0,
    qr_every: int = 1,
    batches: int = 20,
    scheme: Scheme = "euler",
    step: float | None = None,
) -> Exponents:
    """Return the leading exponents of every sample, of the whole state.

    Costs ``steps * (1 + count)`` forces or products by Euler's scheme, four times that by Runge-Kutta's.

    Args:
        system: What is stepped.
        z: State the horizon begins at ``[sample, ...]``.
        steps: Length of the horizon in steps.
        count: How many exponents k; at most the dimension of a sample's state.
        generator: Source of the first tangent vectors.
        warmup: Steps taken before the horizon begins.
        qr_every: Steps between orthonormalisations.
        batches: Number of batches of the error bars.
        scheme: Euler's step (the relaxation; the map, for a map) or Runge-Kutta's.
        step: Step size, time units; the system's eps if None.

    Raises:
        UsageError: If a number does not fit the state or the horizon.
    """
    stepper = TangentStepper(system, scheme, step)
    return _along(stepper, z, steps, count, generator, warmup, Plan.of(steps, qr_every, batches))


@torch.no_grad()
def token_exponents(
    system: System,
    z: Tensor,
    steps: int,
    count: int,
    *,
    generator: torch.Generator,
    warmup: int = 0,
    qr_every: int = 1,
    batches: int = 20,
    scheme: Scheme = "euler",
    step: float | None = None,
) -> Exponents:
    """Return the leading exponents of every token ``[sample, token, k]``, from products of token-diagonal maps.

    The union over tokens is the list of the whole sample's asymptotic exponents. Arguments, cost and errors as in
    :func:`lyapunov_exponents`, ``count`` being at most the number of channels.

    Raises:
        DyneqError: If the system is not causal.
        UsageError: If a number does not fit the state or the horizon.
    """
    stepper = TangentStepper(system, scheme, step, tokens_only=True)
    return _along(stepper, z, steps, count, generator, warmup, Plan.of(steps, qr_every, batches))


@torch.no_grad()
def product_exponents(
    matrices: Tensor, count: int, *, generator: torch.Generator, qr_every: int = 1, batches: int = 20
) -> Exponents:
    """Return the leading exponents of products of given matrices, nats per factor.

    Args:
        matrices: Factors ``[step, sample, n, n]``, the first applied first.
        count: How many exponents, at most n.
        generator: Source of the first tangent vectors.
        qr_every: Factors between orthonormalisations.
        batches: Number of batches of the error bars.

    Raises:
        UsageError: If a number does not fit the matrices.
    """
    steps, samples, n = matrices.shape[:3]
    plan = Plan.of(steps, qr_every, batches)
    growth = Growth(matrices.new_empty(samples, n), 1, count, plan, generator)
    for i, matrix in enumerate(matrices):
        # vectors are held as [vector, sample, n]
        growth.frame.vectors = torch.einsum("sij,vsj->vsi", matrix, growth.frame.vectors)
        growth.after(i + 1)
    return growth.finish(None)


def _along(
    stepper: TangentStepper, z: Tensor, steps: int, count: int, generator: torch.Generator, warmup: int, plan: Plan
) -> Exponents:
    if warmup < 0:
        raise UsageError(f"steps before the horizon cannot be negative, but {warmup} were asked for; use 0 or more")
    growth = Growth(z, 2 if stepper.tokens_only else 1, count, plan, generator)
    z = z.detach()
    for _ in range(warmup):
        z = stepper.advance(z)
    for i in range(steps):
        z, growth.frame.vectors = stepper.advance_with(z, growth.frame.vectors)
        growth.after(i + 1, z)
    return growth.finish(z)
