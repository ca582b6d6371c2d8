"""What a penalty adds to an update: its gradient, weighted and scaled, on a sub-batch; for trainer and decompose."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.residuals import residuals
from dyneq.errors import DyneqError
from dyneq.gradients.base import Grouped, ParameterList
from dyneq.probes.penalties.base import Penalty
from dyneq.systems.protocol import System


@dataclass(frozen=True)
class Contribution:
    """A term's part of an update.

    Attributes:
        value: Mean of the bare term over its samples, a scalar.
        measure: The probe's measure behind it ``[sample]``, of the samples it was taken over.
        parameters: What is added to the task's gradient.
    """

    value: Tensor
    measure: Tensor
    parameters: Grouped


@dataclass(frozen=True)
class Bare:
    """A penalty and its gradient, neither weighted nor scaled.

    Attributes:
        value: Mean over samples, a scalar.
        measure: The probe's measure behind it ``[sample]``.
        severity: How much of a task-scaled term applies, a scalar in [0, 1].
        parameters: The gradient of :attr:`value`.
    """

    value: Tensor
    measure: Tensor
    severity: Tensor
    parameters: Grouped


def contribution(
    penalty: Penalty, system: System, z: Tensor, task_norm: Tensor, generator: torch.Generator, share: float = 1.0
) -> Contribution:
    """Return what a penalty adds to an update.

    Args:
        penalty: The penalty.
        system: The system, bound while gradients were enabled.
        z: State ``[sample, ...]`` the free relaxation reached.
        task_norm: Norm of the task's whole gradient, a scalar; used by task-scaled terms.
        generator: Draws the sub-batch and random vectors.
        share: Share of the weight that holds now, by schedule.

    Raises:
        DyneqError: If the system has not what the penalty needs, or its force cannot be differentiated as often.
    """
    index = _sub_batch(penalty, system, z, generator)
    if index is not None:
        system, z = system.select(index), z[index]
    bare = bare_gradient(penalty, system, z, generator, training=True)
    return Contribution(bare.value, bare.measure, weighted(penalty, bare, task_norm, share))


def weighted(penalty: Penalty, bare: "Bare", task_norm: Tensor, share: float = 1.0) -> Grouped:
    """Return a penalty's gradient as it is added: scaled, weighted and within its limit.

    Args:
        penalty: The penalty.
        bare: Its value and gradient.
        task_norm: Norm of the task's whole gradient, a scalar.
        share: Share of the weight that holds now, by schedule.
    """
    scaled = task_scaled(bare, task_norm) if penalty.params.scale == "task" else bare.parameters
    found = times(scaled, penalty.weight * share)
    if penalty.params.limit is None:
        return found
    norm = grouped_norm(found)
    # a share above 1 is the guard's: it raises what binds
    limit = penalty.params.limit * max(1.0, share)
    return times(found, (limit * task_norm / torch.where(norm > 0, norm, 1.0)).clamp(max=1.0))


def _sub_batch(penalty: Penalty, system: System, z: Tensor, generator: torch.Generator) -> Tensor | None:
    """Return the samples a penalty is taken over, None for all."""
    count, samples = len(z), penalty.params.samples
    if samples is None or samples >= count:
        return None
    if penalty.params.pick == "random":
        return torch.randperm(count, generator=generator)[:samples].sort().values.to(z.device)
    with torch.no_grad():
        force = residuals(system, z).force
    # what is not finite is the worst there is
    return torch.where(force.isnan(), torch.inf, force).topk(samples).indices.sort().values


def task_scaled(bare: "Bare", task_norm: Tensor) -> Grouped:
    """Return a gradient with the norm of the task's times the penalty's severity; one of 0 stays 0.

    Args:
        bare: The penalty.
        task_norm: Norm of the task's whole gradient, a scalar.
    """
    norm = grouped_norm(bare.parameters)
    return times(
        bare.parameters, torch.where(norm > 0, bare.severity * task_norm / torch.where(norm > 0, norm, 1.0), 0)
    )


def bare_gradient(
    penalty: Penalty, system: System, z: Tensor, generator: torch.Generator, training: bool = False
) -> "Bare":
    """Return an unscaled penalty with its gradient; parameters it does not depend on have the gradient 0.

    Args:
        penalty: The penalty.
        system: The system, bound while gradients were enabled.
        z: State ``[sample, ...]``.
        generator: Draws random vectors.
        training: Whether it is applied in the course of a training, see :meth:`Penalty.apply`.

    Raises:
        DyneqError: If the system has not what the penalty needs, or its force cannot be differentiated as often.
    """
    parameters, groups = ParameterList(system), system.parameter_groups()
    try:
        found = (penalty.apply if training else penalty.measure)(system, z.detach(), generator)
        value = found.value.mean()
        gradients: tuple[Tensor | None, ...] = (None,) * len(parameters.tensors)
        if value.requires_grad:
            gradients = torch.autograd.grad(value, parameters.tensors, allow_unused=True, retain_graph=True)
    except RuntimeError as error:
        if "derivative for" not in str(error):
            raise
        raise DyneqError(
            f"the gradient of {penalty.name} needs a second derivative of {system.name} that torch does not have "
            f"({str(error).splitlines()[0].rstrip('.')}); use the plain form of attention"
        ) from error
    values = iter(gradients)
    out: Grouped = {}
    for group, members in groups.items():
        out[group] = {}
        for key, parameter in members.items():
            new = next(values)
            out[group][key] = torch.zeros_like(parameter, requires_grad=False) if new is None else new.detach()
    return Bare(value.detach(), found.measure, found.severity, out)


def times(gradient: Grouped, factor: Tensor | float) -> Grouped:
    """Return a gradient times a number."""
    return {group: {name: value * factor for name, value in members.items()} for group, members in gradient.items()}


def grouped_norm(gradient: Grouped) -> Tensor:
    """Return the Euclidean norm of a whole gradient, a scalar, also where squares of its entries over- or underflow."""
    tensors = [value for members in gradient.values() for value in members.values()]

    def norm(parts: list[Tensor]) -> Tensor:
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in parts]))

    found = norm(tensors)
    info = torch.finfo(found.dtype)
    if found.isfinite() and found > info.tiny**0.5 / info.eps:
        return found
    largest = torch.stack([value.abs().amax() for value in tensors]).amax()
    return norm([value / largest for value in tensors]) * largest if largest > 0 else largest
