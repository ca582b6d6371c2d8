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

from dyneq.dynamics.residuals import residuals
from dyneq.errors import UsageError
from dyneq.gradients.base import Gradient, Grouped, Mark
from dyneq.probes.penalties.base import Penalty
from dyneq.probes.penalties.contribution import (
    Bare,
    Contribution,
    bare_gradient,
    contribution,
    times,
    weighted,
)
from dyneq.systems.block import BoundBlock, EquilibriumBlock
from dyneq.systems.protocol import System
from dyneq.train import parallel

#: Diagnostics that belong to the mean of the loss over the samples at hand, of which a process has fewer.
OF_THE_MEAN = ("adjoint_norm", "loss_gradient_norm", "input_cotangent_norm")


class Whole:
    """The part of a process that trains alone: everything."""

    def bind(self, block: EquilibriumBlock, tokens: Tensor, targets: Tensor) -> BoundBlock:
        """Return the block bound to this process's samples of a batch, tokens and targets ``[sample, token]``."""
        return block.bind(tokens, targets)

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

    Sub-batches of penalties are chosen from the whole batch and each process takes those that are its own, so that
    their number is not always the same; random vectors are drawn for the whole batch as well. Both are those that one
    process would have drawn. A penalty that remembers its samples from one update to the next is not divided.

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
        self._handing: nn.Module | None = DistributedDataParallel(_Handing(parameters))
        group.at_end(self._release)

    def bind(self, block: EquilibriumBlock, tokens: Tensor, targets: Tensor) -> BoundBlock:
        """Return the block bound to this process's samples of a batch, tokens and targets ``[sample, token]``."""
        self._batch = (block, tokens, targets)
        own = slice(self._first, self._first + self._count)
        return block.bind(tokens[own], targets[own])

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
        index = self._chosen(penalty, system, z, generator)
        remembers = type(penalty).apply is not Penalty.apply
        bare = (self._together if remembers else self._divided)(penalty, system, z, index, generator)
        return Contribution(bare.value, bare.measure, weighted(penalty, bare, task_norm, share))

    def _chosen(self, penalty: Penalty, system: System, z: Tensor, generator: torch.Generator) -> Tensor:
        """Return which samples of the whole batch a penalty is taken over, in their order."""
        total, samples = len(z) * self._group.size, penalty.params.samples
        if samples is None or samples >= total:
            return torch.arange(total)
        if penalty.params.pick == "random":
            return torch.randperm(total, generator=generator)[:samples].sort().values
        with torch.no_grad():
            force = parallel.gathered(residuals(system, z).force)
        return torch.where(force.isnan(), torch.inf, force).topk(samples).indices.sort().values.cpu()

    def _divided(self, penalty: Penalty, system: System, z: Tensor, index: Tensor, generator: torch.Generator) -> Bare:
        """Return a term of which each process measures its own samples."""
        size, rank = self._group.size, self._group.rank
        owners = (index // self._count).bincount(minlength=size).tolist()
        mine, before, widest = owners[rank], sum(owners[:rank]), max(owners)
        row = z.new_full((2 + widest,), torch.nan, dtype=torch.float64)
        row[:2] = 0.0
        parameters: Grouped = {
            g: {n: torch.zeros_like(p, requires_grad=False) for n, p in members.items()}
            for g, members in system.parameter_groups().items()
        }
        if mine:
            part, at = system, z
            if mine < len(z):
                own = self._own(index).to(z.device)
                part, at = system.select(own), z[own]
            with _Rows(generator, before, mine, len(index)):
                bare = bare_gradient(penalty, part, at, generator, training=True)
            parameters = times(bare.parameters, mine * size / len(index))
            row[0], row[1] = bare.value * mine / len(index), bare.severity * mine / len(index)
            row[2 : 2 + mine] = bare.measure
        rows = self._group.gather(row)
        value, severity = torch.stack([r[:2] for r in rows]).sum(0).to(z.dtype)
        measure = torch.cat([r[2 : 2 + n] for r, n in zip(rows, owners, strict=True)]).to(z.dtype)
        parameters = self._average(parameters)
        self._keep_pace(generator, owners.index(widest))
        return Bare(value, measure, severity, parameters)

    def _together(self, penalty: Penalty, system: System, z: Tensor, index: Tensor, generator: torch.Generator) -> Bare:
        """Return a term that remembers its samples, so that all processes measure all of them and remember the same."""
        owners = (index // self._count).bincount(minlength=self._group.size).tolist()
        padded = z.new_zeros((max(owners), *z.shape[1:]))
        own = self._own(index).to(z.device)
        padded[: len(own)] = z[own]
        states = torch.cat([rows[:n] for rows, n in zip(self._group.gather(padded), owners, strict=True)])
        block, tokens, targets = self._batch
        at = index.to(tokens.device)
        bare = bare_gradient(penalty, block.bind(tokens[at], targets[at]), states, generator, training=True)
        parameters = self._average(bare.parameters)
        self._keep_pace(generator, 0)
        value, measure, severity = parallel.agreed((bare.value, bare.measure, bare.severity))
        return Bare(value, measure, severity, parameters)

    def _own(self, index: Tensor) -> Tensor:
        """Return those of some samples that are this process's, counted from its first."""
        return index[(index // self._count) == self._group.rank] - self._first

    def _average(self, gradient: Grouped) -> Grouped:
        """Return the mean of a gradient over processes."""
        self._group.agree()
        assert self._handing is not None
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

    def _release(self) -> None:
        self._handing = None

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
