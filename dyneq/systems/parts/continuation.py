"""The parts of a block at complex states: holomorphic continuations of the real functions, never their moduli.

Real weights act on complex input, nothing is conjugated, and square roots take their principal branch. A complex state
whose mean square leaves the right half-plane has left the domain on which that branch continues the real function;
there the value is NaN, so that nothing computed from it can pass for a number.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from dyneq.errors import DyneqError


def linear(layer: nn.Linear, u: Tensor) -> Tensor:
    """Return ``layer(u)``, the real weights applied to complex ``u`` as well."""
    if not u.is_complex():
        return layer(u)
    # one complex product is faster than two real ones, which copy the strided real and imaginary parts first
    bias = None if layer.bias is None else layer.bias.to(u.dtype)
    return functional.linear(u, layer.weight.to(u.dtype), bias)


def inverse_root(mean_square: Tensor, eps: float) -> Tensor:
    """Return (m + eps)^(-1/2) of complex ``m``, the principal branch; NaN where Re(m + eps) is not positive."""
    shifted = mean_square + eps
    return torch.where(shifted.real > 0, shifted.rsqrt(), math.nan)


def layer_norm(u: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the layer norm of complex ``u`` over its last axis, by the mean of the square and not of the modulus."""
    centred = u - u.mean(-1, keepdim=True)
    return centred * inverse_root(centred.square().mean(-1, keepdim=True), eps) * weight + bias


def rms_norm(u: Tensor, eps: float) -> Tensor:
    """Return complex ``u`` over the root of the mean of its square over the last axis."""
    return u * inverse_root(u.square().mean(-1, keepdim=True), eps)


def softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the last axis of real or complex ``scores``; masked ones are -inf.

    It is meromorphic: its poles lie where the exponentials sum to 0, which takes phases that differ by more than pi/2.
    """
    if not scores.is_complex():
        return scores.softmax(-1)
    # a constant shift cancels, so taking it from the real parts leaves the function analytic
    weights = (scores - scores.real.detach().amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log sum exp(logits) - logits[target] of complex ``logits`` ``[row, class]``, ``[row]``.

    The logarithm is the principal one, which is the continuation as long as no phase differs from the target's by pi/2
    or more; beyond its cut the value is off by a multiple of 2 pi i, and its derivative is not.
    """
    relative = logits - logits.gather(-1, targets[:, None])  # a phase common to all drops out before the logarithm
    shift = relative.real.detach().amax(-1, keepdim=True)
    return (relative - shift).exp().sum(-1).log() + shift.squeeze(-1)


def relu(x: Tensor) -> Tensor:
    """Return the positive part of real ``x``.

    Raises:
        DyneqError: If ``x`` is complex: there is no holomorphic function that continues it.
    """
    if x.is_complex():
        raise DyneqError(
            "a relu has no holomorphic continuation, so complex states have no force here; use an estimator with real "
            "nudges (holo2 or aep)"
        )
    return torch.relu(x)


def gelu(x: Tensor, form: str) -> Tensor:
    """Return the erf or tanh form of GELU of complex ``x``; the first is entire, the second has poles of tanh."""
    if form == "erf":
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def erf(x: Tensor) -> Tensor:
    """Return the error function of complex ``x``; evaluated on the CPU, because only SciPy has it."""
    return _Erf.apply(x)


class _Erf(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        from scipy import special

        return torch.from_numpy(special.erf(x.detach().cpu().resolve_conj().numpy())).to(x.device)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        # torch's gradient of a holomorphic function is the conjugate of its derivative
        return grad * (2 / math.sqrt(math.pi) * torch.exp(-x * x)).conj()
