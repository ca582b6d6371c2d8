"""dyneq: diagnostics for networks that compute by relaxing to a fixed point.

The names below are imported on first use, so that ``import dyneq`` and ``dyneq --help`` stay free of torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "System": "dyneq.systems.protocol",
    "Structure": "dyneq.systems.protocol",
    "Time": "dyneq.systems.protocol",
    "ThickBlock": "dyneq.systems.thick",
    "ThickConfig": "dyneq.systems.thick",
    "load_checkpoint": "dyneq.systems.checkpoint_io",
    "save_checkpoint": "dyneq.systems.checkpoint_io",
    "relax": "dyneq.dynamics.relax",
    "find_root": "dyneq.dynamics.roots",
    "Linearization": "dyneq.dynamics.linearization",
    "open_checkpoint": "dyneq.catalog.resolve",
    "measure": "dyneq.catalog.measure",
    "open_result": "dyneq.catalog.opening",
    "open_results": "dyneq.catalog.opening",
    "Store": "dyneq.catalog.store",
    "run_probe": "dyneq.probes.registry",
    "plot": "dyneq.probes.registry",
    "summary": "dyneq.probes.registry",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'dyneq' has no attribute {name!r}; it offers {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted(__all__)
