"""What a nudged phase is made of: the loss gradient that pushes and the correction of the asymmetry."""

import torch
from torch import Tensor

from dyneq.systems.protocol import System


class Nudge:
    """The gradient of the loss summed over samples and tokens, at real or complex states.

    The sum, not the mean: with a mean, beta would shrink with every token and sample that is added.

    Args:
        system: A system with a loss.
        clamp: Largest norm of the gradient at one token (at one sample, without tokens); no clamp if None.

    Attributes:
        scale: Factor that turns an adjoint of the summed loss into one of L, its mean.
        clamped: Which samples had a token's gradient clamped so far, bool ``[sample]``; None without a clamp.
    """

    def __init__(self, system: System, clamp: float | None = None) -> None:
        self._system, self._clamp, self._terms = system, clamp, system.loss_terms
        self.scale = 1 / (system.samples * self._terms)
        self.clamped: Tensor | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Return g ``[sample, ...]`` at ``z``; the holomorphic derivative where ``z`` is complex."""
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            loss = self._system.loss(leaf).sum() * self._terms
            (g,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss))
        if g.is_complex():
            g = g.conj().resolve_conj()  # torch returns the conjugate of the derivative of a holomorphic function
        return g if self._clamp is None else self._clamped(g, self._clamp)

    def _clamped(self, g: Tensor, clamp: float) -> Tensor:
        apart = (0, self._system.structure.token_axis)
        within = [axis for axis in range(g.ndim) if axis not in apart]
        size = torch.linalg.vector_norm(g, dim=within, keepdim=True) if within else g.abs()
        over = (size > clamp).flatten(1).any(1)
        self.clamped = over if self.clamped is None else self.clamped | over
        return g * (clamp / size).clamp(max=1.0)


class Skew:
    """The correction ``v -> J^T v - J v`` = -2 A v at one state, A the antisymmetric part of J.

    Added to the nudged force it turns J into its transpose to first order (arXiv:2602.03670). It is real, so it acts on
    real and imaginary part separately.

    Args:
        system: The system.
        z: Real state ``[sample, ...]`` of the Jacobian.
    """

    #: Products with J and J^T that one application to a real state takes.
    PRODUCTS = 2

    def __init__(self, system: System, z: Tensor) -> None:
        self._product, self._transposed = system.linearize(z)

    def __call__(self, v: Tensor) -> Tensor:
        """Return the correction at the deviation ``v`` ``[sample, ...]`` from the state."""
        if v.is_complex():
            return torch.complex(self(v.real.contiguous()), self(v.imag.contiguous()))
        return self._transposed(v) - self._product(v)
