"""A torch RNN, GRU or LSTM cell at constant input, as a map of its state.

The cells' formulas are written out from their weights: torch's fused kernels on accelerators have no forward-mode
derivative. Formulas and gate order: documentation of torch.nn.RNNCell, GRUCell and LSTMCell.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from dyneq.errors import DyneqError
from dyneq.systems.protocol import System, Time

Cell = nn.RNNCell | nn.GRUCell | nn.LSTMCell
Step = Callable[[Cell, Tensor, Tensor], Tensor]


def _gates(cell: Cell, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    return functional.linear(x, cell.weight_ih, cell.bias_ih), functional.linear(h, cell.weight_hh, cell.bias_hh)


def _rnn(cell: Cell, x: Tensor, h: Tensor) -> Tensor:
    given, recurrent = _gates(cell, x, h)
    return torch.relu(given + recurrent) if cell.nonlinearity == "relu" else torch.tanh(given + recurrent)


def _gru(cell: Cell, x: Tensor, h: Tensor) -> Tensor:
    given, recurrent = _gates(cell, x, h)
    (xr, xu, xn), (hr, hu, hn) = given.chunk(3, -1), recurrent.chunk(3, -1)
    reset, update = torch.sigmoid(xr + hr), torch.sigmoid(xu + hu)
    new = torch.tanh(xn + reset * hn)
    return new + update * (h - new)


def _lstm(cell: Cell, x: Tensor, state: Tensor) -> Tensor:
    h, c = state.chunk(2, -1)
    given, recurrent = _gates(cell, x, h)
    i, f, g, o = (given + recurrent).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], -1)


STEPS: dict[type, Step] = {nn.RNNCell: _rnn, nn.GRUCell: _gru, nn.LSTMCell: _lstm}


class CellSystem(System):
    """A recurrent cell fed the same input at every step; its state is h, or (h, c) side by side for an LSTM.

    Args:
        cell: The cell, with its weights as they are now.
        x: Constant input ``[sample, input]``.
        h0: Start ``[sample, hidden]`` (``[sample, 2 hidden]`` for an LSTM).
    """

    time = Time.MAP
    eps = 1.0

    def __init__(self, cell: Cell, x: Tensor, h0: Tensor) -> None:
        self.cell, self.x, self._h0 = cell, x, h0
        self.name = type(cell).__name__
        self._step = STEPS[type(cell)]

    def initial_state(self) -> Tensor:
        """Return the start ``[sample, hidden]``."""
        return self._h0

    def force(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return cell(x, z) - z ``[sample, hidden]``.

        Raises:
            DyneqError: If a context is given: a cell has no tokens.
        """
        if context is not None:
            self.require_causal("a force with a context")
        return self._step(self.cell, self.x, z) - z

    def select(self, samples: Tensor) -> "CellSystem":
        """Return the same cell on some of the inputs, indices ``[k]``."""
        return CellSystem(self.cell, self.x[samples], self._h0[samples])

    def parameter_groups(self) -> dict[str, dict[str, Tensor]]:
        """Return the weights and biases of the groups ``input`` and ``recurrent``."""
        named = dict(self.cell.named_parameters())
        return {
            "input": {name: p for name, p in named.items() if name.endswith("_ih")},
            "recurrent": {name: p for name, p in named.items() if name.endswith("_hh")},
        }


def from_cell(cell: nn.Module, x: Tensor, h0: Tensor | tuple[Tensor, Tensor] | None = None) -> System:
    """Return the map ``h -> cell(x, h)`` of a recurrent cell at constant input.

    Args:
        cell: A torch.nn.RNNCell, GRUCell or LSTMCell.
        x: Constant input ``[sample, input]``.
        h0: Start ``[sample, hidden]``, for an LSTM the pair (h, c); zeros if None. The state of an LSTM system is h and
            c side by side, ``[sample, 2 hidden]``.

    Returns:
        A system with ``time`` map.

    Raises:
        DyneqError: If the module is not such a cell, or a shape or dtype does not fit it.
    """
    if type(cell) not in STEPS or not isinstance(cell, nn.RNNCell | nn.GRUCell | nn.LSTMCell):
        raise DyneqError(
            f"a torch.nn.RNNCell, GRUCell or LSTMCell was expected, but got {type(cell).__name__}; pass one "
            "layer's cell, or give any other step to dyneq.System.from_map"
        )
    kind, dtype = type(cell).__name__, cell.weight_hh.dtype
    if x.ndim != 2 or x.shape[1] != cell.input_size or not x.shape[0] or x.dtype != dtype:
        raise DyneqError(
            f"the input of this {kind} should have shape [sample, {cell.input_size}] and {dtype}, "
            f"but has {list(x.shape)} and {x.dtype}; pass one row a sample"
        )
    lstm = isinstance(cell, nn.LSTMCell)
    shape = (x.shape[0], cell.hidden_size)
    given: tuple[Tensor, ...]
    if h0 is None:
        given = (x.new_zeros(shape),) * (2 if lstm else 1)
    else:
        given = tuple(h0) if isinstance(h0, tuple | list) else (h0,)
    if len(given) != (2 if lstm else 1) or any(h.shape != shape or h.dtype != dtype for h in given):
        raise DyneqError(
            f"the start of this {kind} should be {'a pair (h, c) of tensors' if lstm else 'one tensor'} of shape "
            f"{list(shape)} and {dtype}, but is {', '.join(f'{list(h.shape)} of {h.dtype}' for h in given)}; "
            "leave it out to start from zero"
        )
    return CellSystem(cell, x, torch.cat(given, dim=-1))
