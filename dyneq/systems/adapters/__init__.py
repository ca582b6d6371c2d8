"""Making a System of what a user already has: a map, a right-hand side, a torch cell, a torchdeq functor."""

from dyneq.systems.adapters.cell import CellSystem, from_cell
from dyneq.systems.adapters.function import FunctionSystem, from_map, from_ode
from dyneq.systems.adapters.functor import FunctorSystem, from_torchdeq

__all__ = ["CellSystem", "FunctionSystem", "FunctorSystem", "from_cell", "from_map", "from_ode", "from_torchdeq"]
