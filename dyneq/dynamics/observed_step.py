"""The critical step as observed: where small displacements from a root begin to grow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.displaced import displacement_growth
from dyneq.dynamics.eps_sweep import MOST_STEPS
from dyneq.dynamics.step_bracket import StepBracket, bracket_step, h_of_rate
from dyneq.systems.protocol import System

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ObservedSteps:
    """Growth near roots at several steps, and what it says of the critical step.

    Attributes:
        rate: Growth per step of the fastest block at the steps asked for, nats, ``[eps, sample]``; NaN: not known.
        low: Lower bound of it; -inf: not known.
        high: Upper bound of it; inf: not known.
        brackets: One a sample.
        block: Block that grows fastest at the measured step nearest to the critical one, ``[sample]``.
        forces: Force evaluations, in units of the whole batch.
    """

    rate: Array
    low: Array
    high: Array
    brackets: list[StepBracket]
    block: NDArray[np.int64]
    forces: float


def observe_steps(
    system: System,
    root: Tensor,
    eps: Sequence[float],
    horizon: float,
    *,
    rounds: int,
    generator: torch.Generator,
) -> ObservedSteps:
    """Measure the growth of small displacements at the steps given, then between them to close in on the critical one.

    Args:
        system: A flow.
        root: Roots ``[sample, ...]``.
        eps: Steps.
        horizon: Longest time displacements are followed, n eps.
        rounds: Further steps measured for each sample at most.
        generator: Randomness of the displacements.
    """
    samples = root.shape[0]
    log = _Log(samples)
    forces, rates = 0.0, []
    for e in eps:
        if horizon / e > MOST_STEPS:  # such a step only vanishes in rounding
            rates.append([np.full(samples, x) for x in (np.nan, -np.inf, np.inf)])
            continue
        growth = displacement_growth(system, root, torch.full((samples,), e).double(), horizon, generator=generator)
        forces += growth.forces
        values = [x.cpu().numpy() for x in (growth.rate, growth.low, growth.high)]
        log.add(np.arange(samples), np.full(samples, e), *values)
        rates.append([_largest(values[0]), values[1].max(1), values[2].max(1)])
    for _ in range(rounds):
        wanted = {i: step for i in range(samples) if (step := log.bracket(i).next_step()) is not None}
        if not wanted:
            break
        rows = np.array(list(wanted), dtype=np.int64)
        at = torch.as_tensor(rows, device=root.device)
        steps = torch.tensor(list(wanted.values()), dtype=torch.float64)
        part = system if len(rows) == samples else system.select(at)
        growth = displacement_growth(part, root[at], steps, horizon, generator=generator)
        forces += growth.forces * len(rows) / samples
        log.add(rows, steps.numpy(), *[x.cpu().numpy() for x in (growth.rate, growth.low, growth.high)])
    table = np.array(rates, dtype=np.float64).reshape(len(rates), 3, samples)
    brackets = [log.bracket(i) for i in range(samples)]
    block = np.array([log.block(i, b) for i, b in enumerate(brackets)], dtype=np.int64)
    return ObservedSteps(table[:, 0], table[:, 1], table[:, 2], brackets, block, forces)


def _largest(rate: Array) -> Array:
    return np.where(np.isnan(rate).any(1), np.nan, np.where(np.isnan(rate), -np.inf, rate).max(1))


class _Log:
    """The steps measured for each sample, with bounds of h there and the block that grows fastest."""

    def __init__(self, samples: int) -> None:
        self._rows: list[list[tuple[float, float, float, int]]] = [[] for _ in range(samples)]

    def add(self, rows: NDArray[np.int64], eps: Array, rate: Array, low: Array, high: Array) -> None:
        """Enter the growth ``[row, block]`` measured at one step a row."""
        bottom, top = h_of_rate(low.max(1), eps), h_of_rate(high.max(1), eps)
        fastest = np.where(np.isnan(rate), -np.inf, rate).argmax(1)
        for i, *entry in zip(rows.tolist(), eps, bottom, top, fastest, strict=True):
            self._rows[i].append((float(entry[0]), float(entry[1]), float(entry[2]), int(entry[3])))

    def bracket(self, sample: int) -> StepBracket:
        """Return what the measurements of one sample say."""
        table = np.array([row[:3] for row in self._rows[sample]], dtype=np.float64).reshape(-1, 3)
        return bracket_step(table[:, 0], table[:, 1], table[:, 2])

    def block(self, sample: int, bracket: StepBracket) -> int:
        """Return the fastest block at the measured step nearest to the critical one: above it where one was."""
        rows = self._rows[sample]
        if not rows:
            return -1
        goal = bracket.high if np.isfinite(bracket.high) else max(row[0] for row in rows)
        return min(rows, key=lambda row: abs(row[0] - goal))[3]
