"""Floquet multipliers of a periodic orbit: leading pairs, small ones in logarithms, and by token in causal blocks."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.monodromy import MatrixChain, Monodromy, monodromy
from dyneq.dynamics.orbits import Orbit
from dyneq.dynamics.periodic_qr import LogMultipliers, log_multipliers
from dyneq.dynamics.structure import check_causality
from dyneq.errors import DyneqError, UsageError
from dyneq.linalg.dense import dense_eigenpairs
from dyneq.linalg.krylov_schur import eigenpairs
from dyneq.linalg.result import EigenResult
from dyneq.linalg.targets import LargestMagnitude
from dyneq.systems.protocol import System

#: Most periods that vectors are carried around, with matrices and by steps.
PERIODS, PERIODS_BY_STEPS = 200, 10
#: Most restarts of the Krylov method, each of which costs tens of periods.
RESTARTS = 10
#: Relative distance up to which a directly solved eigenvalue is the multiplier found in logarithms.
MATCHED = 1e-3
#: Error bars a multiplier must be away from modulus 1 for a verdict on stability.
CERTAIN = 3.0


@dataclass(frozen=True)
class Floquet:
    """Leading Floquet multipliers of one orbit, by modulus, largest first, conjugate pairs whole, +imag first.

    Euler's map of a flow is no flow: its orbits have no trivial multiplier. Runge-Kutta steps follow, but for errors
    exponentially small in the step, a flow near the true one (Hairer, Lubich and Wanner, Geometric Numerical
    Integration, chapter IX), and the period is fitted to it. So the trivial multiplier of an orbit that was solved for
    shows how well it closes and what rounding does, but not the error of the discretisation: ``flow_error`` and
    ``log_error`` show that.

    Attributes:
        multipliers: Complex ``[k]``; 0 where the logarithm is below the range of float64.
        log_modulus: log abs(multiplier) ``[k]``, from QR products around the orbit.
        log_error: Estimated error of ``log_modulus`` ``[k]``: from half as many steps, as if of third order, from
            further periods, and from the closure of the orbit. Infinite where half as many steps cannot be taken.
        residual: norm(M v - mu v) for the unit vector v that a direct solver found for it ``[k]``, a backward error;
            NaN where mu is too small for one.
        condition: 1/abs(w^H v) of that pair ``[k]``; NaN where unknown.
        token: Token each multiplier belongs to ``[k]``, or None where the whole sample was taken.
        trivial: Index of the trivial multiplier, the one nearest to 1; -1 for maps, which have none.
        trivial_error: abs(mu - 1) of it; NaN for maps.
        flow_error: norm(M F - F)/norm(F), 0 for the exact flow, whose trivial vector is F; NaN for maps and by token.
        products: Products with the Jacobian, of one vector each.
        method: ``dense`` or ``krylov-schur``.
    """

    multipliers: NDArray[np.complex128]
    log_modulus: NDArray[np.float64]
    log_error: NDArray[np.float64]
    residual: NDArray[np.float64]
    condition: NDArray[np.float64]
    token: NDArray[np.int64] | None
    trivial: int
    trivial_error: float
    flow_error: float
    products: int
    method: str

    @property
    def stable(self) -> bool | None:
        """Whether all but the trivial multiplier lie inside the unit circle; None where error bars leave it open."""
        other = np.arange(len(self.multipliers)) != self.trivial
        shared = np.nan_to_num([self.trivial_error, self.flow_error], nan=0.0).max()
        margin = CERTAIN * np.maximum(self.log_error[other], shared)
        if (self.log_modulus[other] > margin).any():
            return False
        return True if bool((self.log_modulus[other] < -margin).all()) else None


@torch.no_grad()
def floquet(
    system: System, orbit: Orbit, count: int = 6, *, per_token: bool = False, generator: torch.Generator
) -> Floquet:
    """Compute the leading Floquet multipliers of an orbit.

    States of up to 256 numbers, and token blocks of up to 128 channels, have their tangent maps formed; larger ones are
    solved by Krylov-Schur on products around the orbit, without conditions.

    Args:
        system: The system of the orbit, one sample.
        orbit: From :func:`dyneq.dynamics.orbits.shoot`, ``map_orbit`` or ``follow_orbit``.
        count: Multipliers wanted (one more where the last is half of a conjugate pair).
        per_token: Whether to take the products of the token-diagonal blocks of a causal system, so that every
            multiplier has an address; their union over tokens is the spectrum of the whole.
        generator: Randomness of the starts.

    Raises:
        UsageError: If no multiplier is wanted.
        DyneqError: If the orbit is not closed, or ``per_token`` and the system is not causal.
    """
    if count < 1:
        raise UsageError(f"at least one Floquet multiplier must be wanted, but count={count} was given")
    if not orbit.status.good:
        raise DyneqError(
            f"Floquet multipliers belong to a closed orbit, but this one is {orbit.status.value} "
            f"({orbit.status.sentence})"
        )
    if per_token:
        check_causality(system, orbit.z)
    chain = monodromy(system, orbit, orbit.steps, per_token)
    eigen = _direct(chain, count, generator)
    start = _start(eigen, chain, count, generator)
    tol = max(1e-10, 200 * torch.finfo(start.dtype).eps)
    most = PERIODS if isinstance(chain, MatrixChain) else PERIODS_BY_STEPS
    logs = log_multipliers(chain, start, count, most=most, tol=tol)
    products, error = chain.cost, logs.change + orbit.closure + orbit.steps * torch.finfo(start.dtype).eps
    if orbit.scheme == "rk4":
        if orbit.steps % 2:
            error = np.full_like(error, np.inf)
        else:
            half = monodromy(system, orbit, orbit.steps // 2, per_token)
            coarse = log_multipliers(half, start, count, most=most, tol=tol)
            error, products = error + _difference(logs, coarse) / 7, products + half.cost
    flow_error = np.nan
    if orbit.scheme == "rk4" and not per_token:
        force = system.force(orbit.z).reshape(1, -1)
        flow_error, products = float((chain.matvec(force) - force).norm() / force.norm()), max(products, chain.cost)
    return _table(orbit, count, eigen, logs, error, per_token, products, flow_error)


def _direct(chain: Monodromy, count: int, generator: torch.Generator) -> EigenResult:
    if isinstance(chain, MatrixChain):
        return dense_eigenpairs(chain.to_dense(), [LargestMagnitude()], min(count + 1, chain.dim))
    return eigenpairs(
        chain, [LargestMagnitude()], count, generator=generator, max_restarts=RESTARTS, left=chain.has_rmatvec
    )


def _start(eigen: EigenResult, chain: Monodromy, count: int, generator: torch.Generator) -> Tensor:
    """Return vectors ``[batch, dim, k]`` that span the leading invariant subspaces as far as they were found."""
    k = min(count + 1, chain.dim)
    noise = torch.randn(chain.batch, k, chain.dim, generator=generator, dtype=torch.float64)
    start = noise.to(eigen.vectors.real)
    found = eigen.vectors[:, :k]
    lower = torch.as_tensor(eigen.values[:, :k].imag < 0, device=found.device)[:, :, None]
    rows = torch.where(lower, found.imag, found.real)
    start[:, : rows.shape[1]] = torch.where(torch.isfinite(rows), rows, start[:, : rows.shape[1]])
    return start.mT.contiguous()


def _difference(fine: LogMultipliers, coarse: LogMultipliers) -> NDArray[np.float64]:
    """Return the change of the logarithms between two discretisations, matched by rank."""
    ranks = np.argsort(np.argsort(-fine.log_modulus, axis=1), axis=1)
    other = np.take_along_axis(-np.sort(-coarse.log_modulus, axis=1), ranks, axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(fine.log_modulus == other, 0.0, np.abs(fine.log_modulus - other))


def _table(
    orbit: Orbit,
    count: int,
    eigen: EigenResult,
    logs: LogMultipliers,
    error: NDArray[np.float64],
    per_token: bool,
    products: int,
    flow_error: float,
) -> Floquet:
    """Return the leading multipliers of all operators of the batch in one list."""
    batch, column = np.nonzero(~np.isnan(logs.log_modulus))
    modulus, phase = logs.log_modulus[batch, column], logs.phase[batch, column]
    order = np.lexsort((-phase.imag, batch, -np.round(modulus, 12)))
    if len(order) > count:
        # one more where the cut would part a pair
        order = order[: count + int(phase[order[count - 1]].imag > 0)]
    batch, column, modulus, phase = batch[order], column[order], modulus[order], phase[order]
    with np.errstate(over="ignore"):
        mu = np.exp(modulus) * phase
    residual, condition = np.full(len(mu), np.nan), np.full(len(mu), np.nan)
    for i, (b, value) in enumerate(zip(batch, mu, strict=True)):
        distance = np.abs(np.where(eigen.present[b], eigen.values[b], np.inf) - value)
        nearest = int(distance.argmin())
        if distance[nearest] <= MATCHED * abs(value):
            residual[i], condition[i] = eigen.residual[b, nearest], eigen.condition[b, nearest]
    trivial, off = -1, np.nan
    if orbit.scheme == "rk4":
        trivial = int(np.abs(mu - 1).argmin())
        off = float(np.abs(mu[trivial] - 1))
    token = batch.astype(np.int64) if per_token else None
    return Floquet(
        mu, modulus, error[batch, column], residual, condition, token, trivial, off, flow_error, products, eigen.method
    )
