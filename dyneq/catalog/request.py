"""What exactly a result answers: the key under which it is found again."""

import functools
from dataclasses import asdict, dataclass
from typing import Any

from dyneq.catalog import canonical


@dataclass(frozen=True)
class Request:
    """Everything that decides the numbers of a result.

    Attributes:
        checkpoint: SHA-256 of the checkpoint file, which pins weights and evaluation batch.
        probe: Name of the probe.
        version: Its version.
        params: Its parameters, defaults included, as plain values.
        batch: How many samples of the pinned batch.
        eps: Step size; None for a map.
        dtype: Precision, such as ``float64``.
        device: Torch device.
    """

    checkpoint: str
    probe: str
    version: int
    params: dict[str, Any]
    batch: int
    eps: float | None
    dtype: str
    device: str

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of the request."""
        return canonical.digest(asdict(self) | {"eps": None if self.eps is None else float(self.eps)})
