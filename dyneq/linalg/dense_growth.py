"""Largest transient growth of explicit matrices: of powers max norm(M^n), and of flows sup norm(e^{tJ})."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.optimize
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.linalg.explicit import one_square, square_arrays

#: Times at which a flow is looked at between 0 and the time it is known to contract by.
SAMPLES = 400
#: Relative rounding of a norm, in units of the last place for each dimension.
NOISE = 64


@dataclass(frozen=True)
class PowerGrowth:
    """Largest growth of the powers of each matrix of a batch.

    Attributes:
        value: The largest norm(M^n) found `[batch]`, at least 1 (n = 0).
        steps: Its n `[batch]`.
        complete: Whether no larger n can do better `[batch]`: some norm(M^N) was at most 1, so that norm(M^(kN + n)) is
            at most norm(M^n), and every n up to N was looked at. The value is then the largest of all n.
        contracts: Whether some norm(M^N) was below 1 by more than rounding, which proves that the map is stable
            `[batch]`, however ill-conditioned its eigenvalues are.
        curve: norm(M^n) for n = 0 to the horizon `[batch, horizon + 1]`; NaN after it became complete.
    """

    value: NDArray[np.float64]
    steps: NDArray[np.int64]
    complete: NDArray[np.bool_]
    contracts: NDArray[np.bool_]
    curve: NDArray[np.float64]


@torch.no_grad()
def power_growth(matrix: Tensor, horizon: int) -> PowerGrowth:
    """Compute norm(M^n) for every n until it is at most 1, or to the horizon.

    Args:
        matrix: M `[batch, n, n]`, real.
        horizon: Largest n.

    Raises:
        ValueError: If the matrices are not square or not finite, or the horizon is less than 1.
    """
    if horizon < 1:
        raise ValueError(f"Growth needs a horizon of at least one step, got {horizon}.")
    m = torch.from_numpy(square_arrays(matrix, "power_growth"))
    batch, noise = m.shape[0], NOISE * m.shape[1] * np.finfo(np.float64).eps
    curve = np.full((batch, horizon + 1), np.nan)
    curve[:, 0] = 1.0
    complete, contracts = np.zeros(batch, dtype=bool), np.zeros(batch, dtype=bool)
    active, base, power = np.arange(batch), m, m
    for n in range(1, horizon + 1):
        norm = two_norms(power)
        curve[active, n] = norm
        complete[active[norm <= 1 + noise]] = True
        contracts[active[norm < 1 - noise]] = True
        # a power that overflows is not contracting; it ends the look, incomplete
        stay = (norm > 1 + noise) & np.isfinite(norm)
        if not stay.all():
            active, at = active[stay], torch.from_numpy(stay)
            base, power = base[at], power[at]
        if not active.size:
            break
        power = base @ power
    finite = np.where(np.isfinite(curve), curve, -np.inf)
    value = finite.max(axis=1)
    steps = (finite >= (1 - noise) * value[:, None]).argmax(axis=1)  # the first, where rounding alone tells them apart
    return PowerGrowth(value, steps, complete, contracts, curve)


def two_norms(matrix: Tensor) -> NDArray[np.float64]:
    """Return the largest singular value of each real matrix `[batch, n, n]`; infinite where an entry is not finite.

    From the eigenvalues of the Gram matrix, which is accurate for the largest one, and faster.
    """
    size = matrix.abs().amax((1, 2))
    finite = torch.isfinite(size)
    unit = torch.where(finite[:, None, None], matrix, 0.0) / torch.where(finite & (size > 0), size, 1.0)[:, None, None]
    largest = torch.linalg.eigvalsh(unit.mT @ unit)[:, -1].clamp(min=0.0).sqrt()
    return np.asarray(torch.where(finite, largest * size, torch.inf).numpy())


@dataclass(frozen=True)
class FlowGrowth:
    """Largest growth of a flow.

    Attributes:
        value: The largest norm(e^{tJ}) found, at least 1 (t = 0): attained at `time`, hence a lower bound.
        time: Its t.
        contracted_by: A time T with norm(e^{TJ}) <= 1, beyond which nothing larger can come; NaN if none was found.
    """

    value: float
    time: float
    contracted_by: float


def flow_growth(matrix: Tensor, longest: float) -> FlowGrowth:
    """Compute sup over t of norm(e^{tJ}), by matrix exponentials on a grid of times and refinement about its maximum.

    Args:
        matrix: J `[n, n]`, real.
        longest: Latest time looked at.

    Raises:
        ValueError: If the matrix is not square or not finite, or the time is not positive.
    """
    j = one_square(matrix, "flow_growth")
    if not 0 < longest < np.inf:
        raise ValueError(f"Growth of a flow needs a positive finite time, got {longest}.")
    size = float(np.linalg.norm(j, 2))
    if size == 0:
        return FlowGrowth(1.0, 0.0, 0.0)

    def norm(t: float) -> float:
        return float(np.linalg.norm(scipy.linalg.expm(t * j), 2))

    # while t norm(J) is small, the growth is 1 + t omega: times on the scale of 1/norm(J) come first
    step = min(0.25 / size, longest)
    end, contracted = step, float("nan")
    power = scipy.linalg.expm(step * j)
    rounding = 1 + NOISE * j.shape[0] * np.finfo(float).eps
    while True:
        reached = float(np.linalg.norm(power, 2))
        if reached <= rounding:
            contracted = end
            break
        if 2 * end > longest or not np.isfinite(reached) or reached > 1e100:
            break
        power, end = power @ power, 2 * end
    times = np.linspace(0.0, end, SAMPLES + 1)
    stride = scipy.linalg.expm(times[1] * j)
    value, power = [1.0], np.eye(j.shape[0])
    for _ in times[1:]:
        power = stride @ power
        value.append(float(np.linalg.norm(power, 2)))
    best = int(np.argmax(value))
    if best == 0:
        return FlowGrowth(1.0, 0.0, contracted)
    low, high = times[best - 1], times[min(best + 1, SAMPLES)]
    found = scipy.optimize.minimize_scalar(
        lambda t: -norm(t), bounds=(low, high), method="bounded", options={"xatol": 1e-10 * high}
    )
    at, largest = float(found.x), -float(found.fun)
    exact = norm(float(times[best]))
    return FlowGrowth(exact, float(times[best]), contracted) if exact > largest else FlowGrowth(largest, at, contracted)
