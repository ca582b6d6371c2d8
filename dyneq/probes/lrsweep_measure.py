"""One step along each gradient at each learning rate: the loss of every sample, relaxed again at the new weights."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.relax import relax
from dyneq.dynamics.status import Status
from dyneq.errors import DyneqError
from dyneq.gradients.base import Grouped, Mark
from dyneq.gradients.bptt import Bptt, BpttParams
from dyneq.probes.base import Progress
from dyneq.probes.gradient_specs import Entry
from dyneq.probes.stepped_weights import require_block, stepped
from dyneq.probes.update_batches import Usable, embedded, estimate, usable_samples
from dyneq.systems.block import BoundBlock
from dyneq.systems.protocol import System

Array = NDArray[np.float64]
#: Roles of samples.
BATCH, HELDOUT, LEFT_OUT = "batch", "heldout", "left out"


@dataclass
class Sweep:
    """What was measured; NaN where there is nothing: samples left out, gradients refused.

    Attributes:
        entries: The gradients ``[estimator]``.
        lr: Learning rates ``[lr]``, ascending.
        role: Role of every sample ``[sample]``.
        status: How the relaxation of each sample ended before any step ``[sample]``.
        base_loss: Loss ``[sample]`` before the step, after ``depth`` steps of relaxation.
        base_residual: Force residual there.
        loss: Loss ``[estimator, lr, sample]`` after the step, relaxed again.
        residual: Force residual there.
        diverged: Whether the relaxation blew up or the loss is not finite there, bool.
        norm: Norm of each gradient ``[estimator]``.
        scale: Factor its steps were multiplied with.
        inner: Its inner product with the exact gradient of the loss that is measured.
        exact_norm: Norm of that gradient.
        refusal: Why a gradient gave nothing; empty where it did.
        marks: Which samples a reservation applies to, bool ``[estimator, sample]``.
        cost: Forces each gradient took, NaN where it does not say.
        seconds: Wall time of each gradient.
        depth: Steps of the relaxation.
    """

    entries: list[Entry]
    lr: Array
    role: list[str]
    status: list[Status]
    base_loss: Array
    base_residual: Array
    loss: Array
    residual: Array
    diverged: NDArray[np.bool_]
    norm: Array
    scale: Array
    inner: Array
    exact_norm: float
    refusal: list[str]
    marks: dict[Mark, NDArray[np.bool_]]
    cost: Array
    seconds: Array
    depth: int


def sweep(
    system: System,
    entries: Sequence[Entry],
    lr: Sequence[float],
    *,
    normalised: bool,
    depth: int,
    samples: int | None,
    heldout: float,
    seed: int,
    progress: Progress,
) -> Sweep:
    """Step along every gradient of one batch at every learning rate.

    Args:
        system: A bound block with a loss.
        entries: The gradients; the first is what the others are scaled to.
        lr: Learning rates, ascending.
        normalised: Whether steps have the length of the first gradient's.
        depth: Steps of every relaxation after which a loss is taken.
        samples: How many samples to use; all if None.
        heldout: Share of them that is only evaluated.
        seed: Shuffles the samples.
        progress: Told how far it is.

    Raises:
        DyneqError: If the system is no block, has no gradient, or the first gradient cannot be computed.
    """
    whole = require_block(system, "a sweep over learning rates")
    progress("relaxation before the step", 0.0)
    found = usable_samples(whole, samples, depth, torch.Generator().manual_seed(seed), 1)
    batch, others, role = _roles(found, heldout)
    part, used = embedded(found.system, batch), torch.cat([batch, others])
    out = _empty(entries, lr, role, found, depth)
    directions = _directions(out, part, batch, normalised, progress)
    evaluated = require_block(found.system.select(used), "a sweep over learning rates")
    base = _evaluate(stepped(evaluated), depth)
    at = used.cpu().numpy()
    out.base_loss[at], out.base_residual[at] = base[0], base[1]
    total = len(entries) * len(lr)
    for e, entry in enumerate(entries):
        direction = directions[e]
        if direction is None:
            continue
        for i, rate in enumerate(lr):
            progress(f"{entry.label}, lr {rate:g}", 0.3 + 0.7 * (e * len(lr) + i) / total)
            values = _evaluate(stepped(evaluated, direction, rate * out.scale[e]), depth)
            out.loss[e, i, at], out.residual[e, i, at], out.diverged[e, i, at] = values
    progress("done", 1.0)
    return out


def _roles(found: Usable, heldout: float) -> tuple[Tensor, Tensor, list[str]]:
    """Return the samples of the gradient, the held-out ones, and the role of every sample."""
    n = len(found.order)
    aside = min(max(round(heldout * n), 1), n - 1) if heldout > 0 else 0
    device = found.relaxation.z.device
    others, batch = (x.sort().values for x in (found.order[:aside], found.order[aside:]))
    role = [LEFT_OUT] * len(found.relaxation.status)
    for index, name in ((batch, BATCH), (others, HELDOUT)):
        for s in index.tolist():
            role[s] = name
    return batch.to(device), others.to(device), role


def _empty(entries: Sequence[Entry], lr: Sequence[float], role: list[str], found: Usable, depth: int) -> Sweep:
    count, width = len(entries), len(role)
    shape = (count, len(lr), width)
    return Sweep(
        entries=list(entries),
        lr=np.array(lr, dtype=np.float64),
        role=role,
        status=found.relaxation.status,
        base_loss=np.full(width, np.nan),
        base_residual=np.full(width, np.nan),
        loss=np.full(shape, np.nan),
        residual=np.full(shape, np.nan),
        diverged=np.zeros(shape, dtype=bool),
        norm=np.full(count, np.nan),
        scale=np.full(count, np.nan),
        inner=np.full(count, np.nan),
        exact_norm=np.nan,
        refusal=[""] * count,
        marks={},
        cost=np.full(count, np.nan),
        seconds=np.zeros(count),
        depth=depth,
    )


def _directions(
    out: Sweep, part: BoundBlock | System, batch: Tensor, normalised: bool, progress: Progress
) -> list[Grouped | None]:
    """Return the gradients, None where one refused, and fill in what is known of them."""
    shared: dict[Any, Any] = {}
    directions: list[Grouped | None] = []
    exact = Bptt(BpttParams(steps=out.depth))
    reference: Grouped | None = None
    for e, entry in enumerate(out.entries):
        progress(f"gradient {entry.label}", 0.3 * e / len(out.entries))
        begun = time.perf_counter()
        try:
            gradient = estimate(part, entry.estimator, shared)
            norm = inner(gradient.parameters, gradient.parameters) ** 0.5
            if not np.isfinite(norm):
                raise DyneqError("its gradient is not finite; take fewer steps, another estimator or another snapshot")
            if normalised and norm == 0:
                raise DyneqError("its gradient is zero, so it has no direction; use --direction raw")
        except DyneqError as refused:
            if e == 0:
                raise DyneqError(f"the first gradient, {entry.label}, cannot be computed: {refused}") from refused
            out.refusal[e] = str(refused)
            directions.append(None)
            continue
        finally:
            out.seconds[e] = time.perf_counter() - begun
        directions.append(gradient.parameters)
        out.norm[e] = norm
        out.scale[e] = out.norm[0] / norm if normalised else 1.0
        out.cost[e] = np.nan if gradient.cost is None else gradient.cost
        for mark, where in gradient.marks.items():
            flags = out.marks.setdefault(mark, np.zeros((len(out.entries), len(out.role)), dtype=bool))
            flags[e, batch.cpu().numpy()] = where.cpu().numpy()
        if isinstance(entry.estimator, Bptt) and entry.depth == out.depth:
            reference = gradient.parameters
    if reference is None:
        reference = exact.gradient(part).parameters
    out.exact_norm = inner(reference, reference) ** 0.5
    for e, direction in enumerate(directions):
        if direction is not None:
            out.inner[e] = inner(direction, reference)
    return directions


def inner(a: Grouped, b: Grouped) -> float:
    """Return the inner product of two gradients, in double precision."""
    parts = [(x.double() * b[g][n].double()).sum() for g, members in a.items() for n, x in members.items()]
    return float(torch.stack(parts).sum())


def _evaluate(system: BoundBlock, depth: int) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return loss, force residual and whether it diverged, ``[sample]``, after a relaxation."""
    with torch.no_grad():
        relaxed = relax(system, depth)
        loss = system.loss(relaxed.z)
    gone = torch.tensor([s is Status.DIVERGED for s in relaxed.status]) | ~torch.isfinite(loss).cpu()
    return _numbers(loss), _numbers(relaxed.residuals.force), gone.numpy()


def _numbers(x: Tensor) -> Array:
    found: Array = x.detach().double().cpu().numpy()
    return found
