"""The one-step gradient: only the last application of the update is differentiated, and its own input is held fixed.

Jacobian-free backpropagation (Fung et al., arXiv:2103.12803); one-step differentiation (Bolte et al.,
arXiv:2305.13768). With T(z) = z + s F(z) and g = dL/dz it reads <s g, dF/dtheta> + explicit dL/dtheta: the adjoint
a = -J^{-T} g is replaced by s g.
"""

import torch
from pydantic import Field

from dyneq.dynamics.relax import relax
from dyneq.dynamics.residuals import sample_norm
from dyneq.gradients.base import Estimator, EstimatorParams, Gradient, ParameterList
from dyneq.systems.protocol import System


class OneStepParams(EstimatorParams):
    """Options of :class:`OneStep`."""

    relaxation: int = Field(60, gt=0, description="steps T1 of the free relaxation before")
    step: float | None = Field(None, gt=0, description="step s of the update that is differentiated; eps if None")


class OneStep(Estimator):
    """Relax T1 steps and differentiate one update of step s at the state reached; a biased gradient.

    Diagnostics: ``force_residual`` at z_T1; ``adjoint_residual``, norm(J^T a + g)/norm(g) with a = s g, which says how
    far it is from the equilibrium gradient; ``loss_gradient_norm``, norm(g).
    """

    name = "onestep"
    main = "relaxation"
    depth = "relaxation"
    Params = OneStepParams
    params: OneStepParams

    def gradient(self, system: System) -> Gradient:
        """Return the one-step gradient at the state after T1 steps.

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
        a = (system.eps if self.params.step is None else self.params.step) * g
        with torch.enable_grad():
            parameters.add(system.force(z), a)
        with torch.no_grad():
            defect = system.linearize(z)[1](a) + g
        diagnostics = {
            "force_residual": relaxed.residuals.force,
            "adjoint_residual": sample_norm(defect) / sample_norm(g),
            "loss_gradient_norm": sample_norm(g),
        }
        return Gradient(parameters.grouped(), z, loss.detach(), diagnostics)
