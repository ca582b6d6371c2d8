"""One token of a causal system as a system of its own, the earlier tokens held fixed.

Where all tokens before t have settled, token t obeys an autonomous equation of the dimension of the channels alone:
later tokens do not act on it, and earlier ones no longer move. Its cycles, exponents and bifurcations are those of the
whole as far as token t starts them.
"""

import torch
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.systems.protocol import System


class TokenSystem(System):
    """One token of each of some samples, ``[row, channel]``, with the tokens before it held at a context.

    Args:
        parent: A causal system.
        context: State ``[sample, token, channel]`` of the parent that the earlier tokens are held at, usually a root.
        samples: Sample of every row.
        tokens: Token of every row.

    Attributes:
        rows: The (sample, token) of every row.

    Raises:
        DyneqError: If the parent is not causal, or a row names no token of it.
    """

    def __init__(self, parent: System, context: Tensor, samples: list[int], tokens: list[int]) -> None:
        parent.require_causal("a token as a system of its own")
        shape = context.shape
        if len(samples) != len(tokens) or not samples:
            raise DyneqError(
                f"a subsystem needs one token for each of at least one sample, but has {len(samples)} samples and "
                f"{len(tokens)} tokens"
            )
        if any(not 0 <= s < shape[0] for s in samples) or any(not 0 <= t < shape[1] for t in tokens):
            raise DyneqError(
                f"a subsystem names samples 0..{shape[0] - 1} and tokens 0..{shape[1] - 1}, but {samples} and {tokens} "
                "were given"
            )
        self.parent, self._context = parent, context.detach()
        self.rows = list(zip(samples, tokens, strict=True))
        self.name, self.time, self.eps = f"{parent.name}, one token", parent.time, parent.eps
        at = torch.tensor(samples, device=context.device), torch.tensor(tokens, device=context.device)
        self._z0 = parent.initial_state().detach()[at]
        self._force = parent.rows_force(*at, self._context)

    def force(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return F_t of every row's own token t, ``[row, channel]``.

        Raises:
            DyneqError: If a context is given: the earlier tokens are held already.
        """
        if context is not None:
            self.require_causal("a force with a context")
        return self._force(z)

    def initial_state(self) -> Tensor:
        """Return the input of every row's token ``[row, channel]``."""
        return self._z0

    def select(self, samples: Tensor) -> "TokenSystem":
        """Return some of the rows, indices ``[k]``."""
        rows = [self.rows[i] for i in samples.tolist()]
        part = TokenSystem(self.parent, self._context, [s for s, _ in rows], [t for _, t in rows])
        part.eps = self.eps
        return part
