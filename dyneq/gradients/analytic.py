"""Whether a system's force and loss at complex states are the holomorphic continuations of those at real states.

Complex nudges are exact only where they are. Two things are asked: that a real state written as a complex one gives
the same numbers (an erf GELU here and a tanh GELU there would not), and that the Cauchy-Riemann equations hold,
D(iv) = i D(v) for the central difference D(v) = (f(w + hv) - f(w - hv))/2h at a complex point w. For a holomorphic
function D(v) and D(iv)/i differ by h^2 f'''/3, while D of twice the step differs from D by h^2 f'''/2: the second,
which is measured, bounds the first, and no tolerance has to be chosen but one for rounding.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.gradients.free import loss_and_gradient
from dyneq.systems.protocol import System

#: Distance of the complex point from the real state, relative to its root mean square.
OFFSET = 1e-2
#: Roundings, relative to the root mean square of state and value, that two ways of computing a value may differ by. The
#: packaged checkpoints take up to 3 of them.
ROUNDINGS = 20
#: Error of the derivatives, relative and in units of the largest step, up to which a test says anything at all.
SHARP = 10
#: Step sizes tried, each a fraction of the one that balances truncation and rounding of a well-scaled function.
SHRINK = (1.0, 0.2, 0.04)

_Function = Callable[[Tensor], Tensor]


@torch.no_grad()
def require_analytic(system: System, z: Tensor, generator: torch.Generator) -> None:
    """Raise unless force and loss of complex states continue those of real states near ``z``.

    Args:
        system: A system with a loss.
        z: Real state ``[sample, ...]``; samples that are not finite are passed over.
        generator: Source of the directions tried.

    Raises:
        DyneqError: If they do not, or cannot be evaluated at complex states.
    """
    finite = torch.isfinite(z).flatten(1).all(1)
    unit = _unit(z)
    v = unit * _draw(z, generator)
    _require(system.force, f"the force of {system.name}", z, v, unit, finite, generator)
    # along a random direction alone, a loss of thousands of channels changes by hardly more than its rounding
    g = loss_and_gradient(system, z)[1]
    v = v + unit * g / _unit(g)
    _require(system.loss, f"the loss of {system.name}", z, v, unit, finite, generator)


def _require(
    f: _Function, what: str, z: Tensor, v: Tensor, unit: Tensor, finite: Tensor, generator: torch.Generator
) -> None:
    real = f(z)
    try:
        embedded = f(torch.complex(z, torch.zeros_like(z)))
    except Exception as error:  # whatever a user's own code raises
        raise DyneqError(
            f"complex nudges need {what} at complex states, but it cannot be computed there "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}); "
            "use real nudges (holo2 or aep)"
        ) from error
    rounding = ROUNDINGS * torch.finfo(z.dtype).eps
    difference = (_size(embedded - real) / (_size(real) + _size(z)))[finite]
    if not bool((difference <= rounding).all()):
        worst = float(difference.max())
        raise DyneqError(
            f"complex nudges need {what} to be the same at a real state and at that state written as complex, but the "
            f"two differ by {worst:.1e} relative (one form of GELU here and another there would do that); use real "
            "nudges (holo2 or aep)"
        )
    w = z + OFFSET * unit * torch.complex(_draw(z, generator), _draw(z, generator))
    _require_holomorphic(f, what, w, v, finite)


def _require_holomorphic(f: _Function, what: str, w: Tensor, v: Tensor, finite: Tensor) -> None:
    epsilon = torch.finfo(w.dtype).eps
    largest = epsilon ** (1 / 3)
    scale = _size(f(w)) + _size(w)
    passed, sharp, least = ~finite, torch.zeros_like(finite), torch.full_like(scale, torch.inf)
    for shrink in SHRINK:
        h = shrink * largest
        along, along_twice = _difference(f, w, v, h), _difference(f, w, v, 2 * h)
        across, across_twice = _difference(f, w, 1j * v, h), _difference(f, w, 1j * v, 2 * h)
        defect = _size(across - 1j * along)
        allowed = _size(along - along_twice) + _size(across - across_twice) + ROUNDINGS * epsilon * scale / h
        length = torch.maximum(_size(along), _size(across))
        telling = (allowed <= SHARP * largest * length) | (length == 0)
        passed |= telling & (defect <= allowed)
        sharp |= telling
        least = torch.minimum(least, torch.where(telling, defect / length, torch.inf))
        if bool(passed.all()):
            return
    failed = ~passed
    share = f"{int(failed.sum())} of {len(failed)} samples"
    if bool((failed & sharp).any()):
        worst = float(least[failed & sharp].max())
        found = f"in {share} it breaks the Cauchy-Riemann equations by up to {worst:.1e} relative"
    else:
        found = f"in {share} that cannot be told, because it varies too strongly or rounds too coarsely near the state"
    raise DyneqError(
        f"complex nudges need {what} at complex states to be the holomorphic continuation of its real form, but "
        f"{found}; use real nudges (holo2 or aep)"
    )


def _difference(f: _Function, w: Tensor, v: Tensor, h: float) -> Tensor:
    return (f(w + h * v) - f(w - h * v)) / (2 * h)


def _draw(z: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(z.shape, generator=generator, dtype=z.dtype, device=generator.device).to(z.device)


def _size(x: Tensor) -> Tensor:
    """Return the root mean square modulus of each sample ``[sample]``: states and losses are then on one scale."""
    flat = x.reshape(len(x), -1)
    return torch.linalg.vector_norm(flat, dim=1) / max(1, flat.shape[1]) ** 0.5


def _unit(x: Tensor) -> Tensor:
    """Return that size with the axes of ``x``, 1 where it is 0."""
    size = _size(x)
    return torch.where(size == 0, 1, size).view(-1, *[1] * (x.ndim - 1))
