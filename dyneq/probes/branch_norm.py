"""The norm of the Jacobian of a system's branches: what ``nonnormality`` reports and the penalty ``jacreg`` uses."""

import torch
from torch import Tensor

from dyneq.errors import UsageError
from dyneq.systems.protocol import System

#: Name of the sum of all branches.
ALL = "all"


def branch_jacobian_squares(system: System, z: Tensor, generator: torch.Generator, vectors: int) -> dict[str, Tensor]:
    """Return norm(J_b^T w)^2 for random signs w, each an unbiased estimate of norm_F(J_b)^2; differentiable.

    J_b is the Jacobian of a branch b (attention, feed-forward) at z; ``all`` is that of their sum, which is J without
    its decay. Only reverse mode is used, so fused attention is allowed.

    Args:
        system: A system with branches.
        z: State ``[sample, ...]``. Where it carries a graph, the derivative by what it depends on is kept; otherwise it
            is held fixed and the derivative is by the parameters alone.
        generator: Source of the vectors.
        vectors: How many.

    Returns:
        By branch, and ``all``: ``[vector, sample]``, per unit time squared.

    Raises:
        UsageError: If the system has no branches, or no vector is asked for.
    """
    if vectors < 1:
        raise UsageError(f"the norm of a branch is estimated from at least 1 random vector, but {vectors} were given")
    with torch.enable_grad():
        at = z if z.requires_grad else z.detach().requires_grad_()
        branches = system.branches(at)
        if not branches:
            raise UsageError(
                f"{system.name} declares no branches, so their Jacobian has no norm; give it a branches(z), or use "
                "another penalty"
            )
        squares: dict[str, list[Tensor]] = {name: [] for name in (*branches, ALL)}
        for _ in range(vectors):
            w = (2 * torch.randint(0, 2, z.shape, generator=generator) - 1).to(z)
            total = torch.zeros_like(z)
            for name, branch in branches.items():
                product: Tensor | None = None
                if branch.requires_grad:
                    (product,) = torch.autograd.grad(branch, at, w, create_graph=True, allow_unused=True)
                product = torch.zeros_like(z) if product is None else product  # a branch that does not depend on z
                squares[name].append(product.square().flatten(1).sum(1))
                total = total + product
            squares[ALL].append(total.square().flatten(1).sum(1))
        return {name: torch.stack(values) for name, values in squares.items()}


def branch_jacobian_norm(system: System, z: Tensor, generator: torch.Generator, vectors: int = 1) -> dict[str, Tensor]:
    """Return estimates of norm_F(J_b) of every branch and of their sum ``all``, ``[sample]``; differentiable.

    The square is unbiased (Hutchinson, Commun. Stat. Simul. 18, 1989), its root too small by about half its relative
    variance. The derivative of a norm that is 0 is taken to be 0.

    Args:
        system: A system with branches.
        z: State ``[sample, ...]``, see :func:`branch_jacobian_squares`.
        generator: Source of the vectors.
        vectors: How many.

    Returns:
        By branch, and ``all``: per unit time.
    """
    norms = {}
    for name, squares in branch_jacobian_squares(system, z, generator, vectors).items():
        mean = squares.mean(0)
        positive = mean > 0
        # the root has no derivative at 0; taking it of 1 there keeps the backward pass finite
        norms[name] = torch.where(positive, torch.where(positive, mean, 1.0).sqrt(), torch.zeros_like(mean))
    return norms
