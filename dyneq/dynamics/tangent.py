"""Steps of many tangent vectors at once, by the cheapest product a system has."""

from collections.abc import Callable

import torch
from torch import Tensor

from dyneq.dynamics.stepping import Stepper
from dyneq.systems.protocol import System

#: Up to this many components a sample, the rows of the Jacobian are had by reverse mode, one call a component, which
#: costs a fraction of what a forward-mode product does on states this small.
FEW = 8

Apply = Callable[[Tensor], Tensor]


class TangentStepper(Stepper):
    """A :class:`Stepper` whose tangent vectors share one linearisation.

    Systems with products of their own are used by these, one vector at a time; others are differentiated, all vectors
    in one pass. The numbers are those of :class:`Stepper` up to rounding.
    """

    @torch.no_grad()
    def advance_with(self, z: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state and the tangent vectors ``[vector, sample, ...]`` one step later."""
        h = self.step
        if self.scheme == "euler":
            f, apply = self._linear(z)
            return z + h * f, vectors + h * apply(vectors)
        state, tangent = torch.zeros_like(z), torch.zeros_like(vectors)
        at, moved = z, vectors
        for weight, ahead in ((1, h / 2), (2, h / 2), (2, h), (1, 0.0)):
            k, apply = self._linear(at)
            dk = apply(moved)
            state, tangent = state + weight * k, tangent + weight * dk
            at, moved = z + ahead * k, vectors + ahead * dk
        return z + h / 6 * state, vectors + h / 6 * tangent

    @torch.no_grad()
    def pull_back(self, z: Tensor, covectors: Tensor) -> Tensor:
        """Return the transposed tangent map of the step from ``z`` applied to covectors ``[vector, sample, ...]``."""
        h, w = self.step, covectors
        if self.scheme == "euler":
            return w + h * self._transposed(z, w)
        stages, at = [z], z
        for ahead in (h / 2, h / 2, h):
            at = z + ahead * self.system.force(at)
            stages.append(at)
        total, carried = w, torch.zeros_like(w)
        for stage, weight, ahead in zip(reversed(stages), (1, 2, 2, 1), (0.0, h, h / 2, h / 2), strict=True):
            carried = self._transposed(stage, h / 6 * weight * w + ahead * carried)
            total = total + carried
        return total

    def _transposed(self, z: Tensor, covectors: Tensor) -> Tensor:
        linearize = self.system.linearize_tokens if self.tokens_only else self.system.linearize
        product = linearize(z)[1]
        return torch.stack([product(w) for w in covectors])

    def _linear(self, z: Tensor) -> tuple[Tensor, Apply]:
        """Return the force at ``z`` and what applies its Jacobian to vectors ``[vector, sample, ...]``."""
        system, kind = self.system, type(self.system)
        name = "linearize_tokens" if self.tokens_only else "linearize"
        if getattr(kind, name) is not getattr(System, name):
            product = self._product(z)
            return system.force(z), lambda vectors: torch.stack([product(v) for v in vectors])
        if not self.tokens_only and z[0].numel() <= FEW:
            return _by_rows(system, z)
        product = self._product(z)
        return system.force(z), torch.func.vmap(product)


def _by_rows(system: System, z: Tensor) -> tuple[Tensor, Apply]:
    """Return the force and the Jacobian's product from its rows; samples never interact, so one sum serves them all."""
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        f = system.force(at)
        columns = f.flatten(1).unbind(1)
        rows = [_gradient(c, at) for c in columns]
    jacobian = torch.stack(rows, dim=1).flatten(2)

    def apply(vectors: Tensor) -> Tensor:
        moved = torch.einsum("sij,vsj->vsi", jacobian, vectors.flatten(2))
        return moved.view(vectors.shape)

    return f.detach(), apply


def _gradient(of: Tensor, at: Tensor) -> Tensor:
    if not of.requires_grad:
        return torch.zeros_like(at)
    (found,) = torch.autograd.grad(of.sum(), at, retain_graph=True, allow_unused=True)
    return torch.zeros_like(at) if found is None else found
