"""Gradients of the task and of penalties on the same disjoint batches, reduced to their inner products."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.status import Status
from dyneq.errors import DyneqError, UsageError
from dyneq.gradients.base import Grouped, Mark, ParameterList
from dyneq.probes.base import Progress
from dyneq.probes.gradient_specs import Entry
from dyneq.probes.penalties.base import Penalty
from dyneq.probes.penalties.contribution import bare_gradient, grouped_norm, task_scaled
from dyneq.probes.update_batches import Usable, embedded, usable_samples
from dyneq.systems.protocol import System

Array = NDArray[np.float64]


@dataclass
class Parts:
    """What was measured.

    Attributes:
        task: The estimator of the task's gradient.
        names: Penalties ``[penalty]``.
        what: What each measures, with units.
        weights: Their weights.
        draws: Gradients each was averaged over: those of different random vectors, 1 where it draws none.
        groups: Group of every parameter ``[parameter]``.
        parameters: Names ``[parameter]``.
        gram: Inner products ``[parameter, batch, row, row]`` of the rows task, draws of the first penalty, and so on,
            without weights; those of a penalty scaled to the task's gradient are scaled.
        values: Value of every penalty ``[penalty, batch]``, mean over draws.
        loss: Loss ``[sample]`` the task's gradient was taken at, NaN for samples left out.
        force_residual: Force residual ``[sample]`` there.
        free_residual: Force residual ``[sample]`` at the state of the penalties, after ``t1`` steps.
        marks: Which samples a reservation applies to, bool ``[sample]``.
        batch: Batch of every sample ``[sample]``, -1 for those left out.
        status: How its relaxation ended ``[sample]``.
        t1: Steps of the relaxation.
    """

    task: Entry
    names: list[str]
    what: list[str]
    weights: Array
    draws: list[int]
    groups: list[str]
    parameters: list[str]
    gram: Array
    values: Array
    loss: Array
    force_residual: Array
    free_residual: Array
    marks: dict[Mark, NDArray[np.bool_]]
    batch: NDArray[np.int64]
    status: list[Status]
    t1: int


def measure(
    system: System,
    task: Entry,
    penalties: Sequence[Penalty],
    *,
    batches: int,
    samples: int | None,
    draws: int,
    seed: int,
    progress: Progress,
) -> Parts:
    """Take the gradients of the task and of the penalties on every batch.

    Args:
        system: A system with a loss and parameters.
        task: The estimator of the task's gradient.
        penalties: The penalties.
        batches: Number of disjoint batches.
        samples: How many samples to use; all if None.
        draws: Random vectors a penalty that draws any is averaged over.
        seed: Deals the samples and draws the vectors.
        progress: Told how far it is.

    Raises:
        UsageError: If there are fewer samples than batches.
        DyneqError: If the system has no gradient or not what a penalty needs, or too many samples diverge.
    """
    count = system.samples if samples is None else min(samples, system.samples)
    if batches > count:
        raise UsageError(
            f"{batches} disjoint batches need as many samples, but {count} are used; ask for fewer --batches or more "
            "samples (--batch, --samples)"
        )
    generator = torch.Generator().manual_seed(seed)
    progress(f"free relaxation of {task.depth} steps", 0.0)
    found = usable_samples(system, samples, task.depth, generator, batches)
    ParameterList(found.system)  # refuses what has no gradient before anything else is computed
    size = len(found.order) // batches
    groups, names = _names(found.system)
    many = [draws if penalty.random else 1 for penalty in penalties]
    width = len(found.relaxation.status)
    out = Parts(
        task=task,
        names=[penalty.name for penalty in penalties],
        what=[f"{penalty.what}, {penalty.units}" for penalty in penalties],
        weights=np.array([penalty.weight for penalty in penalties]),
        draws=many,
        groups=groups,
        parameters=names,
        gram=np.full((len(names), batches, 1 + sum(many), 1 + sum(many)), np.nan),
        values=np.full((len(many), batches), np.nan),
        loss=np.full(width, np.nan),
        force_residual=np.full(width, np.nan),
        free_residual=found.relaxation.residuals.force.double().cpu().numpy(),
        marks={},
        batch=np.full(width, -1, dtype=np.int64),
        status=found.relaxation.status,
        t1=task.depth,
    )
    for b in range(batches):
        progress(f"batch {b + 1} of {batches}", (b + 0.5) / (batches + 1))
        _batch(out, found, penalties, found.order[b * size : (b + 1) * size].sort().values, b, generator)
    progress("done", 1.0)
    return out


def _batch(
    out: Parts, found: Usable, penalties: Sequence[Penalty], index: Tensor, b: int, generator: torch.Generator
) -> None:
    """Fill in one batch."""
    at = index.numpy()
    where = index.to(found.relaxation.z.device)
    part, z = embedded(found.system, where), found.relaxation.z[where]
    gradient = out.task.estimator.gradient(part)
    out.batch[at] = b
    out.loss[at] = gradient.loss.double().cpu().numpy()
    out.force_residual[at] = gradient.diagnostics["force_residual"].double().cpu().numpy()
    for mark, flags in gradient.marks.items():
        out.marks.setdefault(mark, np.zeros(len(out.batch), dtype=bool))[at] = flags.cpu().numpy()
    rows: list[Grouped] = [gradient.parameters]
    task_norm = grouped_norm(gradient.parameters)
    for p, (penalty, many) in enumerate(zip(penalties, out.draws, strict=True)):
        values = []
        for _ in range(many):
            bare = bare_gradient(penalty, part, z, generator)
            values.append(float(bare.value))
            rows.append(task_scaled(bare, task_norm) if penalty.params.scale == "task" else bare.parameters)
        out.values[p, b] = np.mean(values)
    for r, row in enumerate(rows):
        if not all(bool(torch.isfinite(v).all()) for members in row.values() for v in members.values()):
            words = ["the task", *np.repeat(out.names, out.draws)][r]
            raise DyneqError(
                f"the gradient of {words} is not finite on batch {b + 1}; take fewer steps, another estimator or an "
                "earlier snapshot"
            )
    keys = [(g, n) for g, members in rows[0].items() for n in members]
    for k, (g, n) in enumerate(keys):
        flat = torch.stack([row[g][n].flatten() for row in rows]).double()
        out.gram[k, b] = (flat @ flat.T).cpu().numpy()


def _names(system: System) -> tuple[list[str], list[str]]:
    """Return group and name of every parameter, names made unique by their group."""
    keys = [(g, n) for g, members in system.parameter_groups().items() for n in members]
    own = [n for _, n in keys]
    return [g for g, _ in keys], [f"{g}/{n}" if own.count(n) > 1 else n for g, n in keys]


def combined(found: Parts) -> Array:
    """Return the inner products ``[parameter, batch, part, part]`` of the update's parts: task, weighted penalties."""
    rows = np.repeat(np.arange(1, 1 + len(found.draws)), found.draws)
    mixing = np.zeros((1 + len(found.draws), found.gram.shape[-1]))
    mixing[0, 0] = 1.0
    mixing[rows, np.arange(1, 1 + len(rows))] = (found.weights / found.draws)[rows - 1]
    products: Array = mixing @ found.gram @ mixing.T
    return products


def draw_noise(found: Parts, penalty: int) -> Array:
    """Return the share of a penalty's squared norm that random vectors put there, ``[parameter, batch]`` as a pair.

    With D draws, the mean of their squared norms minus the mean of their inner products, over D, is what the squared
    norm of their mean exceeds that of the expected gradient by.

    Args:
        found: What was measured.
        penalty: Which penalty.

    Returns:
        Excess and squared norm of the mean, ``[2, parameter, batch]``; NaN for a single draw.
    """
    first = 1 + sum(found.draws[:penalty])
    many = found.draws[penalty]
    own = found.gram[:, :, first : first + many, first : first + many]
    whole = own.mean((-2, -1))
    if many < 2:
        return np.stack([np.full_like(whole, np.nan), whole])
    each = np.diagonal(own, axis1=-2, axis2=-1).mean(-1)
    between = (own.sum((-2, -1)) - many * each) / (many * (many - 1))
    return np.stack([(each - between) / many, whole])
