"""The equilibrium gradient by the adjoint equation J^T a = -g.

At a root, dz*/dtheta = -J^{-1} dF/dtheta, so dL/dtheta = <a, dF/dtheta> + explicit dL/dtheta (Bai et al.,
arXiv:1909.01377, by the implicit function theorem).
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dyneq.dynamics.relax import relax
from dyneq.dynamics.residuals import sample_norm
from dyneq.gradients.base import Estimator, EstimatorParams, Gradient, ParameterList
from dyneq.systems.protocol import Product, System


class AdjointParams(EstimatorParams):
    """Options of :class:`Adjoint`."""

    steps: int = Field(40, gt=0, description="steps of the transposed relaxation; unused by gmres")
    relaxation: int = Field(60, gt=0, description="steps T1 of the free relaxation before")
    solver: Literal["relaxation", "gmres"] = Field("relaxation", description="how J^T a = -g is solved")
    tol: float = Field(1e-8, gt=0, description="relative residual gmres stops at")
    products: int = Field(1000, gt=0, description="most products with J^T gmres may take")


class Adjoint(Estimator):
    """Relax T1 steps, solve J^T a = -g at the state reached, read out <a, dF/dtheta> + explicit dL/dtheta.

    Exact where the state is a root and the residual of the adjoint is zero; both residuals are reported and neither is
    hidden. Diagnostics: ``force_residual`` at z_T1; ``adjoint_residual``, norm(J^T a + g)/norm(g); ``adjoint_norm``,
    norm(a); ``loss_gradient_norm``, norm(g).
    """

    name = "adjoint"
    main = "steps"
    depth = "relaxation"
    Params = AdjointParams
    params: AdjointParams

    def gradient(self, system: System) -> Gradient:
        """Return the equilibrium gradient at the state after T1 steps.

        Raises:
            DyneqError: If the system has no loss or no parameters, or a parameter takes no part in it.
        """
        parameters = ParameterList(system)
        relaxed = relax(system, self.params.relaxation)
        with torch.enable_grad():
            leaf = relaxed.z.detach().requires_grad_()
            loss = system.loss(leaf)
            (g,) = parameters.add(loss.mean(), also=[leaf])
        z = leaf.detach()
        transposed = system.linearize(z)[1]
        if self.params.solver == "relaxation":
            a = relax_adjoint(transposed, g, system.eps, self.params.steps)
        else:
            a = solve_adjoint(transposed, g, self.params.tol, self.params.products)
        with torch.enable_grad():
            parameters.add(system.force(z), a)
        diagnostics = {
            "force_residual": relaxed.residuals.force,
            "adjoint_residual": sample_norm(transposed(a) + g) / sample_norm(g),
            "adjoint_norm": sample_norm(a),
            "loss_gradient_norm": sample_norm(g),
        }
        return Gradient(parameters.grouped(), z, loss.detach(), diagnostics)


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
def solve_adjoint(transposed: Product, g: Tensor, tol: float, products: int) -> Tensor:
    """Return the solution a ``[sample, ...]`` of J^T a = -g by GMRES, one Krylov space per sample.

    Args:
        transposed: The product ``w -> J^T w``.
        g: dL/dz ``[sample, ...]``.
        tol: Relative residual at which a sample is done.
        products: Most products in all.
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
    return solve(operator, -flat, generator=generator, tol=tol, max_products=products).x.view(shape)
