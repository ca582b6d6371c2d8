"""Linear maps whose weights meet a constraint by construction, so that no optimiser step can break it.

``specnorm``: W = raw min(1, rho / sigma(raw)) has a spectral norm of at most rho. ``rstr``: the product W_O W_V of each
head is gamma (sqrt(1 - r^2) S/|S|_F + r A/|A|_F) with S and A the symmetric and antisymmetric part of a free matrix, so
that its Frobenius norm is gamma and the share r of it is antisymmetric.
"""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

ConstraintName = Literal["specnorm", "rstr"]

#: The settings each constraint has.
_SETTINGS: dict[str, tuple[str, ...]] = {
    "specnorm": ("spectral_bound",),
    "rstr": ("product_norm", "antisymmetric_share"),
}


class AttentionConstraint(BaseModel):
    """What the weights of a block's attention are held to; part of the block's configuration.

    Settings of a constraint that is not chosen are refused, and are left out where the configuration is written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    constraint: ConstraintName | None = Field(
        None,
        description="hold the attention weights to a bound: specnorm (each of the four) or rstr (W_O W_V of each head, "
        "which resinit then leaves alone)",
    )
    spectral_bound: float = Field(1.0, gt=0, description="largest spectral norm rho of specnorm")
    product_norm: float = Field(1.0, gt=0, description="Frobenius norm gamma of each head's W_O W_V under rstr")
    antisymmetric_share: float = Field(
        0.5, ge=0, le=1, description="norm of the antisymmetric part of each W_O W_V relative to the whole, r of rstr"
    )

    @model_validator(mode="after")
    def _one_constraint(self) -> "AttentionConstraint":
        for name, settings in _SETTINGS.items():
            given = [key for key in settings if key in self.model_fields_set]
            if given and self.constraint != name:
                raise ValueError(f"{given[0]} belongs to constraint={name!r}, but constraint is {self.constraint!r}")
        if self.constraint == "rstr" and getattr(self, "channels", 2) < 2:
            raise ValueError("constraint='rstr' needs at least 2 channels, as a single one has no antisymmetric part")
        return self

    @model_serializer(mode="wrap")
    def _chosen_only(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # what says nothing is not written, so that blocks without a constraint keep the digests they had before there
        # were any
        unused = {key for name, keys in _SETTINGS.items() if name != self.constraint for key in keys}
        unused |= set() if self.constraint else {"constraint"}
        return {key: value for key, value in handler(self).items() if key not in unused}


class _Derived(nn.Linear):
    """A linear map whose weights are a function of others; ``weight`` is that function's value."""

    weight: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        nn.Module.__init__(self)  # nn.Linear would register weights of its own
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)


class SpectralLinear(_Derived):
    """A linear map of spectral norm at most ``bound``: ``raw`` as it is below it, scaled down to it above.

    The leading singular vectors are found anew whenever ``raw`` has other values than the last time, from the
    eigenvectors of its Gram matrix in float64. The norm itself is the quotient u^T raw v of the values as they are,
    exact to the rounding of ``raw``; its derivative u v^T is exact where the largest singular value is simple.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether there is a bias.
        bound: Largest spectral norm rho.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, bound: float) -> None:
        super().__init__(in_features, out_features, bias)
        self.raw = nn.Parameter(torch.empty(out_features, in_features))
        self.bound = bound
        self._leading: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weights ``[out, in]``, of spectral norm at most :attr:`bound`."""
        u, v = self._leading_pair()
        return self.raw * (self.bound / (u @ (self.raw @ v)).clamp(min=self.bound))

    def _leading_pair(self) -> tuple[Tensor, Tensor]:
        raw, known = self.raw.detach(), self._leading
        # by value: fused optimisers and changes through .data leave no other trace
        alike = known is not None and known[0].dtype == raw.dtype and known[0].device == raw.device
        if known is not None and alike and torch.equal(known[0], raw):
            return known[1], known[2]
        with torch.no_grad():
            w = raw.double()
            if torch.isfinite(w).all():
                v = torch.linalg.eigh(w.T @ w).eigenvectors[:, -1]
                u = w @ v
                u = u / torch.linalg.vector_norm(u).clamp(min=torch.finfo(u.dtype).tiny)
            else:  # nothing to bound, and nothing that could pass for a bounded matrix
                u, v = w.sum(1) * torch.nan, w.sum(0) * torch.nan
            u, v = u.to(raw), v.to(raw)
        self._leading = raw.clone(), u, v
        return u, v


class ProductLinear(_Derived):
    """The values of all heads of an attention whose W_O is the sum over heads: head h has W_h = (W_O W_V)_h.

    W_h = gamma (sqrt(1 - r^2) S/|S|_F + r A/|A|_F), with S and A the symmetric and antisymmetric part of ``raw[h]``.

    Args:
        channels: Width C.
        heads: Number of heads H; the output is ``H C`` wide.
        bias: Whether there is a bias.
        norm: Frobenius norm gamma of every W_h.
        share: Antisymmetric share r of every W_h.
    """

    def __init__(self, channels: int, heads: int, bias: bool, norm: float, share: float) -> None:
        super().__init__(channels, heads * channels, bias)
        self.raw = nn.Parameter(torch.empty(heads, channels, channels))
        self.norm, self.share = norm, share

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weights ``[H C, C]``, the W_h below one another."""
        transposed = self.raw.transpose(-1, -2)
        s, a = _unit(self.raw + transposed), _unit(self.raw - transposed)
        return (self.norm * ((1 - self.share**2) ** 0.5 * s + self.share * a)).flatten(0, 1)


class HeadSum(_Derived):
    """The sum over heads as a linear map of ``[..., H C]`` to ``[..., C]``, with a bias if there is one.

    Args:
        channels: Width C.
        heads: Number of heads H.
        bias: Whether there is a bias.
    """

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__(heads * channels, channels, bias)
        self.register_buffer("weight", torch.eye(channels).repeat(1, heads), persistent=False)

    def forward(self, u: Tensor) -> Tensor:
        """Return the sum ``[..., channel]``."""
        total = u.unflatten(-1, (-1, self.out_features)).sum(-2)
        return total if self.bias is None else total + self.bias


def projections(channels: int, heads: int, bias: bool, held_to: AttentionConstraint | None) -> list[nn.Linear]:
    """Return W_Q, W_K, W_V and W_O of an attention, under its constraint if there is one.

    Args:
        channels: Width C.
        heads: Number of heads H.
        bias: Whether they have biases.
        held_to: The constraint; None, or one without a name, for free weights.
    """
    name = None if held_to is None else held_to.constraint
    if held_to is not None and name == "specnorm":
        return [SpectralLinear(channels, channels, bias, held_to.spectral_bound) for _ in range(4)]
    free = [nn.Linear(channels, channels, bias=bias) for _ in range(2)]
    if held_to is not None and name == "rstr":
        values = ProductLinear(channels, heads, bias, held_to.product_norm, held_to.antisymmetric_share)
        return [*free, values, HeadSum(channels, heads, bias)]
    return free + [nn.Linear(channels, channels, bias=bias) for _ in range(2)]


@torch.no_grad()
def scale_free_(layer: nn.Linear, factor: float) -> None:
    """Multiply the weights a linear map is free to have, in place; a sum over heads has none."""
    if isinstance(layer, SpectralLinear):
        layer.raw.mul_(factor)
    elif not isinstance(layer, HeadSum):
        layer.weight.mul_(factor)


def _unit(matrices: Tensor) -> Tensor:
    return matrices / torch.linalg.matrix_norm(matrices, keepdim=True)
