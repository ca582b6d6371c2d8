"""``spectral``: a hinge on the leading multipliers of the relaxation map, measured at a deeply relaxed state."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from dyneq.dynamics.relax import relax
from dyneq.gradients.adjoint import SINGLE_TOLERANCE, solve_adjoint
from dyneq.probes.leading import LeadingModes, leading_modes, leading_moduli
from dyneq.probes.penalties.base import Measured, Penalty, PenaltyParams, hinge
from dyneq.systems.block import BoundBlock
from dyneq.systems.protocol import System

#: Blocks further below the bound than this get no vectors: held for the time they are, they would not open a hinge.
SLACK = 0.05


class SpectralParams(PenaltyParams):
    """Options of spectral."""

    weight: float = Field(6.0, gt=0, description="factor of the term; with scale=task, its share of the task gradient")
    samples: int | None = Field(3, gt=0, description="samples of the batch it is taken over; all if None")
    pick: Literal["random", "worst"] = Field(
        "worst", description="which: drawn anew, or those with the largest force residuals"
    )
    limit: float | None = Field(
        1.0, gt=0, description="largest norm of the term's gradient, as a share of the task gradient's; none if None"
    )
    every: int = Field(3, gt=0, description="updates from one application to the next")
    refresh: int = Field(
        8,
        gt=0,
        description="applications for which samples, state and vectors are held; weights are always the present ones",
    )
    further: int = Field(340, ge=0, description="relaxation steps beyond the state of the gradient")
    bound: float = Field(0.97, gt=0, description="modulus above which a multiplier is penalised")
    form: Literal["frozen", "total"] = Field(
        "frozen", description="frozen: derivative at the state as it is; total: of the root, by one adjoint solve more"
    )
    tol: float = Field(1e-8, gt=0, description="relative residual of that adjoint solve; at least 1e-5 in float32")
    products: int = Field(1000, gt=0, description="most products it may take")


@dataclass
class _Held:
    """What is held between refreshes.

    Attributes:
        system: The samples' system.
        z: Their state, deeply relaxed when it was taken.
        modes: Its leading modes then.
        rows: Which of the samples that were given they are.
        given: How many those were.
        a: Adjoint of the term by the state, for the total form; None without.
        age: Updates it has served.
    """

    system: System
    z: Tensor
    modes: LeadingModes
    rows: Tensor
    given: int
    a: Tensor | None = None
    age: int = 0


class Spectral(Penalty):
    """Sum over token blocks of max(0, abs(lambda) - bound), lambda the leading multiplier of each block.

    In training, samples, state and vectors are held for ``refresh`` applications: in between, lambda is the two-sided
    Rayleigh quotient w^H M v / w^H v of the present weights, whose error is of second order in what they have changed.
    Blocks whose pair or left vector did not converge, and samples whose state is not finite, add nothing. The total
    form is the derivative of the root's own multipliers only where the state is a root.
    """

    name = "spectral"
    Params = SpectralParams
    params: SpectralParams
    what = "hinge on the leading multipliers"
    units = "1"

    def __init__(self, params: SpectralParams | None = None) -> None:
        super().__init__(params)
        self._held: _Held | None = None
        self._stored: dict[str, Any] | None = None

    def measure(self, system: System, z: Tensor, generator: torch.Generator) -> Measured:
        """Return the term; its measure is the spectral radius the probe ``spectrum`` reports at this depth.

        Raises:
            DyneqError: If the adjoint solve of the total form meets products that are not finite.
        """
        held = self._take(system, z, generator)
        if held is None:  # no sample is finite
            zero = z.new_zeros(len(z))
            return Measured(zero, torch.full_like(zero, torch.nan), zero.sum())
        found = self._of(held)
        if len(found.measure) == len(z):
            return found
        measure = torch.full_like(z.flatten(1)[:, 0], torch.nan)
        measure[held.rows] = found.measure
        return replace(found, measure=measure)

    def apply(self, system: System, z: Tensor, generator: torch.Generator) -> Measured:
        """Return the term with what is held, which is taken anew when it has served its time.

        Raises:
            DyneqError: If the adjoint solve of the total form meets products that are not finite.
        """
        if self._stored is not None and isinstance(system, BoundBlock):
            self._held, self._stored = _unpacked(self._stored, system), None
        if self._held is None or self._held.age >= self.params.refresh or not isinstance(system, BoundBlock):
            self._held = self._take(system, z, generator)
            if self._held is None:
                return self.measure(system, z, generator)
        held = self._held
        held.age += 1
        # bound anew, because the embedding depends on the weights as they are now
        everything = torch.arange(len(held.z), device=held.z.device)
        return self._of(replace(held, system=held.system.select(everything)))

    def _take(self, system: System, z: Tensor, generator: torch.Generator) -> _Held | None:
        """Relax further and take the modes of the samples that are finite there; None if none is."""
        deep = relax(system, self.params.further, start=z).z
        rows, given = torch.isfinite(deep).flatten(1).all(1).nonzero().flatten(), len(deep)
        if len(rows) == 0:
            return None
        if len(rows) < len(deep):
            system, deep = system.select(rows), deep[rows]
        modes = leading_modes(system, deep, generator, above=self.params.bound - SLACK)
        held = _Held(system, deep.detach(), modes, rows, given)
        if self.params.form == "total":
            held.a = self._adjoint(held)
        return held

    def _excess(self, held: _Held, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hinges summed over blocks ``[sample]`` and the moduli ``[sample, token]``."""
        usable = torch.from_numpy(held.modes.usable).to(z.device)
        moduli = leading_moduli(held.system, z, held.modes)
        known = torch.where(usable, moduli, torch.full_like(moduli, -torch.inf).detach())
        return hinge(known - self.params.bound).sum(1), known.detach()

    def _adjoint(self, held: _Held) -> Tensor | None:
        """Return the solution a of J^T a = -d(term)/dz at the held state; None where the term is 0."""
        with torch.enable_grad():
            at = held.z.detach().requires_grad_()
            excess, _ = self._excess(held, at)
            if not bool((excess > 0).any()):
                return None
            (pull,) = torch.autograd.grad(excess.sum(), at)
        tol = self.params.tol if at.dtype == torch.float64 else max(self.params.tol, SINGLE_TOLERANCE)
        return solve_adjoint(held.system.linearize(held.z)[1], pull, tol, self.params.products)[0]

    def _of(self, held: _Held) -> Measured:
        """Return the term of what is held, as of all samples that were given: those left out count as 0."""
        with torch.enable_grad():
            value, moduli = self._excess(held, held.z.detach())
            if held.a is not None:
                # <a, F> has the derivative that the root's motion adds; its own value is no part of the term
                moved = (held.a * held.system.force(held.z)).flatten(1).sum(1)
                value = value + moved - moved.detach()
            value = value * (len(held.z) / held.given)
        measure = moduli.amax(1)
        active = (value.detach() > 0).to(value.dtype).sum() / held.given
        return Measured(value, torch.where(measure.isinf(), torch.nan, measure), active)

    def state(self) -> dict[str, Any]:
        """Return what is held."""
        return {"held": self._stored if self._held is None else _packed(self._held)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue with it."""
        self._held, self._stored = None, state["held"]


def _packed(held: _Held) -> dict[str, Any] | None:
    """Return plain values and tensors; None for a system that cannot be bound again."""
    system, modes = held.system, held.modes
    if not isinstance(system, BoundBlock):
        return None
    return {
        "tokens": system.tokens,
        "targets": system.targets,
        "z": held.z,
        "rows": held.rows,
        "given": held.given,
        "a": held.a,
        "age": held.age,
        "right": modes.right,
        "left": modes.left,
        "overlap": modes.overlap,
        **{name: torch.from_numpy(getattr(modes, name)) for name in _ARRAYS},
    }


_ARRAYS = ("multiplier", "residual", "condition", "usable")


def _unpacked(stored: dict[str, Any], like: BoundBlock) -> _Held:
    system = like.block.bind(stored["tokens"], stored["targets"], eps=like.eps)
    arrays = {name: stored[name].numpy() for name in _ARRAYS}
    modes = LeadingModes(right=stored["right"], left=stored["left"], overlap=stored["overlap"], **arrays)
    return _Held(
        system, stored["z"], modes, stored["rows"], stored.get("given", len(stored["z"])), stored["a"], stored["age"]
    )
