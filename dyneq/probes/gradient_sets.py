"""Gradients of several estimators on the same disjoint batches, reduced to their inner products.

The samples whose free relaxation diverges are left out, the others are dealt into batches of equal size, and every
estimator sees every batch. Estimators with the same free phase share it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.relax import Relaxation, relax
from dyneq.dynamics.status import Status
from dyneq.errors import DyneqError, UsageError
from dyneq.gradients.base import Gradient, Mark, ParameterList
from dyneq.linalg.hutchinson import random_products
from dyneq.probes.base import Progress
from dyneq.probes.gradient_specs import Entry
from dyneq.probes.update_batches import embedded, estimate
from dyneq.systems.protocol import System

#: Random vectors of the asymmetry at the free state.
VECTORS = 8
#: Entries of a parameter whose products are taken at once in double precision.
CHUNK = 1 << 18

Array = NDArray[np.float64]


@dataclass
class GradientSet:
    """What several estimators gave on the same batches.

    Attributes:
        entries: The estimators ``[estimator]``.
        groups: Group of every parameter ``[parameter]``.
        parameters: Names ``[parameter]``.
        gram: Inner products ``[parameter, estimator, batch, estimator, batch]``; NaN for estimators that refused.
        refusal: Why an estimator gave nothing; empty where it did.
        cost: Forces an estimator took for a batch ``[estimator, batch]``, NaN where it does not say.
        seconds: Wall time ``[estimator]``.
        diagnostics: Numbers by name ``[estimator, sample]``, NaN where an estimator has none.
        marks: Which samples a reservation applies to, bool ``[estimator, sample]``.
        loss: Loss ``[estimator, sample]`` where the gradient was taken, nats per token.
        batch: Batch of every sample ``[sample]``, -1 for those left out.
        status: How the free relaxation of each sample ended ``[sample]``.
        free_residual: Force residual after it ``[sample]``.
        asymmetry: norm(Jv - J^T v)/norm(Jv) there ``[sample]``, mean over random v, NaN for diverged samples.
        asymmetry_error: Its standard error ``[sample]``.
        t1: Depth of that relaxation.
    """

    entries: list[Entry]
    groups: list[str]
    parameters: list[str]
    gram: Array
    refusal: list[str]
    cost: Array
    seconds: Array
    diagnostics: dict[str, Array]
    marks: dict[Mark, NDArray[np.bool_]]
    loss: Array
    batch: NDArray[np.int64]
    status: list[Status]
    free_residual: Array
    asymmetry: Array
    asymmetry_error: Array
    t1: int


@dataclass
class _Batches:
    """The samples that are used and how they are dealt."""

    system: System
    indices: list[Tensor]
    number: NDArray[np.int64]
    relaxation: Relaxation


@dataclass
class _Collected:
    """What is filled batch by batch."""

    samples: int
    entries: int
    diagnostics: dict[str, Array] = field(default_factory=dict)
    marks: dict[Mark, NDArray[np.bool_]] = field(default_factory=dict)

    def add(self, e: int, where: Tensor, gradient: Gradient) -> None:
        at = where.cpu().numpy()
        for name, values in gradient.diagnostics.items():
            held = self.diagnostics.setdefault(name, np.full((self.entries, self.samples), np.nan))
            held[e, at] = values.detach().double().cpu().numpy()
        for mark, values in gradient.marks.items():
            flags = self.marks.setdefault(mark, np.zeros((self.entries, self.samples), dtype=bool))
            flags[e, at] = values.detach().cpu().numpy()


def collect(
    system: System, entries: Sequence[Entry], *, batches: int, samples: int | None, seed: int, progress: Progress
) -> GradientSet:
    """Return the inner products of the gradients of all estimators on all batches.

    Args:
        system: A system with a loss and parameters.
        entries: The estimators, the first one the reference.
        batches: Number of disjoint batches.
        samples: How many samples of the system to use, the first ones; all if None.
        seed: Deals the samples and draws the vectors of the asymmetry.
        progress: Told how far it is.

    Raises:
        UsageError: If there are fewer samples than batches.
        DyneqError: If the system has no gradient, too many samples diverged, or a reference cannot be computed.
    """
    generator = torch.Generator().manual_seed(seed)
    t1 = entries[0].depth
    dealt = _deal(system, batches, samples, t1, generator, progress)
    parameters = ParameterList(dealt.system)  # refuses what has no gradient before anything else is computed
    groups, names, sizes = _names(dealt.system)
    count, width = len(entries), len(dealt.number)
    found = _Collected(width, count)
    like = parameters.tensors[0]
    vectors = [torch.full((count, batches, size), torch.nan, dtype=like.dtype) for size in sizes]
    refusal, cost, seconds = [""] * count, np.full((count, batches), np.nan), np.zeros(count)
    loss = np.full((count, width), np.nan)
    for b, index in enumerate(dealt.indices):
        part, shared = embedded(dealt.system, index), dict[Any, Any]()
        for e, entry in enumerate(entries):
            progress(f"{entry.label}, batch {b + 1} of {batches}", (b * count + e) / (batches * count))
            if refusal[e]:
                continue
            begun = time.perf_counter()
            try:
                gradient = estimate(part, entry.estimator, shared)
            except DyneqError as refused:
                if entry.role == "reference":
                    raise DyneqError(f"the reference {entry.label} cannot be computed: {refused}") from refused
                refusal[e] = str(refused)
                continue
            finally:
                seconds[e] += time.perf_counter() - begun
            found.add(e, index, gradient)
            cost[e, b] = np.nan if gradient.cost is None else gradient.cost
            loss[e, index.cpu().numpy()] = gradient.loss.double().cpu().numpy()
            flat = [p.detach().flatten().cpu() for members in gradient.parameters.values() for p in members.values()]
            _verify_reference(entry, flat, b)
            for store, values in zip(vectors, flat, strict=True):
                store[e, b] = values
    for e, reason in enumerate(refusal):
        if reason:  # what it gave on the batches before is no basis for a number
            for store in vectors:
                store[e] = torch.nan
    progress("inner products", 1.0)
    asymmetry, error = _asymmetry(dealt, generator)
    return GradientSet(
        entries=list(entries),
        groups=groups,
        parameters=names,
        gram=np.stack([_gram(v) for v in vectors]),
        refusal=refusal,
        cost=cost,
        seconds=seconds,
        diagnostics=found.diagnostics,
        marks=found.marks,
        loss=loss,
        batch=dealt.number,
        status=dealt.relaxation.status,
        free_residual=dealt.relaxation.residuals.force.double().cpu().numpy(),
        asymmetry=asymmetry,
        asymmetry_error=error,
        t1=t1,
    )


def _deal(
    system: System, batches: int, samples: int | None, t1: int, generator: torch.Generator, progress: Progress
) -> _Batches:
    """Return the samples dealt into batches of equal size, without those whose free relaxation diverges."""
    count = system.samples if samples is None else min(samples, system.samples)
    if batches > count:
        raise UsageError(
            f"{batches} disjoint batches need as many samples, but {count} are used; ask for fewer --batches or more "
            "samples (--batch, --samples)"
        )
    device = system.initial_state().device
    system = embedded(system, torch.arange(count, device=device))
    progress(f"free relaxation of {t1} steps", 0.0)
    relaxation = relax(system, t1)
    usable = torch.tensor([s is not Status.DIVERGED for s in relaxation.status]).nonzero().flatten()
    if len(usable) < batches:
        raise DyneqError(
            f"the free relaxation of {count - len(usable)} of {count} samples diverged within {t1} steps, too many to "
            f"deal the others into {batches} batches; lower eps, take an earlier snapshot, or ask for fewer batches"
        )
    order = usable[torch.randperm(len(usable), generator=generator)]
    size = len(usable) // batches
    indices = [order[b * size : (b + 1) * size].sort().values for b in range(batches)]
    number = np.full(count, -1, dtype=np.int64)
    for b, index in enumerate(indices):
        number[index.numpy()] = b
    return _Batches(system, [i.to(device) for i in indices], number, relaxation)


def _verify_reference(entry: Entry, flat: list[Tensor], b: int) -> None:
    if entry.role == "reference" and not all(bool(torch.isfinite(v).all()) for v in flat):
        raise DyneqError(
            f"the gradient of the reference {entry.label} is not finite on batch {b + 1}; take a shorter reference, "
            "the adjoint, or an earlier snapshot"
        )


def _names(system: System) -> tuple[list[str], list[str], list[int]]:
    """Return group, name and size of every parameter, names made unique by their group."""
    groups = system.parameter_groups()
    keys = [(g, n) for g, members in groups.items() for n in members]
    repeated = {n for _, n in keys if [m for _, m in keys].count(n) > 1}
    names = [f"{g}/{n}" if n in repeated else n for g, n in keys]
    return [g for g, _ in keys], names, [p.numel() for members in groups.values() for p in members.values()]


def _gram(vectors: Tensor) -> Array:
    """Return the inner products of ``[estimator, batch, entry]`` in float64, a stretch of entries at a time."""
    flat = vectors.flatten(0, 1)
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for part in flat.split(CHUNK, dim=1):
        wide = part.double()
        total += wide @ wide.T
    shape = vectors.shape[:2]
    return total.view(*shape, *shape).numpy()


def _asymmetry(dealt: _Batches, generator: torch.Generator) -> tuple[Array, Array]:
    """Return the asymmetry of J at the free state of every sample that has not diverged, with its error."""
    usable = torch.tensor([s is not Status.DIVERGED for s in dealt.relaxation.status]).nonzero().flatten()
    at = usable.to(dealt.relaxation.z.device)
    whole = Linearization(dealt.system.select(at), dealt.relaxation.z[at]).whole
    with torch.no_grad():
        estimate = random_products(whole, VECTORS, generator=generator).asymmetry()
    value, error = (np.full(len(dealt.number), np.nan) for _ in range(2))
    value[usable.numpy()], error[usable.numpy()] = estimate.value, estimate.error
    return value, error
