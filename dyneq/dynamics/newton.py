"""Damped Newton iteration on a batch of independent problems F(z) = 0."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.relax import GROWTH
from dyneq.dynamics.residuals import relative_size, sample_norm
from dyneq.linalg import gmres
from dyneq.linalg.operator import LinearOperator

Force = Callable[[Tensor], Tensor]

#: Shortest step length tried by the line search; shorter ones mean that the direction is no descent direction.
SHORTEST = 2.0**-10
#: A chord step (old factors) is followed by another while it shrinks the residual at least this much.
CHORD = 0.1


@dataclass(frozen=True)
class NewtonResult:
    """Where the iteration ended.

    Attributes:
        z: ``[batch, n]``.
        residual: norm(F)/max(norm(z), least), ``[batch]``.
        correction: norm(J^{-1} F)/max(norm(z), least) with the Jacobian at z, ``[batch]``: an estimate of the distance
            to the root; infinite where the Jacobian is singular or its system could not be solved.
        converged: Whether this is a root: residual and correction within tolerance, and a state that did not run away,
            bool ``[batch]``.
        iterations: Newton steps taken by the slowest.
        steepness: Frobenius norm of the Jacobian at z, ``[batch]``; NaN where it is never formed.
    """

    z: Tensor
    residual: Tensor
    correction: Tensor
    converged: Tensor
    iterations: int
    steepness: Tensor


class Direction(ABC):
    """How the Newton direction -J^{-1} F is found."""

    @abstractmethod
    def refresh(self, z: Tensor) -> None:
        """Take the Jacobian at ``z`` ``[batch, n]``."""

    @abstractmethod
    def solve(self, f: Tensor) -> Tensor:
        """Return -J^{-1} f ``[batch, n]`` with the Jacobian last taken."""

    @abstractmethod
    def verify(self, f: Tensor) -> Tensor:
        """Return J^{-1} f ``[batch, n]`` up to its sign, NaN where it could not be computed."""

    @property
    @abstractmethod
    def steepness(self) -> Tensor | None:
        """Frobenius norm of the Jacobian ``[batch]``, None where it is never formed."""


class DenseDirection(Direction):
    """Directions by LU factors of the explicit Jacobian.

    Args:
        jacobian: Returns the matrices ``[batch, n, n]`` at ``z`` ``[batch, n]``.
    """

    def __init__(self, jacobian: Callable[[Tensor], Tensor]) -> None:
        self._jacobian = jacobian
        self._steepness: Tensor | None = None

    def refresh(self, z: Tensor) -> None:
        """Factorise the Jacobian at ``z``."""
        j = self._jacobian(z)
        self._steepness = torch.linalg.matrix_norm(j)
        self._lu, self._pivots, _ = torch.linalg.lu_factor_ex(j)

    def solve(self, f: Tensor) -> Tensor:
        """Return -J^{-1} f; not finite where the Jacobian is singular, which the line search then rejects."""
        return -torch.linalg.lu_solve(self._lu, self._pivots, f.unsqueeze(-1)).squeeze(-1)

    def verify(self, f: Tensor) -> Tensor:
        """Return -J^{-1} f; not finite where the Jacobian is singular."""
        return self.solve(f)

    @property
    def steepness(self) -> Tensor | None:
        """Frobenius norm of the Jacobian ``[batch]``."""
        return self._steepness


class KrylovDirection(Direction):
    """Directions by batched GMRES, for states too large for explicit Jacobians.

    Args:
        operator: Returns the operator of the Jacobian at ``z`` ``[batch, n]``.
        generator: Randomness of the Krylov method.
        tol: Relative residual of the linear solve.
    """

    def __init__(
        self, operator: Callable[[Tensor], LinearOperator], generator: torch.Generator, tol: float = 1e-3
    ) -> None:
        self._operator, self._generator, self._tol = operator, generator, tol

    def refresh(self, z: Tensor) -> None:
        """Linearise at ``z``."""
        self._at = self._operator(z)

    def solve(self, f: Tensor) -> Tensor:
        """Return an approximate -J^{-1} f; NaN where f is not finite."""
        return self._solve(f)[0]

    def verify(self, f: Tensor) -> Tensor:
        """Return -J^{-1} f; NaN where GMRES left more of it than its tolerance, as it does when J is near singular."""
        x, solved = self._solve(f)
        return torch.where(solved[:, None], x, torch.nan)

    def _solve(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best -J^{-1} f found, NaN where f is not finite, and whether it is good enough ``[batch]``."""
        finite = torch.isfinite(f).all(1).nonzero().flatten()
        x, solved = torch.full_like(f, torch.nan), torch.zeros(len(f), dtype=torch.bool, device=f.device)
        if len(finite):
            operator = self._at if len(finite) == len(f) else self._at.restrict(finite)
            found = gmres.solve(
                operator, -f[finite], generator=self._generator, tol=self._tol, restart=60, max_products=600
            )
            x[finite] = found.x
            solved[finite] = torch.as_tensor(found.converged, device=f.device)
        return x, solved

    @property
    def steepness(self) -> Tensor | None:
        """None: the Jacobian is never formed."""
        return None


def columns_by_jvp(f: Force) -> Callable[[Tensor], Tensor]:
    """Return ``z -> dF/dz`` as matrices ``[batch, n, n]``, by forward mode over all columns at once.

    The problems of the batch are independent, so one tangent e_j serves every one of them. A force that counts its
    evaluations (:class:`dyneq.dynamics.counting.CountedForce`) sees all columns as one; it is told of the others.
    """
    count = getattr(f, "count", None)

    def jacobian(z: Tensor) -> Tensor:
        if count is not None:
            count(z.shape[1] - 1)
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)

        def column(e: Tensor) -> Tensor:
            return torch.func.jvp(f, (z,), (e.expand_as(z),))[1]

        return torch.func.vmap(column, out_dims=2)(eye)

    return jacobian


def default_correction_tolerance(dtype: torch.dtype) -> float:
    """Return the relative Newton correction accepted at a root: 1e-6 in double, 1e-3 in single precision.

    Rounding of F moves a double root by about the square root of the machine precision, 1.5e-8 or 3.5e-4: corrections
    up to a few times that are what a true root can have. Where the force merely decays without a root, the correction
    stays of the order of the state (for F = z^-p it is 1/p), and over a minimum of the force that is not zero, of
    depth d, it is at least the square root of d.
    """
    return 1e-6 if dtype == torch.float64 else 1e-3


@torch.no_grad()
def newton(
    f: Force, direction: Direction, guess: Tensor, *, least: Tensor, tol: float, max_iterations: int = 60
) -> NewtonResult:
    """Solve F(z) = 0 for every element of a batch.

    Newton's method with a backtracking line search on norm(F) and chord steps while they pay (Kelley, Solving Nonlinear
    Equations with Newton's Method, 2003). It goes on to rounding level and is judged at the end: a small force alone is
    no root, the Newton correction with a fresh Jacobian has to be small as well
    (:func:`default_correction_tolerance`), and the state must not have grown beyond :data:`dyneq.dynamics.relax.GROWTH`
    times the larger of 1 and its start.

    Args:
        f: The force on flat states, ``[batch, n] -> [batch, n]``.
        direction: How directions are found.
        guess: Starting points ``[batch, n]``.
        least: Smallest norm of z that residuals are taken relative to, ``[batch]``.
        tol: Residual norm(F)/max(norm(z), least) accepted as a root.
        max_iterations: Most Newton steps.
    """
    floor, near = 16 * torch.finfo(guess.dtype).eps, default_correction_tolerance(guess.dtype)
    z, fz = guess.clone(), f(guess)
    merit = torch.linalg.vector_norm(fz, dim=1)
    active = torch.isfinite(merit) & (relative_size(fz, z, least) > floor)
    stale, iterations = True, 0
    while iterations < max_iterations and bool(active.any()):
        iterations += 1
        fresh = stale
        if stale:
            direction.refresh(z)
        step = direction.solve(fz)
        usable = active & torch.isfinite(step).all(1)
        length = torch.ones_like(merit)
        accepted = torch.zeros_like(active)
        before, left = merit, z
        pending = usable
        while bool(pending.any()):
            trial = torch.where(pending[:, None], z + length[:, None] * step, z)
            ft = f(trial)
            size = torch.linalg.vector_norm(ft, dim=1)
            # Armijo's condition on norm(F), whose slope along a Newton step is -norm(F)
            better = pending & (size <= (1 - 1e-4 * length) * merit)
            z = torch.where(better[:, None], trial, z)
            fz = torch.where(better[:, None], ft, fz)
            accepted = accepted | better
            merit = torch.where(better, size, merit)
            length = torch.where(pending & ~better, length / 2, length)
            # with old factors the direction may be poor: take new ones rather than a short step
            pending = pending & ~better & (length >= (SHORTEST if fresh else 1.0))
        # a small force after a long step may be that of a decaying tail, or of a multiple root still on its way
        done = (merit == 0) | ((relative_size(fz, z, least) <= floor) & (relative_size(z - left, z, least) <= near))
        slow = bool((active & ~done & (~accepted | (merit > CHORD * before) | (length < 1))).any())
        stale = slow or not isinstance(direction, DenseDirection)
        # without progress along a fresh direction there is nothing more to gain
        active = active & ~done & (accepted if fresh else torch.ones_like(active))
    direction.refresh(z)
    correction = relative_size(direction.verify(fz), z, least)
    correction = torch.where(merit == 0, 0.0, torch.where(torch.isfinite(correction), correction, torch.inf))
    steepness = torch.full_like(merit, torch.nan) if direction.steepness is None else direction.steepness
    residual = relative_size(fz, z, least)
    bounded = sample_norm(z) <= GROWTH * sample_norm(guess).clamp(min=1.0)
    converged = (residual <= tol) & (correction <= near) & bounded
    return NewtonResult(z, residual, correction, converged, iterations, steepness)
