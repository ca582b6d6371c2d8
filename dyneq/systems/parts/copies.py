"""Copies of modules that differ in a few weights and share all others."""

import copy
from typing import TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def shallow_copy(module: M) -> M:
    """Return a copy that shares parameters and submodules but can be given others without changing the original."""
    made = copy.copy(module)
    # nn.Module keeps these in dictionaries, which copy.copy would share
    made._modules, made._parameters = dict(module._modules), dict(module._parameters)
    return made


def with_weights(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a plain linear map of other weights ``[out, in]``; gradients are tracked where they were, but start anew.

    Args:
        linear: The map whose place it takes, possibly one whose weights are held to a constraint.
        weight: Its weights, possibly of another shape.
        bias: Its bias ``[out]``, or None.
    """
    out_features, in_features = weight.shape
    made = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(made)  # nn.Linear itself would draw weights first
    made.in_features, made.out_features = in_features, out_features
    tracked = any(p.requires_grad for p in linear.parameters())
    made.weight = nn.Parameter(weight.detach(), requires_grad=tracked)
    made.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=tracked))
    return made.train(linear.training)
