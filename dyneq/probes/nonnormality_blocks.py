"""What is computed of explicit blocks: growth of their powers, Kreiss bounds, pseudospectra."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.nonnormality import Blocks
from dyneq.linalg.dense_growth import flow_growth, power_growth
from dyneq.linalg.growth import transient_growth
from dyneq.linalg.kreiss import kreiss_lower_bound
from dyneq.linalg.pseudospectra import pseudospectral_abscissa, smallest_singular_values
from dyneq.probes.nonnormality_stability import Stability

#: Floating point operations that the growth of all token blocks may take; beyond it is left out.
GROWTH_WORK = 2e12
#: How often the frame of a contour plot is widened until the largest level lies within.
WIDENINGS = 16


def chosen_blocks(
    blocks: Blocks, rank: str, growth: NDArray[np.float64] | None, count: int, token: int | None
) -> NDArray[np.int64]:
    """Return the blocks to look at closely, the most wanted first.

    Args:
        blocks: All of them.
        rank: ``growth`` (those with none, being unstable, last), ``departure`` (relative to the norm) or ``rightmost``.
        growth: Growth of every block; where it is not known ``departure`` takes its place.
        count: How many.
        token: Only blocks of this token; None for all.
    """
    every = np.arange(len(blocks.matrix), dtype=np.int64)
    if token is not None:
        every = every[every % blocks.tokens == token]
    found = blocks.departure
    if rank == "rightmost":
        key = found.values.real.max(axis=1)
    else:
        key = found.relative if growth is None or rank == "departure" else np.where(np.isnan(growth), -np.inf, growth)
    return every[np.argsort(-key[every], kind="stable")][:count]


def _map_of(matrix: Tensor, eps: float) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype) + eps * matrix


def _contracts(blocks: Blocks, eps: float) -> NDArray[np.bool_]:
    """Return which blocks have all computed multipliers inside the unit circle."""
    return np.asarray(np.abs(1 + eps * blocks.departure.values).max(axis=1) < 1)


def block_growth(
    blocks: Blocks, eps: float, horizon: int
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_] | None]:
    """Return the largest norm(M_tt^n) of every token block and its n; NaN where it is unbounded.

    Also which blocks were shown to be stable by a power that contracts. Nothing and None where it would take too long.
    """
    count, n = blocks.matrix.shape[:2]
    if 4.0 * count * n**3 * horizon > GROWTH_WORK:
        return {}, None
    value, steps, complete = (np.full(count, np.nan) for _ in range(3))
    contracts = np.zeros(count, dtype=bool)
    which = _contracts(blocks, eps)
    if which.any():
        found = power_growth(_map_of(blocks.matrix[torch.from_numpy(which)], eps), horizon)
        value[which], steps[which], complete[which] = found.value, found.steps, found.complete
        contracts[which] = found.contracts
    return {"token_growth": value, "token_growth_step": steps, "token_growth_complete": complete}, contracts


def sample_growth(
    linearization: Linearization,
    blocks: Blocks | None,
    stable: Stability,
    contracts: NDArray[np.bool_] | None,
    eps: float,
    horizon: int,
    generator: torch.Generator,
) -> tuple[dict[str, Any], NDArray[np.float64], int]:
    """Return the largest norm(M^n) of the whole of every sample that is not unstable, and its curve over n.

    Args:
        linearization: J.
        blocks: Explicit blocks; where they are the whole samples, the growth is that of the matrices.
        stable: Which samples have bounded growth, by their eigenvalues.
        contracts: Which token blocks were shown to be stable otherwise; None if that is not known.
        eps: Step size.
        horizon: Largest n.
        generator: Randomness of the search.

    Returns:
        The variables, the curves ``[sample, horizon + 1]``, and products with the batch.
    """
    products = 0
    samples = linearization.z.shape[0]
    value, steps, residual = (np.full(samples, np.nan) for _ in range(3))
    curve = np.full((samples, horizon + 1), np.nan)
    status = np.full(samples, "unbounded", dtype=object)
    look = ~stable.map_unstable
    shown = np.zeros(samples, dtype=bool)
    if contracts is not None:
        # the spectrum of a causal sample is that of its token blocks
        shown = np.asarray(contracts.reshape(samples, -1).all(axis=1))
    which = torch.from_numpy(np.flatnonzero(look))
    if blocks is not None and not blocks.per_token and look.any():
        dense = power_growth(_map_of(blocks.matrix[which], eps), horizon)
        value[look], steps[look], curve[look], residual[look] = dense.value, dense.steps, dense.curve, 0.0
        words = np.where(dense.complete, "complete", np.where(dense.steps == horizon, "at horizon", "lower bound"))
        status[look] = words.astype(object)
        shown[look] = dense.contracts
    elif look.any():
        whole = linearization if look.all() else _part(linearization, which)
        found = transient_growth(
            whole.whole, horizon, generator=generator, eps=eps, part=lambda i: _part(whole, i).whole
        )
        products = int(np.ceil(found.products * look.mean()))
        value[look], steps[look], curve[look], residual[look] = found.value, found.steps, found.curve, found.residual
        status[look] = np.where(found.at_horizon, "at horizon", "lower bound").astype(object)
    unsure = look & ~(stable.map_stable | shown)
    status[unsure] = "stability undetermined"
    variables = {"growth": value, "growth_step": steps, "growth_residual": residual, "growth_status": status}
    return variables, curve, products


def _part(linearization: Linearization, index: Tensor) -> Linearization:
    at = index.to(linearization.z.device)
    return Linearization(linearization.system.select(at), linearization.z[at])


def analyse_blocks(
    blocks: Blocks,
    chosen: NDArray[np.int64],
    *,
    flow: bool,
    eps: float,
    levels: tuple[float, ...],
    grid: int,
    horizon: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return Kreiss bounds, growth and pseudospectral abscissas of some blocks, and sigma_min on a grid for the first.

    Args:
        blocks: All blocks.
        chosen: Those looked at.
        flow: Whether J is that of a flow; otherwise everything belongs to the map 1 + J.
        eps: Step size.
        levels: Sizes of the change of J.
        grid: Points along each side.
        horizon: Largest n of the powers; a flow is followed for as long.

    Returns:
        Variables and coordinates.
    """
    count = len(chosen)
    names = ["kreiss", "kreiss_rounding", "block_growth", "block_growth_step", "block_norm"]
    names += ["flow_growth", "flow_growth_time", "block_abscissa"] if flow else ["block_radius"]
    out = {name: np.full(count, np.nan) for name in names}
    alpha, margin = np.full((count, len(levels)), np.nan), np.full((count, len(levels)), np.nan)
    curves = np.full((count, horizon + 1), np.nan)
    eigenvalues = np.full((count, blocks.matrix.shape[1]), np.nan + 0j)
    inside = _contracts(blocks, eps)
    for row, block in enumerate(chosen):
        j, values = blocks.matrix[int(block)], blocks.departure.values[block]
        ordered = values[np.lexsort((-values.imag, -values.real))]
        eigenvalues[row] = ordered if flow else 1 + ordered
        out["block_norm"][row] = float(torch.linalg.matrix_norm(j, 2))
        lead = "block_abscissa" if flow else "block_radius"
        out[lead][row] = values.real.max() if flow else np.abs(1 + values).max()
        bound = kreiss_lower_bound(j if flow else _map_of(j, 1.0), "flow" if flow else "map")
        out["kreiss"][row], out["kreiss_rounding"][row] = bound.value, bound.rounding
        if inside[block]:
            powers = power_growth(_map_of(j, eps)[None], horizon)
            out["block_growth"][row], out["block_growth_step"][row] = powers.value[0], powers.steps[0]
            curves[row] = powers.curve[0]
        if flow:
            for column, level in enumerate(levels):
                found = pseudospectral_abscissa(j, level)
                alpha[row, column], margin[row, column] = found.value, found.margin
            if values.real.max() < 0:
                grown = flow_growth(j, eps * horizon)
                out["flow_growth"][row], out["flow_growth_time"][row] = grown.value, grown.time
    variables: dict[str, Any] = {name: ("block", v) for name, v in out.items()}
    variables["block_curve"] = (("block", "step"), curves)
    variables["eigenvalue"] = (("block", "mode"), eigenvalues)
    if flow:
        variables["pseudospectral_abscissa"] = (("block", "level"), alpha)
        variables["pseudospectral_abscissa_error"] = (("block", "level"), margin)
    first = blocks.matrix[int(chosen[0])]
    first = first if flow else _map_of(first, 1.0)
    real, imag = _frame(first, eigenvalues[0], max(levels), grid, flow)
    plane = real[None, :] + 1j * imag[:, None]
    variables["sigma_min"] = (
        ("imag", "real"),
        smallest_singular_values(first, plane),
    )
    return variables, {"level": np.array(levels), "real": real, "imag": imag, "block": np.arange(count)}


def _frame(
    matrix: Tensor, values: NDArray[np.complex128], level: float, grid: int, flow: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return real and imaginary parts that show all eigenvalues, the largest level and the stability boundary."""
    low, high = values.real.min(), values.real.max()
    top = float(np.abs(values.imag).max())
    if flow:
        high = max(high, 0.0)
    else:
        low, high, top = min(low, -1.0), max(high, 1.0), max(top, 1.0)
    room = 1.2 * level + 0.08 * max(high - low, top)
    for _ in range(WIDENINGS):
        left, right, above = low - room, high + room, top + room
        side = np.linspace(0, 1, 33)
        edge = [left + 1j * above * side, right + 1j * above * side, left + (right - left) * side + 1j * above]
        if smallest_singular_values(matrix, np.concatenate(edge)).min() > level:
            break
        room *= 1.4
    # symmetric about 0, so that half of the points are mirrored
    half = np.linspace(above / grid, above, grid // 2)
    return np.linspace(left, right, grid), np.concatenate([-half[::-1], half])
