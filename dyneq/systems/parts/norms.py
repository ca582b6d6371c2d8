"""Normalisations with products of their Jacobians."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from dyneq.systems.parts import continuation
from dyneq.systems.protocol import Product


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the last axis (Ba et al., arXiv:1607.06450), with its linearisation."""

    def forward(self, u: Tensor) -> Tensor:
        """Return the normalised ``u`` ``[..., channel]``, continued where it is complex."""
        if u.is_complex():
            return continuation.layer_norm(u, self.weight, self.bias, self.eps)
        return super().forward(u)

    def pull_back(self, u: Tensor, w: Tensor) -> Tensor:
        """Return J^T w at ``u``, of the shape of ``u``, as a differentiable function of both."""
        centred = u - u.mean(-1, keepdim=True)
        inverse = (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        xhat, g = centred * inverse, w * self.weight
        return (g - g.mean(-1, keepdim=True) - xhat * (xhat * g).mean(-1, keepdim=True)) * inverse

    def linearize(self, u: Tensor) -> tuple[Tensor, Product, Product]:
        """Return the output at ``u``, ``v -> J v`` and ``w -> J^T w``.

        With xhat = (u - mean)/sigma: J v = gamma/sigma * (v - mean(v) - xhat mean(xhat v)), and the operator between
        gamma and v is symmetric.
        """
        centred = u - u.mean(-1, keepdim=True)
        inverse = (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        xhat = centred * inverse
        gain = self.weight

        def project(v: Tensor) -> Tensor:
            inner = torch.linalg.vecdot(xhat, v).unsqueeze(-1).div_(v.shape[-1])
            out = v - v.mean(-1, keepdim=True)
            return out.addcmul_(xhat, inner, value=-1).mul_(inverse)

        out = xhat * gain + self.bias
        return out, lambda v: project(v).mul_(gain), lambda w: project(w * gain)


def rms_normalize(u: Tensor, eps: float) -> Tensor:
    """Return ``u`` divided by its root mean square over the last axis (Zhang and Sennrich, arXiv:1910.07467)."""
    if u.is_complex():
        return continuation.rms_norm(u, eps)
    return functional.rms_norm(u, (u.shape[-1],), eps=eps)


def linearize_rms(u: Tensor, eps: float) -> tuple[Tensor, Product, Product]:
    """Return the RMS-normalised ``u`` with ``v -> J v`` and ``w -> J^T w`` (J is symmetric)."""
    inverse = (u.square().mean(-1, keepdim=True) + eps).rsqrt()
    uhat = u * inverse

    def product(v: Tensor) -> Tensor:
        inner = torch.linalg.vecdot(uhat, v).unsqueeze(-1).div_(v.shape[-1])
        return (v - uhat * inner).mul_(inverse)

    return uhat, product, product
