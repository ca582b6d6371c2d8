"""Penalties by name: each the differentiable measure a probe reports, taken at a fixed state, and its gradient.

A penalty added here is known to ``decompose`` and to the trainer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.errors import DyneqError, UsageError, nearest
from dyneq.gradients.base import Grouped, ParameterList
from dyneq.probes.branch_norm import ALL, branch_jacobian_norm
from dyneq.probes.residual_measure import resreg
from dyneq.systems.protocol import System

Measure = Callable[[System, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Penalty:
    """A measure that is used as a penalty.

    Attributes:
        measure: From a system, a state ``[sample, ...]`` and a source of random vectors to a scalar, the mean over
            samples, differentiable in the parameters.
        weight: What it is multiplied with where a spec states no weight.
        random: Whether it draws random vectors, so that one value is an estimate.
        what: What it measures.
        units: Its units.
    """

    measure: Measure
    weight: float
    random: bool
    what: str
    units: str


def _resreg(system: System, z: Tensor, generator: torch.Generator) -> Tensor:
    return resreg(system, z).mean()


def _jacreg(system: System, z: Tensor, generator: torch.Generator) -> Tensor:
    return branch_jacobian_norm(system, z, generator)[ALL].mean()


PENALTIES = {
    "resreg": Penalty(_resreg, 0.2, False, "squared step residual", "1"),
    "jacreg": Penalty(_jacreg, 0.1, True, "norm_F of the Jacobian of the branches", "1/time"),
}


def parse_penalty(spec: str) -> tuple[str, float]:
    """Return name and weight of a spec such as ``jacreg:0.1``; the default weight where it states none.

    Raises:
        UsageError: If there is no such penalty, or the weight is no positive number.
    """
    name, colon, text = (part.strip() for part in spec.partition(":"))
    if name not in PENALTIES:
        raise UsageError(f"there is no penalty called {name!r}{nearest(name, PENALTIES)}")
    if not colon:
        return name, PENALTIES[name].weight
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UsageError(
            f"the weight of a penalty is a positive number, but {spec!r} states {text!r}; write it like {name}:0.1"
        )
    return name, weight


def penalty_gradient(
    system: System, name: str, z: Tensor, generator: torch.Generator, parameters: ParameterList
) -> tuple[Tensor, Grouped]:
    """Return a penalty's value, a scalar, and its gradient with respect to the parameters, the state held fixed.

    Parameters it does not depend on have the gradient 0.

    Args:
        system: The system, bound while gradients were enabled.
        name: A penalty of :data:`PENALTIES`.
        z: State ``[sample, ...]``.
        generator: Source of random vectors.
        parameters: The system's parameters.

    Raises:
        DyneqError: If the system has not what the penalty needs, or its force cannot be differentiated as often.
    """
    groups = system.parameter_groups()
    with torch.enable_grad():
        try:
            value = PENALTIES[name].measure(system, z.detach(), generator)
            found: tuple[Tensor | None, ...] = (None,) * len(parameters.tensors)
            if value.requires_grad:
                found = torch.autograd.grad(value, parameters.tensors, allow_unused=True, retain_graph=True)
        except RuntimeError as error:
            if "derivative for" not in str(error):
                raise
            raise DyneqError(
                f"the gradient of {name} needs a second derivative of {system.name} that torch does not have "
                f"({str(error).splitlines()[0].rstrip('.')}); use the plain form of attention"
            ) from error
    values = iter(found)
    out: Grouped = {}
    for group, members in groups.items():
        out[group] = {}
        for key, parameter in members.items():
            new = next(values)
            out[group][key] = torch.zeros_like(parameter, requires_grad=False) if new is None else new.detach()
    return value.detach(), out
