"""The equilibrium gradient by the adjoint equation J^T a = -g.

At a root, dz*/dtheta = -J^{-1} dF/dtheta, so dL/dtheta = <a, dF/dtheta> + explicit dL/dtheta (Bai et al.,
arXiv:1909.01377, by the implicit function theorem).
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import AliasChoices, Field
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.gradients.base import Gradient, Mark
from dyneq.gradients.equilibrium import AdjointEstimate, AveragedParams, EquilibriumEstimator
from dyneq.gradients.free import FREE_TOLERANCE, FreePhase, loss_and_gradient
from dyneq.systems.protocol import Product, System

#: Relative residual of the transposed relaxation up to which the adjoint counts as solved: what counts as a root, too.
RELAXED_TOLERANCE = FREE_TOLERANCE
#: Relative residual that rounding allows in single precision; ``tol`` asks for no less there.
SINGLE_TOLERANCE = 1e-5
#: The options of recipes from before there were more, in their order: others are stored only where they were set.
STORED = {"steps": "steps", "t1": "relaxation", "solver": "solver", "tol": "tol", "products": "products"}


class AdjointParams(AveragedParams):
    """Options of :class:`Adjoint`."""

    t1: int = Field(
        60,
        gt=0,
        description="steps of the free relaxation (also accepted as relaxation)",
        validation_alias=AliasChoices("t1", "relaxation"),
    )
    steps: int = Field(40, gt=0, description="steps of the transposed relaxation; unused by the other solvers")
    solver: Literal["relaxation", "gmres", "substitution"] = Field(
        "relaxation", description="how J^T a = -g is solved; substitution over tokens is exact, for causal blocks"
    )
    tol: float = Field(
        1e-8, gt=0, description="relative residual gmres stops at and substitution is held to; at least 1e-5 in float32"
    )
    products: int = Field(1000, gt=0, description="most products with J^T gmres may take")
    at: Literal["relaxed", "root"] = Field(
        "relaxed", description="where: the state of the free phase, or the root that Newton reaches from there"
    )


class Adjoint(EquilibriumEstimator):
    """Relax t1 steps, solve J^T a = -g there or at the root nearby, read out <a, dF/dtheta> + explicit dL/dtheta.

    Exact where the state is a root and the adjoint equation is solved. How far it is from both is reported, as
    ``force_residual`` and ``adjoint_residual``; the error of the gradient is of their size times the condition of J.

    Marks: ``FREE_NOT_CONVERGED`` above a force residual of :data:`dyneq.gradients.free.FREE_TOLERANCE` (or t1_tol), and
    at ``root`` for samples in which none was found, which keep their relaxed state; ``ADJOINT_NOT_SOLVED`` above an
    adjoint residual of ``tol`` (of :data:`RELAXED_TOLERANCE` for the transposed relaxation); ``ADJOINT_SINGULAR`` where
    the condition of a token's block reaches 1/rounding, which substitution alone can tell: an iteration that stagnates
    is called unsolved, for that need not be why.

    Diagnostics: those of :class:`EquilibriumEstimator`, and by substitution ``adjoint_condition``, the largest
    condition of a token's block.
    """

    name = "adjoint"
    main = "steps"
    Params = AdjointParams
    params: AdjointParams

    def to_plain(self) -> dict[str, Any]:
        """Return name and options as recipes have always stored them; later options only where they were set."""
        options = self.params.model_dump()
        plain = {stored: options.pop(name) for name, stored in STORED.items()}
        fields = type(self.params).model_fields
        return {"name": self.name, **plain, **{n: v for n, v in options.items() if v != fields[n].default}}

    def adjoint(self, system: System, free: FreePhase) -> AdjointEstimate:
        """Return the adjoint by the solver and at the state that the options name.

        Raises:
            UsageError: If substitution is asked for and the system is not causal or too large for it.
            DyneqError: If the system declares itself causal but is not, and a root or substitution is asked for; or if
                gmres meets products that are not finite.
        """
        z, g, cost, marks = free.z, free.g, 0.0, dict[Mark, Tensor]()
        if self.params.at == "root":
            z, found, cost = _refine(system, free)
            marks[Mark.FREE_NOT_CONVERGED] = ~found
            g = loss_and_gradient(system, z)[1]
        solved = _SOLVERS[self.params.solver](system, z, g, self.params)
        return replace(solved, marks={**marks, **solved.marks}, cost=cost + solved.cost)

    def _once(self, system: System, free: FreePhase) -> Gradient:
        found = super()._once(system, free)
        residual = found.diagnostics["adjoint_residual"]
        unsolved = ~(residual <= _tolerance(self.params, residual.dtype))  # NaN counts as not solved
        return replace(found, marks={**found.marks, Mark.ADJOINT_NOT_SOLVED: unsolved}) if unsolved.any() else found


def _tolerance(params: AdjointParams, dtype: torch.dtype) -> float:
    if params.solver == "relaxation":
        return RELAXED_TOLERANCE
    return params.tol if dtype == torch.float64 else max(params.tol, SINGLE_TOLERANCE)


def _refine(system: System, free: FreePhase) -> tuple[Tensor, Tensor, float]:
    """Return the roots ``[sample, ...]`` reached from the free phase, which samples have one, and the cost.

    Samples without a root keep the state of the free phase.
    """
    from dyneq.dynamics.counting import counted
    from dyneq.dynamics.relax import relax
    from dyneq.dynamics.roots import find_root

    counter = counted(system)
    roots = find_root(counter, relaxation=relax(counter, 0, start=free.z), starts=("relaxed",))
    found = roots.found.to(free.z.device)
    z = torch.where(found.view(-1, *[1] * (free.z.ndim - 1)), roots.z, free.z)
    return z.detach(), found, counter.cost.total


def _by_relaxation(system: System, z: Tensor, g: Tensor, params: AdjointParams) -> AdjointEstimate:
    a = relax_adjoint(system.linearize(z)[1], g, system.eps, params.steps)
    return AdjointEstimate(a, z, cost=params.steps - 1)


def _by_gmres(system: System, z: Tensor, g: Tensor, params: AdjointParams) -> AdjointEstimate:
    part, rows = _finite_part(system, z, g)
    a, products = torch.full_like(g, torch.nan), 0
    if part is not None:
        a[rows], products = solve_adjoint(
            part.linearize(z[rows])[1], g[rows], _tolerance(params, g.dtype), params.products
        )
    return AdjointEstimate(a, z, cost=products * len(rows) / len(z))


def _by_substitution(system: System, z: Tensor, g: Tensor, params: AdjointParams) -> AdjointEstimate:
    from dyneq.dynamics.transposed import require_substitution, solve_transposed

    require_substitution(system, z)
    part, rows = _finite_part(system, z, g)
    a, condition = torch.full_like(g, torch.nan), g.new_full((len(g),), torch.nan)
    products = 0
    if part is not None:
        solved = solve_transposed(part, z[rows], -g[rows])
        a[rows], products = solved.a, solved.products
        condition[rows] = solved.condition.amax(1).to(condition)
    singular = condition * torch.finfo(g.dtype).eps >= 1
    return AdjointEstimate(
        a,
        z,
        {"adjoint_condition": condition},
        {Mark.ADJOINT_SINGULAR: singular},
        products * len(rows) / len(z),
    )


_SOLVERS = {"relaxation": _by_relaxation, "gmres": _by_gmres, "substitution": _by_substitution}


def _finite_part(system: System, z: Tensor, g: Tensor) -> tuple[System | None, Tensor]:
    """Return the system of the samples whose state and loss gradient are finite, None if there are none, and which."""
    rows = (torch.isfinite(z) & torch.isfinite(g)).flatten(1).all(1).nonzero().flatten()
    if len(rows) == len(z):
        return system, rows
    return (system.select(rows) if len(rows) else None), rows


@torch.no_grad()
def relax_adjoint(transposed: Product, g: Tensor, eps: float, steps: int) -> Tensor:
    """Return a ``[sample, ...]`` after ``steps`` of a <- a + eps (J^T a + g) from a = 0.

    This is the transposed relaxation: it converges exactly where the relaxation itself does.
    """
    a = eps * g
    for _ in range(steps - 1):
        a = a.add(transposed(a).add_(g), alpha=eps)
    return a


@torch.no_grad()
def solve_adjoint(transposed: Product, g: Tensor, tol: float, products: int) -> tuple[Tensor, int]:
    """Return the solution a ``[sample, ...]`` of J^T a = -g by GMRES, one Krylov space per sample, and its products.

    Args:
        transposed: The product ``w -> J^T w``.
        g: dL/dz ``[sample, ...]``.
        tol: Relative residual at which a sample is done.
        products: Most products in all.

    Raises:
        DyneqError: If a product with J^T is not finite.
    """
    from dyneq.linalg.gmres import solve
    from dyneq.linalg.operator import CallableOperator

    shape, flat = g.shape, g.flatten(1)
    operator = CallableOperator(
        lambda w: transposed(w.view(shape)).flatten(1),
        batch=flat.shape[0],
        dim=flat.shape[1],
        dtype=flat.dtype,
        device=flat.device,
    )
    generator = torch.Generator(device=flat.device).manual_seed(0)  # only for breakdowns; nothing random otherwise
    try:
        found = solve(operator, -flat, generator=generator, tol=tol, max_products=products)
    except ArithmeticError as error:
        raise DyneqError(
            f"gmres needs finite products with the transposed Jacobian, but met others ({error}); leave the samples "
            "out whose state has grown that large, or relax with a smaller eps"
        ) from None
    return found.x.view(shape), found.products
