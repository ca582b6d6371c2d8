"""Feedback alignment: the adjoint with random matrices for the transposed weights; a negative control.

Every transposed weight of the backward pass through the block is replaced by a fixed random matrix of the same shape
and Frobenius norm (Lillicrap et al., Nat. Commun. 7, 13276, 2016). The forward pass, the loss and its read-out are
exact, and so is the loss gradient g: what is right is what depends on g alone. An error anywhere upstream of the loss
must show, or the comparison that does not show it is blind.
"""

from pydantic import Field
from torch import Tensor

from dyneq.dynamics.residuals import sample_norm
from dyneq.gradients.adjoint import RELAXED_TOLERANCE, relax_adjoint
from dyneq.gradients.base import Gradient, Mark
from dyneq.gradients.equilibrium import AdjointEstimate, AveragedParams, EquilibriumEstimator
from dyneq.gradients.feedback import FeedbackSystem, bound_block, linear_maps, random_matrices
from dyneq.gradients.free import FreePhase
from dyneq.systems.protocol import System


class FaParams(AveragedParams):
    """Options of :class:`Fa`."""

    steps: int = Field(40, gt=0, description="steps of the transposed relaxation with the feedback matrices")
    seed: int = Field(0, ge=0, description="seed of the feedback matrices")


class Fa(EquilibriumEstimator):
    """Relax, take K steps of a <- a + eps (B^T a + g), B^T the transposed Jacobian with feedback; read out by feedback.

    Softmax, normalisations and activations keep their own derivatives. The gradient of the read-out is exact; those of
    the maps whose output enters the force directly (W_O, the second feed-forward map, the embeddings) are read out by
    ``a`` itself and align as far as it does; those before them are read out through feedback matrices and do not.

    Marks: ``ADJOINT_NOT_SOLVED`` where its own equation B^T a = -g is not solved to
    :data:`dyneq.gradients.adjoint.RELAXED_TOLERANCE`.

    Diagnostics: those of :class:`EquilibriumEstimator`, its ``adjoint_residual`` being that of the true equation, which
    this does not solve; ``feedback_residual``, norm(B^T a + g)/norm(g).
    """

    name = "fa"
    main = "steps"
    Params = FaParams
    params: FaParams

    def free(self, system: System) -> FreePhase:
        """Return the free phase of a system.

        Raises:
            UsageError: If the system is no bound block.
            DyneqError: If it has no loss, or its force is not built from ``nn.Linear`` modules of its own.
        """
        linear_maps(bound_block(system))
        return super().free(system)

    def from_free(self, system: System, free: FreePhase) -> Gradient:
        """Return the estimate after a free phase; see :meth:`EquilibriumEstimator.from_free`.

        Raises:
            UsageError: If the system is no bound block.
            DyneqError: If it has no parameters, or its force is not built from ``nn.Linear`` modules of its own.
        """
        matrices: dict[str, Tensor] = random_matrices(system, self.params.seed)
        return super().from_free(FeedbackSystem(bound_block(system), matrices), free)

    def adjoint(self, system: System, free: FreePhase) -> AdjointEstimate:
        """Return the adjoint by feedback.

        Raises:
            TypeError: If the system has no feedback matrices; :meth:`from_free` gives it some.
        """
        if not isinstance(system, FeedbackSystem):
            raise TypeError(f"the adjoint by feedback needs a FeedbackSystem, not {type(system).__name__}")
        product = system.feedback(free.z)
        a = relax_adjoint(product, free.g, system.eps, self.params.steps)
        residual = sample_norm(product(a) + free.g) / sample_norm(free.g)
        marks = {Mark.ADJOINT_NOT_SOLVED: ~(residual <= RELAXED_TOLERANCE)}
        return AdjointEstimate(a, free.z, {"feedback_residual": residual}, marks, self.params.steps)
