"""Everything the nonnormality probe measures at one state."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dyneq.dynamics.correction import root_displacement
from dyneq.dynamics.drift import symmetric_drift
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.nonnormality import (
    Blocks,
    explicit_blocks,
    token_asymmetry,
    token_numerical_abscissa,
    whole_sample,
)
from dyneq.dynamics.spectra import LeadingSpectrum, leading_spectrum
from dyneq.linalg.hutchinson import Estimate, jackknife
from dyneq.linalg.lanczos import extremal_symmetric
from dyneq.linalg.targets import LargestModulus, Rightmost, Target
from dyneq.probes.base import Progress
from dyneq.probes.branch_norm import branch_jacobian_squares
from dyneq.probes.nonnormality_blocks import analyse_blocks, block_growth, chosen_blocks, sample_growth
from dyneq.probes.nonnormality_stability import Stability, stability
from dyneq.systems.protocol import System, Time

if TYPE_CHECKING:
    from dyneq.probes.nonnormality import NonnormalityParams


class Measured:
    """Everything measured at one state of the samples that have a usable one."""

    def __init__(
        self, system: System, z: torch.Tensor, index: torch.Tensor, params: "NonnormalityParams", progress: Progress
    ) -> None:
        self.system, self.params, self.index = system, params, index.numpy()
        self.linearization = Linearization(system, z)
        self.progress = progress
        self.over_samples: dict[str, Any] = {}
        self.over_tokens: dict[str, Any] = {}
        self.over_branches: dict[str, Any] = {}
        self.others: dict[str, Any] = {}
        self.coordinates: dict[str, Any] = {}
        self.products = 0
        displacement = None
        if params.at == "root":
            displacement = root_displacement(system, z, generator=self._generator())
        progress("eigenvalues", 0.3)
        stable = self._stability(displacement)
        progress("sizes and shares", 0.5)
        blocks = explicit_blocks(self.linearization, params.largest_block, displacement)
        if blocks is not None:
            # the blocks at the displaced state are formed by a linearisation of their own
            self.products += 0 if displacement is None else blocks.matrix.shape[-1]
        self._numerical_abscissa(displacement)
        self._tokens(blocks)
        self._shares(blocks)
        progress("transient growth", 0.6)
        self._growth(blocks, stable)
        if blocks is not None:
            progress("pseudospectra", 0.8)
            self._pseudospectra(blocks)
        self._branches(z)
        self.products += self.linearization.whole.products
        if system.structure.causal:
            self.products += self.linearization.token_diagonal().products

    def _generator(self) -> torch.Generator:
        """Return the source of randomness of one quantity: each has its own, so that none depends on the others."""
        return torch.Generator().manual_seed(self.params.seed)

    def _put(self, name: str, found: Estimate | None) -> None:
        if found is not None:
            self.over_samples[name], self.over_samples[f"{name}_error"] = found.value, found.error

    def _stability(self, displacement: torch.Tensor | None) -> Stability:
        flow = self.system.time is not Time.MAP
        targets: list[Target] = [LargestModulus(self.system.eps), *([Rightmost()] if flow else [])]
        spectrum: LeadingSpectrum = leading_spectrum(
            self.linearization, targets, 1, generator=self._generator(), displacement=displacement
        )
        # products at the displaced state are counted by the spectrum alone
        own = self.linearization.whole.products
        if self.system.structure.causal:
            own += self.linearization.token_diagonal().products
        self.products += spectrum.matvecs - own
        found = stability(spectrum, targets, self.system.eps)
        self.over_samples |= found.variables()
        return found

    def _numerical_abscissa(self, displacement: torch.Tensor | None) -> None:
        symmetric = self.linearization.symmetric()
        omega = extremal_symmetric(symmetric, "largest", generator=self._generator(), tol=1e-6)
        rounding = 2 * torch.finfo(symmetric.dtype).eps * omega.scale
        before = self.linearization.whole.products
        moved, taken = symmetric_drift(self.linearization, omega.vectors[:, 0], displacement)
        self.products += taken - (self.linearization.whole.products - before)
        error = np.where(omega.converged[:, 0], omega.residual[:, 0] + rounding + 2 * moved, np.nan)
        self._put("numerical_abscissa", Estimate(omega.values[:, 0], error))

    def _tokens(self, blocks: Blocks | None) -> None:
        if not self.system.structure.causal:
            return
        if blocks is None:
            omega, error = token_numerical_abscissa(self.linearization, self._generator())
            self.over_tokens |= {"token_numerical_abscissa": omega, "token_numerical_abscissa_error": error}
        else:
            self.over_tokens |= {
                "token_numerical_abscissa": blocks.numerical_abscissa,
                # an eigenvalue of a symmetric matrix moves by at most the change of the matrix
                "token_numerical_abscissa_error": blocks.uncertainty,
                "token_departure": blocks.departure.departure,
                "token_departure_error": blocks.departure.error,
                "token_relative_departure": blocks.departure.relative,
                "token_norm": blocks.departure.norm,
                "token_antisymmetric_share": blocks.departure.antisymmetric_share,
            }
        asymmetry = token_asymmetry(self.linearization, self.params.vectors, self._generator())
        self.over_tokens |= {"token_asymmetry": asymmetry.value, "token_asymmetry_error": asymmetry.error}

    def _shares(self, blocks: Blocks | None) -> None:
        found = whole_sample(self.linearization, blocks, self.params.vectors, self._generator())
        for name in ("norm", "departure", "relative_departure", "antisymmetric_share", "asymmetry"):
            self._put(name, getattr(found, name))

    def _growth(self, blocks: Blocks | None, stable: Stability) -> None:
        steps, eps = self.params.growth_steps, self.system.eps
        contracts = None
        if blocks is not None and blocks.per_token:
            grown, contracts = block_growth(blocks, eps, steps)
            self.over_tokens |= grown
        found, curve, taken = sample_growth(
            self.linearization, blocks, stable, contracts, eps, steps, self._generator()
        )
        self.products += taken
        self.over_samples |= found
        self.others["growth_curve"] = (("sample", "step"), curve)
        self.coordinates["step"] = np.arange(steps + 1)

    def _pseudospectra(self, blocks: Blocks) -> None:
        growth = self.over_tokens.get("token_growth") if blocks.per_token else self.over_samples["growth"]
        chosen = chosen_blocks(blocks, self.params.rank, growth, self.params.blocks, self.params.token)
        variables, coordinates = analyse_blocks(
            blocks,
            chosen,
            flow=self.system.time is not Time.MAP,
            eps=self.system.eps,
            levels=self.params.level,
            grid=self.params.grid,
            horizon=self.params.growth_steps,
        )
        address = chosen // blocks.tokens, chosen % blocks.tokens
        self.others |= variables
        self.others["block_sample"] = ("block", self.index[address[0]].astype(np.int64))
        token = address[1] if blocks.per_token else np.full(len(chosen), -1)
        self.others["block_token"] = ("block", token.astype(np.int64))
        self.coordinates |= coordinates

    def _branches(self, z: torch.Tensor) -> None:
        if not self.system.branches(z):
            return
        self.products += self.params.vectors  # one backward pass through the branches each
        squares = branch_jacobian_squares(self.system, z, self._generator(), self.params.vectors)
        found = [
            jackknife(lambda x: np.sqrt(np.maximum(x, 0.0)), s.detach().double().cpu().numpy().T)
            for s in squares.values()
        ]
        self.over_branches = {
            "branch_norm": np.stack([f.value for f in found], 1),
            "branch_norm_error": np.stack([f.error for f in found], 1),
        }
        self.coordinates["branch"] = np.array(list(squares), dtype=object)

    def variables(self, samples: int) -> dict[str, Any]:
        """Return every variable, NaN (or a word) for the samples that were left out."""

        def filled(values: Any, tail: tuple[int, ...]) -> np.ndarray[Any, Any]:
            array = np.asarray(values).reshape(len(self.index), *tail)
            words = array.dtype == object
            out = np.full((samples, *tail), "left out" if words else np.nan, dtype=object if words else np.float64)
            out[self.index] = array
            return out

        out: dict[str, Any] = {name: ("sample", filled(v, ())) for name, v in self.over_samples.items()}
        if self.over_tokens:
            tokens = (self.linearization.z.shape[1],)
            out |= {name: (("sample", "token"), filled(v, tokens)) for name, v in self.over_tokens.items()}
        for name, v in self.over_branches.items():
            out[name] = (("sample", "branch"), filled(v, v.shape[1:]))
        for name, (dims, v) in self.others.items():
            out[name] = (dims, filled(v, v.shape[1:]) if "sample" in dims else v)
        return out
