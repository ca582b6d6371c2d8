"""What the guard reads off every update, at no cost: residual, loss and gradient norm of the last ones."""

import math
from typing import Any

import numpy as np

from dyneq.train.log import Record

#: Updates a median or a comparison takes at least.
FEW = 5
#: Factor over the largest worst residual of the last updates that is a jump.
JUMP = 3.0
#: Factor over the median gradient norm of the last updates that is a spike: an adjoint through a J that is all but
#: singular, or through a state that never settled. From 1/sqrt(1 - 0.999) on, one gradient is all that Adam's second
#: moment holds.
SPIKE = 30.0


class Pulse:
    """The last updates of a run.

    Args:
        span: How many are remembered.
    """

    def __init__(self, span: int) -> None:
        self._span = max(span, FEW)
        self._residuals: list[float] = []
        self._norms: list[float] = []
        self._losses: list[float] = []
        self._since: list[float] = []
        self.jumped, self.spike = False, ""

    def add(self, record: Record) -> None:
        """Take note of an update."""
        name = "force_residual_t1_max" if "force_residual_t1_max" in record else "force_residual_max"
        residual, norm, loss = float(record[name]), float(record["gradient_norm"]), float(record["loss"])
        self.jumped = len(self._residuals) >= FEW and not residual <= JUMP * max(self._residuals)
        usual = float(np.median(self._norms)) if len(self._norms) >= FEW else math.inf
        usual = usual or math.inf  # over a gradient of exactly 0 there is no ratio
        self.spike = (
            f"the norm of the gradient was {norm:.1e}, {norm / usual:.0f} times what it was before"
            if norm > SPIKE * usual
            else ""
        )
        self._residuals = [*self._residuals, residual][-self._span :]
        self._norms = [*self._norms, norm][-self._span :]
        self._losses = [*self._losses, loss][-FEW:]
        self._since.append(residual)

    @property
    def loss(self) -> float | None:
        """Median loss of the last few batches; None before there were so many."""
        return float(np.median(self._losses)) if len(self._losses) == FEW else None

    def take_residual(self) -> float | None:
        """Return the worst force residual of batches at T1, its median since this was last asked; None if none came."""
        found = float(np.median(self._since)) if self._since else None
        self._since = []
        return found

    def clear(self) -> None:
        """Forget everything, after a jump of the weights."""
        self.restore(([], [], [], []))

    def state(self) -> Any:
        """Return what it remembers."""
        return [list(self._residuals), list(self._norms), list(self._losses), list(self._since)]

    def restore(self, state: Any) -> None:
        """Continue from what :meth:`state` gave."""
        self._residuals, self._norms, self._losses, self._since = (list(part) for part in state)
        self.jumped, self.spike = False, ""
