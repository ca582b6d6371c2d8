"""Newton directions of a causal block as a whole, by factors of its token-diagonal blocks."""

import torch
from torch import Tensor

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.newton import Direction
from dyneq.systems.protocol import System

#: The sweeps end once no token's direction changes by more than this share of it.
ACCURACY = 1e-2


class SubstitutionDirection(Direction):
    """Directions -J^{-1} F of a block lower triangular Jacobian, without forming more than its diagonal blocks.

    Sweeps d <- -D^{-1} (F + (J - D) d), with D the diagonal blocks, are exact after as many as there are tokens.

    Args:
        system: A causal system with states ``[sample, token, channel]``; directions are on flat states ``[sample, n]``.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._shape = system.initial_state().shape
        self._steepness: Tensor | None = None

    @torch.no_grad()
    def refresh(self, z: Tensor) -> None:
        """Factorise the diagonal blocks at ``z``."""
        self._at = Linearization(self._system, z.view(self._shape))
        blocks = self._at.token_blocks()
        self._steepness = torch.linalg.vector_norm(blocks.flatten(1), dim=1)
        self._lu, self._pivots, _ = torch.linalg.lu_factor_ex(blocks)

    @torch.no_grad()
    def solve(self, f: Tensor) -> Tensor:
        """Return -J^{-1} f; not finite where a block is singular, which the line search then rejects."""
        f = f.view(self._shape)
        d = torch.zeros_like(f)
        for _ in range(self._shape[1]):
            # d - D^{-1} (f + J d), the same as the sweep
            step = torch.linalg.lu_solve(self._lu, self._pivots, (f + self._at.matvec(d)).unsqueeze(-1)).squeeze(-1)
            d = d - step
            norm = torch.linalg.vector_norm
            if not bool((norm(step, dim=2) > ACCURACY * norm(d, dim=2)).any()):
                break
        return d.flatten(1)

    def verify(self, f: Tensor) -> Tensor:
        """Return -J^{-1} f; not finite where a block is singular."""
        return self.solve(f)

    @property
    def steepness(self) -> Tensor | None:
        """Frobenius norm of the diagonal blocks together ``[sample]``."""
        return self._steepness
