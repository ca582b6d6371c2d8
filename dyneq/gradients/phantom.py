"""The phantom gradient: a few damped steps, differentiated, from the relaxed state (Geng et al., arXiv:2111.05177)."""

import torch
from pydantic import Field

from dyneq.dynamics.residuals import residuals, sample_norm
from dyneq.gradients.base import Estimator, Gradient, ParameterList
from dyneq.gradients.free import FreeParams, free_phase
from dyneq.gradients.unroll import PER_STEP, differentiate_steps
from dyneq.systems.protocol import System


class PhantomParams(FreeParams):
    """Options of :class:`Phantom`."""

    steps: int = Field(5, gt=0, description="differentiated steps K from the relaxed state; 1 is the one-step gradient")
    damping: float = Field(1.0, gt=0, le=1, description="share of a full step that each of the K takes")
    segment: int | None = Field(None, gt=0, description="steps whose graph is held at once; ceil(sqrt K) if None")


class Phantom(Estimator):
    """Relax, cut the path, take K steps z <- z + damping eps F(z) and differentiate these.

    At a root this is the Neumann series of the adjoint after K terms: a = -J^{-T} (1 - (I + damping eps J^T)^K) g. It
    is shorter than the adjoint while K damping eps is short against the slowest time of the relaxation, and what it
    leaves out is what the cotangent at the cut would still have passed on.

    Diagnostics: ``force_residual`` at z_K, where the loss is taken; ``force_residual_t1`` after t1 steps;
    ``loss_gradient_norm``, norm(dL/dz_K); ``cut_cotangent_norm``, norm(dL/dz) at the relaxed state.
    """

    name = "phantom"
    main = "steps"
    depth = "t1"
    Params = PhantomParams
    params: PhantomParams

    def gradient(self, system: System) -> Gradient:
        """Return the phantom gradient; samples whose free phase has not converged are marked.

        Raises:
            DyneqError: If the system has no loss or no parameters, or a parameter takes no part in it.
        """
        parameters, p = ParameterList(system), self.params
        free = free_phase(system, p.t1, p.t1_tol, p.t1_max)
        found = differentiate_steps(system, parameters, free.z, p.steps, p.damping * system.eps, p.segment)
        with torch.no_grad():
            residual = residuals(system, found.state).force
        diagnostics = {
            "force_residual": residual,
            "force_residual_t1": free.residual_t1,
            "loss_gradient_norm": sample_norm(found.loss_gradient),
            "cut_cotangent_norm": sample_norm(found.cotangent),
        }
        marks = {mark: where for mark, where in free.marks.items() if bool(where.any())}
        cost = free.steps + 1 + PER_STEP * p.steps + 1
        return Gradient(parameters.grouped(), found.state, found.loss, diagnostics, marks, cost)
