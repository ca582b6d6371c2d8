"""``spectral``: a hinge on the leading multipliers of the relaxation map, measured at a deeply relaxed state."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dyneq.dynamics.relax import relax
from dyneq.gradients.adjoint import SINGLE_TOLERANCE, solve_adjoint
from dyneq.probes.leading import leading_modes, leading_moduli
from dyneq.probes.penalties.base import Measured, Penalty, PenaltyParams, hinge
from dyneq.systems.protocol import System


class SpectralParams(PenaltyParams):
    """Options of spectral."""

    weight: float = Field(1.0, gt=0, description="factor of the term; with scale=task, its share of the task gradient")
    samples: int | None = Field(4, gt=0, description="samples of the batch it is taken over, drawn anew; all if None")
    every: int = Field(10, gt=0, description="updates from one application to the next")
    further: int = Field(340, ge=0, description="relaxation steps beyond the state of the gradient")
    bound: float = Field(0.995, gt=0, description="modulus above which a multiplier is penalised")
    form: Literal["frozen", "total"] = Field(
        "frozen", description="frozen: derivative at the state as it is; total: of the root, by one adjoint solve more"
    )
    tol: float = Field(1e-8, gt=0, description="relative residual of that adjoint solve; at least 1e-5 in float32")
    products: int = Field(1000, gt=0, description="most products it may take")


class Spectral(Penalty):
    """Sum over token blocks of max(0, abs(lambda) - bound), lambda the leading multiplier of each block.

    Blocks whose pair or left vector did not converge, and samples whose state is not finite, add nothing. The total
    form is the derivative of the root's own multipliers only where the state is a root.
    """

    name = "spectral"
    Params = SpectralParams
    params: SpectralParams
    what = "hinge on the leading multipliers"
    units = "1"

    def measure(self, system: System, z: Tensor, generator: torch.Generator) -> Measured:
        """Return the term; its measure is the spectral radius the probe ``spectrum`` reports at this depth.

        Raises:
            DyneqError: If the adjoint solve of the total form meets products that are not finite.
        """
        params = self.params
        deep = relax(system, params.further, start=z).z
        finite = torch.isfinite(deep).flatten(1).all(1)
        value, measure = deep.new_zeros(len(deep)), deep.new_full((len(deep),), torch.nan)
        if not finite.any():
            return Measured(value, measure, value.new_zeros(()))
        rows = finite.nonzero().flatten()
        part, deep = (system, deep) if bool(finite.all()) else (system.select(rows), deep[rows])
        modes = leading_modes(part, deep, generator)
        usable = torch.from_numpy(modes.usable).to(deep.device)
        with torch.enable_grad():
            at = deep.detach().requires_grad_(params.form == "total")
            moduli = leading_moduli(part, at, modes)
            excess = hinge(torch.where(usable, moduli, torch.zeros_like(moduli)) - params.bound).sum(1)
            if params.form == "total" and bool((excess > 0).any()):
                (pull,) = torch.autograd.grad(excess.sum(), at, retain_graph=True)
                single = deep.dtype != torch.float64
                tol = max(params.tol, SINGLE_TOLERANCE) if single else params.tol
                a, _ = solve_adjoint(part.linearize(deep)[1], pull, tol, params.products)
                # <a, F> has the derivative that the root's motion adds; its own value is no part of the term
                moved = (a * part.force(deep)).flatten(1).sum(1)
                excess = excess + moved - moved.detach()
            value = value.index_put((rows,), excess)
        measure[rows] = torch.where(usable, moduli.detach(), torch.nan).nan_to_num(nan=-torch.inf).amax(1)
        measure = torch.where(measure.isinf(), torch.nan, measure)
        return Measured(value, measure, (value.detach() > 0).to(value.dtype).mean())
