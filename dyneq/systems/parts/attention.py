"""Causal multi-head attention: plain, fused, two-argument, decoding one token, and linearised.

Notation: q, k, v are ``[sample, head, token, head channel]``; S = q k^T / sqrt(d), P = softmax(S), O = P v. Products
with the Jacobian use dP = P * (dS - rowsum(P * dS)), so that with G = P * dS the output changes by
dO = G v - rowsum(G) * O + P dv: one elementwise pass over the token-by-token array and no exponentials. The values may
be wider than the queries and keys, as they are where the products W_O W_V have been scaled.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dyneq.systems.parts.constrained import AttentionConstraint, projections, scale_free_
from dyneq.systems.parts.continuation import linear, softmax
from dyneq.systems.parts.copies import shallow_copy, with_weights
from dyneq.systems.parts.norms import linearize_rms, rms_normalize
from dyneq.systems.protocol import Product

AttentionForm = Literal["plain", "fused"]


class CausalAttention(nn.Module):
    """Causal softmax attention with independent W_Q, W_K, W_V, W_O.

    Args:
        channels: Width C.
        heads: Number of heads H, a divisor of C.
        bias: Whether the four projections have biases.
        qk_norm: Whether queries and keys are RMS-normalised per head (without learned gain), which bounds the logits.
        norm_eps: Small constant of that normalisation.
        form: ``plain`` materialises P; ``fused`` calls torch's fused kernel (no forward-mode derivative,
            no complex states, for which the plain form serves).
        held_to: What the weights are held to; nothing if None.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        bias: bool,
        qk_norm: bool,
        norm_eps: float,
        form: AttentionForm,
        held_to: AttentionConstraint | None = None,
    ) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = projections(channels, heads, bias, held_to)
        self.heads, self.qk_norm, self.norm_eps = heads, qk_norm, norm_eps
        self.form: AttentionForm = form
        self.scale = 1 / math.sqrt(channels // heads)

    def _split(self, u: Tensor) -> Tensor:
        return u.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def _merge(self, o: Tensor) -> Tensor:
        return o.transpose(-2, -3).flatten(-2)

    def _normalize(self, u: Tensor) -> Tensor:
        return rms_normalize(u, self.norm_eps) if self.qk_norm else u

    def query(self, u: Tensor) -> Tensor:
        """Return the queries of ``u`` ``[sample, token, channel]``, by head."""
        return self._normalize(self._split(linear(self.wq, u)))

    def key_value(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of ``u`` ``[sample, token, channel]``, by head."""
        return self._normalize(self._split(linear(self.wk, u))), self._split(linear(self.wv, u))

    def _probabilities(self, scores: Tensor) -> Tensor:
        tokens = scores.shape[-1]
        future = torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).triu_(1)
        return softmax(scores.masked_fill(future, -math.inf))

    def forward(self, u: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the attention output at ``u`` ``[sample, token, channel]``, continued where it is complex.

        Args:
            u: Normalised state.
            context: If given, the normalised state whose keys and values the other tokens offer; each token's own key
                and value still come from ``u``.
        """
        q, (k, v) = self.query(u), self.key_value(u)
        if context is None:
            if self.form == "fused" and not u.is_complex():
                o = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
            else:
                o = self._probabilities((q * self.scale) @ k.transpose(-1, -2)) @ v
            return linear(self.wo, self._merge(o))
        kc, vc = self.key_value(context)
        q = q * self.scale
        scores = torch.diagonal_scatter(q @ kc.transpose(-1, -2), (q * k).sum(-1), 0, -2, -1)
        p = self._probabilities(scores)
        own = torch.diagonal(p, 0, -2, -1).unsqueeze(-1)
        return linear(self.wo, self._merge(p @ vc + own * (v - vc)))

    def decode(self, keys: Tensor, values: Tensor, hidden: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return ``u_t -> output`` of one token, ``[sample, channel]`` each, given the earlier tokens' keys and values.

        Args:
            keys: ``[sample, head, earlier token, head channel]``, possibly with no token at all.
            values: The same shape, of the values' own width.
            hidden: Where True, a token that a sample's own does not see, bool ``[sample, earlier token]``; None if each
                sees them all.
        """
        masked = None if hidden is None else hidden[:, None, None, :]

        def of(u: Tensor) -> Tensor:
            u = u.unsqueeze(-2)
            q, (k, v) = self.query(u) * self.scale, self.key_value(u)
            seen = q @ keys.transpose(-1, -2)
            if masked is not None:
                seen = seen.masked_fill(masked, -math.inf)
            scores = torch.cat([seen, (q * k).sum(-1, keepdim=True)], dim=-1)
            p = softmax(scores)
            return linear(self.wo, self._merge(p[..., :-1] @ values + p[..., -1:] * v)).squeeze(-2)

        return of

    def scale_output_(self, factor: float) -> None:
        """Multiply W_O in place as far as it is free: not under ``rstr``, which fixes the norms of the products."""
        scale_free_(self.wo, factor)

    def head_products(self) -> Tensor:
        """Return the product W_O W_V of every head ``[head, channel, channel]``."""
        outputs = self.wo.weight.unflatten(1, (self.heads, -1)).transpose(0, 1)
        return outputs @ self.wv.weight.unflatten(0, (self.heads, -1))

    def scaled(self, alpha: float) -> "CausalAttention":
        """Return a copy whose output is scaled, W_O with its bias; all other weights are shared."""
        bias = None if self.wo.bias is None else alpha * self.wo.bias
        return self._with(wo=with_weights(self.wo, alpha * self.wo.weight, bias))

    def scaled_head(self, head: int, alpha: float) -> "CausalAttention":
        """Return a copy in which what one head adds is scaled: its columns of W_O; the bias of W_O is no head's."""
        columns = self.wo.weight.detach().clone().unflatten(1, (self.heads, -1))
        columns[:, head] *= alpha
        return self._with(wo=with_weights(self.wo, columns.flatten(1), self.wo.bias))

    def scaled_antisymmetric(self, alpha: float) -> "CausalAttention":
        """Return a copy with S + alpha A for each head's product M = W_O W_V = S + A, S symmetric, A antisymmetric.

        S + alpha A = (1 + alpha)/2 M + (1 - alpha)/2 M^T is had exactly from values of twice the width, made by W_V and
        W_O^T. Rows of a softmax sum to 1, so that the bias of the values reaches the output as a constant: it moves to
        the bias of W_O and is not touched.
        """
        with torch.no_grad():
            v, o = self.wv.weight.unflatten(0, (self.heads, -1)), self.wo.weight.unflatten(1, (self.heads, -1))
            values = torch.cat([v, o.permute(1, 2, 0)], dim=1)
            outputs = torch.cat([(1 + alpha) / 2 * o, (1 - alpha) / 2 * v.permute(2, 0, 1)], dim=2)
            constant = self.wo.bias
            if constant is not None and self.wv.bias is not None:
                constant = self.wo(self.wv.bias)
        return self._with(
            wv=with_weights(self.wv, values.flatten(0, 1), None), wo=with_weights(self.wo, outputs.flatten(1), constant)
        )

    def _with(self, **projections: nn.Linear) -> "CausalAttention":
        copy = shallow_copy(self)
        for name, projection in projections.items():
            setattr(copy, name, projection)
        return copy

    def linearize(self, u: Tensor, tokens_only: bool) -> tuple[Product, Product]:
        """Return ``v -> J v`` and ``w -> J^T w`` at ``u``.

        Args:
            u: Normalised state ``[sample, token, channel]``.
            tokens_only: Whether to take the token-diagonal blocks only, that is to differentiate with respect to each
                token's own query, key and value and hold the other tokens' keys and values fixed.
        """
        q_raw, k_raw, v = self._split(self.wq(u)), self._split(self.wk(u)), self._split(self.wv(u))
        if self.qk_norm:
            q, dq_of, dqT_of = linearize_rms(q_raw, self.norm_eps)
            k, dk_of, dkT_of = linearize_rms(k_raw, self.norm_eps)
        else:
            q, k = q_raw, k_raw
            dq_of = dqT_of = dk_of = dkT_of = _identity
        q = (q * self.scale).contiguous()
        k, v = k.contiguous(), v.contiguous()
        p = self._probabilities(q @ k.transpose(-1, -2))
        o = p @ v
        own = torch.diagonal(p, 0, -2, -1).unsqueeze(-1).contiguous()
        kT, vT = k.transpose(-1, -2), v.transpose(-1, -2)
        wq, wk, wv, wo = self.wq.weight, self.wk.weight, self.wv.weight, self.wo.weight
        stacked = torch.cat([wq, wk, wv])
        widths = [len(wq), len(wk), len(wv)]
        scale = self.scale

        def tangents(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            a, b, c = functional.linear(x, stacked).split(widths, dim=-1)
            return dq_of(self._split(a)) * scale, dk_of(self._split(b)), self._split(c)

        def cotangents(dq: Tensor, dk: Tensor, dv: Tensor) -> Tensor:
            parts = [dqT_of(dq * scale), dkT_of(dk), dv]
            return torch.matmul(torch.cat([self._merge(x) for x in parts], dim=-1), stacked)

        def whole(x: Tensor) -> Tensor:
            dq, dk, dv = tangents(x)
            # one matrix product of twice the depth instead of two passes over the token-by-token array
            g = torch.cat([dq, q], -1) @ torch.cat([k, dk], -1).transpose(-1, -2)
            g.mul_(p)
            do = g @ v
            do.addcmul_(g.sum(-1, keepdim=True), o, value=-1).add_(p @ dv)
            return functional.linear(self._merge(do), wo)

        def whole_transposed(w: Tensor) -> Tensor:
            do = self._split(torch.matmul(w, wo))
            ds = do @ vT
            ds.sub_((do * o).sum(-1, keepdim=True)).mul_(p)
            return cotangents(ds @ k, ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ do)

        def diagonal(x: Tensor) -> Tensor:
            dq, dk, dv = tangents(x)
            g = dq @ kT
            g.mul_(p)
            self_score = own * (q * dk).sum(-1, keepdim=True)
            do = g @ v
            do.addcmul_(g.sum(-1, keepdim=True), o, value=-1)
            do.addcmul_(self_score, v - o).addcmul_(own, dv)
            return functional.linear(self._merge(do), wo)

        def diagonal_transposed(w: Tensor) -> Tensor:
            do = self._split(torch.matmul(w, wo))
            ds = do @ vT
            ds.sub_((do * o).sum(-1, keepdim=True)).mul_(p)
            self_score = torch.diagonal(ds, 0, -2, -1).unsqueeze(-1)
            return cotangents(ds @ k, self_score * q, own * do)

        return (diagonal, diagonal_transposed) if tokens_only else (whole, whole_transposed)


def _identity(x: Tensor) -> Tensor:
    return x
