"""The Jacobian of a system at a state, as batched operators.

Whole: one operator a sample, of the dimension of the whole state. Token-diagonal: one operator a (sample, token), of
the dimension of the channels; their spectra together are exactly that of the whole, block lower triangular, Jacobian.
"""

import torch
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.linalg.operator import LinearOperator
from dyneq.systems.protocol import Product, System


class JacobianOperator(LinearOperator):
    """A pair of products on states, seen as ``batch`` operators on flat vectors.

    Args:
        products: ``v -> J v`` and ``w -> J^T w`` on tensors of shape ``shape``.
        shape: Shape of the state.
        batch_axes: How many leading axes of the state count operators (1: samples; 2: samples and tokens).
        like: Any tensor with the state's dtype and device.
    """

    def __init__(self, products: tuple[Product, Product], shape: torch.Size, batch_axes: int, like: Tensor) -> None:
        batch = shape[:batch_axes].numel()
        super().__init__(batch=batch, dim=shape.numel() // batch, dtype=like.dtype, device=like.device)
        self._forward, self._transposed = products
        self._shape = shape

    def _matvec(self, v: Tensor) -> Tensor:
        return self._forward(v.reshape(self._shape)).reshape(v.shape)

    def _rmatvec(self, v: Tensor) -> Tensor:
        return self._transposed(v.reshape(self._shape)).reshape(v.shape)


class Linearization:
    """J = dF/dz at one state.

    Args:
        system: The system.
        z: State ``[sample, ...]``; must be finite.

    Attributes:
        z: The state.
        whole: Operator of the whole Jacobian, batch = samples.

    Raises:
        DyneqError: If the state is not finite.
    """

    def __init__(self, system: System, z: Tensor) -> None:
        self.system, self.z = system, z.detach()
        if not torch.isfinite(self.z).all():
            bad = sorted({int(i) for i in (~torch.isfinite(self.z)).flatten(1).any(1).nonzero()})
            raise DyneqError(
                f"a Jacobian needs a finite state, but samples {bad} are not finite; leave them out, or relax with a "
                "smaller eps"
            )
        self.whole: LinearOperator = JacobianOperator(system.linearize(self.z), self.z.shape, 1, self.z)
        self._tokens: LinearOperator | None = None

    def matvec(self, v: Tensor) -> Tensor:
        """Return J v for ``v`` of the shape of the state."""
        return (self.whole @ v.flatten(1)).view(v.shape)

    def rmatvec(self, w: Tensor) -> Tensor:
        """Return J^T w for ``w`` of the shape of the state."""
        return self.whole.rmatvec(w.flatten(1)).view(w.shape)

    def token_diagonal(self) -> LinearOperator:
        """Return the token-diagonal blocks, batch = sample * tokens + token.

        Raises:
            DyneqError: If the system is not causal over tokens.
        """
        if self._tokens is None:
            self._tokens = JacobianOperator(self.system.linearize_tokens(self.z), self.z.shape, 2, self.z)
        return self._tokens

    def symmetric(self) -> LinearOperator:
        """Return (J + J^T)/2 of the whole; its largest eigenvalue is the numerical abscissa."""
        return self.whole.symmetric_part()

    @torch.no_grad()
    def dense(self) -> Tensor:
        """Return J as matrices ``[sample, state, state]``, at one product a column."""
        return self.whole.to_dense()

    @torch.no_grad()
    def token_blocks(self) -> Tensor:
        """Return the blocks J_tt as matrices ``[sample, token, channel, channel]``, at one product a channel.

        Raises:
            DyneqError: If the system is not causal over tokens.
        """
        samples, tokens = self.z.shape[:2]
        return self.token_diagonal().to_dense().unflatten(0, (samples, tokens))
