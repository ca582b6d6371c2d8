"""One update shared among processes: each takes its part of the batch, and the mean of their gradients is the whole's.

Every process draws the same batch and takes its rows, so that together they compute what one process would: the same
gradient up to rounding. Estimators give gradients without a call of ``backward``, where the averaging of
DistributedDataParallel hooks in; a module whose output is <theta, g> has the gradient g, and hands it over.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from dyneq.errors import UsageError
from dyneq.gradients.base import Gradient, Grouped, Mark
from dyneq.probes.penalties.base import Penalty
from dyneq.probes.penalties.contribution import Bare, Contribution, bare_gradient, contribution, task_scaled, times
from dyneq.systems.protocol import System
from dyneq.train import parallel

#: Diagnostics that belong to the mean of the loss over the samples at hand, of which a process has fewer.
OF_THE_MEAN = ("adjoint_norm", "loss_gradient_norm", "input_cotangent_norm")


class Whole:
    """The part of a process that trains alone: everything."""

    def own(self, values: Tensor) -> Tensor:
        """Return this process's samples of ``values`` ``[sample, ...]``."""
        return values

    def whole(self, gradient: Gradient) -> Gradient:
        """Return the gradient, loss and diagnostics of the whole batch; the state stays that of the own samples."""
        return gradient

    def mean(self, part: Contribution) -> Contribution:
        """Return the mean over processes of an unscaled term that each took over all its samples."""
        return part

    def contribution(
        self, penalty: Penalty, system: System, z: Tensor, task_norm: Tensor, generator: torch.Generator, share: float
    ) -> Contribution:
        """Return what a penalty adds to an update, see :func:`dyneq.probes.penalties.contribution.contribution`."""
        return contribution(penalty, system, z, task_norm, generator, share)


class Share(Whole):
    """The part of one process among several.

    Sub-batches of penalties are drawn from the whole batch and each process takes those that are its own, so that
    their number is not always the same; random vectors are drawn for the whole batch as well. Both are those that one
    process would have drawn.

    Args:
        group: The processes.
        parameters: The parameters by name; all processes get those of the first.
        samples: Samples of the whole batch.

    Raises:
        UsageError: If the batch cannot be divided evenly.
    """

    def __init__(self, group: parallel.Group, parameters: Mapping[str, nn.Parameter], samples: int) -> None:
        if samples % group.size:
            raise UsageError(
                f"{group.size} processes divide a batch evenly, but run.batch is {samples}; set it to a multiple of "
                f"{group.size}, or start another number of processes"
            )
        self._group, self._parameters = group, dict(parameters)
        self._count = samples // group.size
        self._first = group.rank * self._count
        group.agree()
        self._handing = DistributedDataParallel(_Handing(parameters))

    def own(self, values: Tensor) -> Tensor:
        """Return this process's samples of ``values`` ``[sample, ...]``."""
        return values[self._first : self._first + self._count]

    def whole(self, gradient: Gradient) -> Gradient:
        """Return the gradient, loss and diagnostics of the whole batch; the state stays that of the own samples."""
        loss, size = gradient.loss, self._group.size
        never = torch.zeros(self._count, dtype=torch.bool, device=loss.device)
        rows = [loss, *gradient.diagnostics.values(), *(gradient.marks.get(mark, never) for mark in Mark)]
        gathered = torch.cat(self._group.gather(torch.stack([row.double() for row in rows])), dim=1)
        found = iter(gathered)
        return replace(
            gradient,
            parameters=self._average(gradient.parameters),
            loss=next(found).to(loss.dtype),
            diagnostics={
                name: next(found).to(row.dtype) / (size if name in OF_THE_MEAN else 1)
                for name, row in gradient.diagnostics.items()
            },
            marks={mark: where for mark in Mark if bool((where := next(found).bool()).any())},
        )

    def mean(self, part: Contribution) -> Contribution:
        """Return the mean over processes of an unscaled term that each took over all its samples."""
        packed = torch.cat([part.value.reshape(1), part.measure.to(part.value.dtype)]).double()
        found = torch.stack(self._group.gather(packed))
        value = found[:, 0].mean().to(part.value.dtype)
        return Contribution(value, found[:, 1:].flatten().to(part.measure.dtype), self._average(part.parameters))

    def contribution(
        self, penalty: Penalty, system: System, z: Tensor, task_norm: Tensor, generator: torch.Generator, share: float
    ) -> Contribution:
        """Return what a penalty adds to an update: of the same samples and random vectors as in one process.

        A term's severity is taken to be a mean over its samples, as its value is.
        """
        total, size = len(z) * self._group.size, self._group.size
        index = torch.arange(total)
        wanted = penalty.params.samples
        if wanted is not None and wanted < total:
            index = torch.randperm(total, generator=generator)[:wanted].sort().values
        owners = (index // self._count).bincount(minlength=size).tolist()
        mine, before, widest = owners[self._group.rank], sum(owners[: self._group.rank]), max(owners)
        row = z.new_full((2 + widest,), torch.nan, dtype=torch.float64)
        row[:2] = 0.0
        parameters: Grouped = {
            g: {n: torch.zeros_like(p, requires_grad=False) for n, p in members.items()}
            for g, members in system.parameter_groups().items()
        }
        if mine:
            part, at = system, z
            if mine < len(z):
                at_index = (index[before : before + mine] - self._first).to(z.device)
                part, at = system.select(at_index), z[at_index]
            with _Rows(generator, before, mine, len(index)):
                bare = bare_gradient(penalty, part, at, generator)
            parameters = times(bare.parameters, mine * size / len(index))
            row[0], row[1] = bare.value * mine / len(index), bare.severity * mine / len(index)
            row[2 : 2 + mine] = bare.measure
        rows = self._group.gather(row)
        value, severity = torch.stack([r[:2] for r in rows]).sum(0).to(z.dtype)
        measure = torch.cat([r[2 : 2 + n] for r, n in zip(rows, owners, strict=True)]).to(z.dtype)
        parameters = self._average(parameters)
        if penalty.params.scale == "task":
            parameters = task_scaled(Bare(value, measure, severity, parameters), task_norm)
        self._keep_pace(generator, owners.index(widest))
        return Contribution(value, measure, times(parameters, penalty.weight * share))

    def _average(self, gradient: Grouped) -> Grouped:
        """Return the mean of a gradient over processes."""
        self._group.agree()
        flat = {name: value for members in gradient.values() for name, value in members.items()}
        with parallel.reached(), torch.enable_grad():
            self._handing([flat[name] for name in self._parameters]).backward()
        out: Grouped = {}
        for group, members in gradient.items():
            out[group] = {}
            for name in members:
                found = self._parameters[name].grad
                assert found is not None
                out[group][name] = found
                self._parameters[name].grad = None
        return out

    def _keep_pace(self, generator: torch.Generator, source: int) -> None:
        """Continue all generators from one process's: how much was drawn may depend on the samples."""
        state = generator.get_state()
        with parallel.reached():
            dist.broadcast(state, src=source)
        generator.set_state(state)


def share(parameters: Mapping[str, nn.Parameter], samples: int) -> Whole:
    """Return this process's part of every update.

    Args:
        parameters: The parameters by name.
        samples: Samples of the whole batch.

    Raises:
        UsageError: If the processes cannot divide the batch evenly.
    """
    group = parallel.group()
    return Whole() if group is None else Share(group, parameters, samples)


class _Handing(nn.Module):
    """<theta, g>, whose gradient with respect to theta is g bit for bit."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.parameters_in_order = nn.ParameterList(parameters.values())

    def forward(self, gradient: list[Tensor]) -> Tensor:
        return torch.stack([(p * g).sum() for p, g in zip(self.parameters_in_order, gradient, strict=True)]).sum()


class _Rows(TorchFunctionMode):
    """Within it, what is drawn for every sample from one generator is drawn for all and cut to the own samples.

    Args:
        generator: The generator.
        before: Samples of the processes before this one.
        own: Own samples.
        total: Samples of all.
    """

    _DRAWS: frozenset[Callable[..., Tensor]] = frozenset((torch.rand, torch.randn, torch.randint))

    def __init__(self, generator: torch.Generator, before: int, own: int, total: int) -> None:
        super().__init__()
        self._generator, self._before, self._own, self._total = generator, before, own, total

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self._DRAWS or kwargs.get("generator") is not self._generator:
            return func(*args, **kwargs)
        if "size" in kwargs:
            ahead, size = args, kwargs["size"]
        elif args and isinstance(args[-1], tuple | list):
            ahead, size = args[:-1], args[-1]
        else:  # randn(3, 4)
            ahead, size = (), args
        if not size or size[0] % self._own:
            return func(*args, **kwargs)
        each = size[0] // self._own
        drawn = func(*ahead, size=(self._total * each, *size[1:]), **{k: v for k, v in kwargs.items() if k != "size"})
        return drawn[self._before * each : (self._before + self._own) * each]
