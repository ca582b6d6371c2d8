"""Higher directional derivatives of a force: the multilinear forms B(u, v) and C(u, v, w) of its Taylor series.

They are nested forward-mode derivatives. torch's own layer norm keeps its mean and deviation as constants in a second
derivative of this kind (and in a third one of reverse mode), which is then wrong without a word; so it is replaced here
by the elementary operations it consists of, and the forms can be checked against finite differences.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Force = Callable[[Tensor], Tensor]


class Elementary(TorchFunctionMode):
    """Within this context, normalisations over the last axes are made of elementary operations."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace layer and RMS normalisation; everything else stays as it is."""
        if func in (functional.layer_norm, torch.layer_norm):
            return _layer_norm(*args, **(kwargs or {}))
        if func in (functional.rms_norm, torch.rms_norm):
            return _rms_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(axes, keepdim=True)
    out = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    least = torch.finfo(input.dtype).eps if eps is None else eps
    out = input * (input.square().mean(axes, keepdim=True) + least).rsqrt()
    return out if weight is None else out * weight


@torch.no_grad()
def form(f: Force, z: Tensor, directions: Sequence[Tensor]) -> Tensor:
    """Return the derivative of ``f`` at ``z`` along one, two, three, ... directions, symmetric and linear in each.

    Args:
        f: The force, of the shape of its argument.
        z: State.
        directions: Real, each of the shape of ``z``.
    """
    derivative = f
    for d in directions:
        derivative = _along(derivative, d)
    with Elementary():
        return derivative(z)


def _along(f: Force, direction: Tensor) -> Force:
    return lambda z: torch.func.jvp(f, (z,), (direction,))[1]


def complex_form(f: Force, z: Tensor, directions: Sequence[Tensor]) -> Tensor:
    """Return :func:`form` for complex directions, each real part and imaginary part on its own."""
    total = torch.zeros(z.shape, dtype=torch.complex128, device=z.device)
    for choice in range(2 ** len(directions)):
        imaginary = [bool(choice >> k & 1) for k in range(len(directions))]
        parts = [(d.imag if i else d.real).to(z.dtype) for d, i in zip(directions, imaginary, strict=True)]
        if all(bool(p.any()) for p in parts):
            total += 1j ** sum(imaginary) * form(f, z, parts).double()
    return total


@torch.no_grad()
def disagreement(f: Force, z: Tensor, u: Tensor, v: Tensor, size: float) -> float:
    """Return how far B(u, v) and C(u, v, v) are from central differences of first derivatives, beyond their error.

    Differences are taken with the step, out of a few, at which they are most accurate: their error is what halving the
    step changes, and rounding.

    Args:
        f: The force.
        z: State.
        u: Real direction.
        v: Real direction along which is differenced.
        size: Scale on which the force changes, such as the norm of the state.

    Returns:
        The larger of the two excesses, relative to the form and the error of its difference; at most 1 if they agree,
        infinite where a form is not finite.
    """
    norm = torch.linalg.vector_norm
    length = float(norm(v))
    if length == 0 or float(norm(u)) == 0:
        return 0.0
    first = _along(f, u)
    middle = first(z)
    worst = 0.0
    for directions in ([u, v], [u, v, v]):
        exact, order = form(f, z, directions), len(directions) - 1
        best = math.inf, torch.zeros_like(z)
        for relative in (3e-2, 3e-3, 1e-3, 1e-4):
            h = relative * size / length
            coarse, fine = (_difference(first, z, v, s, middle, order) for s in (h, h / 2))
            rounding = 64 * torch.finfo(z.dtype).eps * float(norm(middle) + size * norm(exact)) / (h / 2) ** order
            bar = float(norm(coarse - fine)) + rounding
            best = min(best, (bar, fine), key=lambda b: b[0])
        bar, fine = best
        gap = float(norm(exact - fine))
        if not math.isfinite(gap):
            return math.inf
        worst = max(worst, gap / bar if bar > 0 else (0.0 if gap == 0 else math.inf))
    return worst


def _difference(first: Force, z: Tensor, v: Tensor, h: float, middle: Tensor, order: int) -> Tensor:
    ahead, behind = first(z + h * v), first(z - h * v)
    return (ahead - behind) / (2 * h) if order == 1 else (ahead - 2 * middle + behind) / h**2
