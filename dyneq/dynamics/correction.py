"""How far a computed root may be from the true one: a whole Newton correction, errors between tokens included."""

from collections.abc import Callable

import torch
from torch import Tensor

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.newton import DenseDirection, KrylovDirection
from dyneq.dynamics.residuals import SMALLEST, least_size, relative_size
from dyneq.dynamics.roots import DENSE_LIMIT
from dyneq.systems.protocol import System

#: Relative displacement of a sample or token above which a correction of first order says nothing.
FIRST_ORDER = 0.1
#: Relative accuracy a correction is solved to.
ACCURACY = 0.1
#: Relative change of a token's correction below which the sweeps end.
SETTLED = 0.01


@torch.no_grad()
def root_displacement(system: System, z: Tensor, *, generator: torch.Generator) -> Tensor:
    """Estimate the way from computed roots to the true ones.

    Two estimates are made, and for each sample the longer one is returned: the Newton correction -J^{-1} F at z, and
    the way to where a Newton step leads from z with every number moved by a rounding error. The second shows the
    rounding of F, which the first misses where F happens to be computed as 0. Both contain what tokens pass on to later
    ones. At a double root they are half the distance.

    Args:
        system: The system.
        z: Roots ``[sample, ...]``, finite.
        generator: Signs of the rounding errors, and randomness of GMRES.

    Returns:
        Displacements of the shape of z; NaN for samples where one could not be computed or is too large for an estimate
        of first order.
    """
    solve = _solver(system, z, generator)
    signs = torch.randint(0, 2, z.shape, generator=generator).to(z) * 2 - 1
    nudged = z + torch.finfo(z.dtype).eps * z.abs() * signs
    first, second = solve(system.force(z)), nudged - z + solve(system.force(nudged))
    sizes = [torch.linalg.vector_norm(d.flatten(1), dim=1) for d in (first, second)]
    shape = (-1,) + (1,) * (z.ndim - 1)
    longer = torch.where((sizes[0] >= sizes[1]).view(shape), first, second)
    known = torch.isfinite(sizes[0]) & torch.isfinite(sizes[1])
    known &= relative_size(longer, z, least_size(system)) <= FIRST_ORDER
    if system.structure.causal:
        known &= (_by_token(longer) <= FIRST_ORDER * _by_token(z).clamp(min=_least_tokens(system))).all(1)
    return torch.where(known.view(shape), longer, torch.nan)


def _by_token(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=2)


def _least_tokens(system: System) -> Tensor:
    return SMALLEST * _by_token(system.initial_state().detach())


def _solver(system: System, z: Tensor, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Return ``f -> -J^{-1} f`` on states, with J at z; not finite where that fails."""
    linearization = Linearization(system, z)
    if system.structure.causal:
        factors = torch.linalg.lu_factor_ex(linearization.token_blocks())[:2]
        return lambda f: _substitute(linearization, factors, f)
    direction: DenseDirection | KrylovDirection
    if z[0].numel() <= DENSE_LIMIT:
        direction = DenseDirection(lambda _: linearization.dense())
    else:
        direction = KrylovDirection(lambda _: linearization.whole, generator, ACCURACY)
    direction.refresh(z)
    return lambda f: direction.verify(f.flatten(1)).view_as(f)


def _substitute(linearization: Linearization, factors: tuple[Tensor, Tensor], f: Tensor) -> Tensor:
    """Return -J^{-1} f for block lower triangular J by sweeps d <- -D^{-1} (f + (J - D) d), D its diagonal blocks.

    Sweep k is exact for the first k tokens, so as many sweeps as tokens are always enough. They end earlier once no
    token's correction changes any more; each is judged by its own size, so that a small one that grows on its way to
    later tokens is not cut off.
    """
    d = torch.zeros_like(f)
    for _ in range(f.shape[1]):
        # d - D^{-1} (f + J d), the same as the sweep
        step = -torch.linalg.lu_solve(*factors, (f + linearization.matvec(d)).unsqueeze(-1)).squeeze(-1)
        d = d + step
        # false as well where a block is singular and nothing is finite
        if not bool((_by_token(step) > SETTLED * _by_token(d)).any()):
            break
    return d
