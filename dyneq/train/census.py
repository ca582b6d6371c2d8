"""What a checkpoint's relaxation does in the long run: which samples settle, and what keeps the others moving."""

import copy
from typing import Any

import torch
from torch import Tensor

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.relax import relax
from dyneq.dynamics.roots import find_root
from dyneq.systems.checkpoint import Checkpoint
from dyneq.systems.protocol import System


def long_run(checkpoint: Checkpoint, depth: int) -> dict[str, Any]:
    """Relax the pinned batch in float64 and look at the roots of the samples that did not settle.

    Args:
        checkpoint: A causal block with its evaluation batch.
        depth: Relaxation steps.

    Returns:
        ``depth``, ``samples``, the indices ``unsettled`` (force residual above 1e-6) and ``moving`` (above 1e-3) after
        them, and ``pairs``: for each unsettled sample its ``force_residual``, the ``root_residual``, the abscissa
        ``mu`` [re, im] over all tokens at that root with its ``token``, and, where the flow is stable there (else
        None), ``critical_eps``, the smallest -2 Re mu / |mu|^2 over all modes, with the ``critical_token`` setting it.
    """
    block = copy.deepcopy(checkpoint.block).double().requires_grad_(False)
    system = block.bind(checkpoint.evaluation.tokens, checkpoint.evaluation.targets)
    relaxed = relax(system, depth)
    residual = relaxed.residuals.force
    unsettled = (~(residual <= 1e-6)).nonzero().flatten()
    return {
        "depth": depth,
        "samples": len(residual),
        "unsettled": unsettled.tolist(),
        "moving": (~(residual <= 1e-3)).nonzero().flatten().tolist(),
        "pairs": _pairs(system, unsettled, residual) if len(unsettled) else [],
    }


def _pairs(system: System, samples: Tensor, residual: Tensor) -> list[dict[str, Any]]:
    part = system.select(samples)
    roots = find_root(part)
    mu = torch.linalg.eigvals(Linearization(part, roots.z).token_blocks())  # [sample, token, mode]
    critical = -2 * mu.real / mu.abs().square()
    rows = []
    for i, sample in enumerate(samples.tolist()):
        token, mode = divmod(int(mu[i].real.argmax()), mu.shape[-1])
        value, stable = complex(mu[i, token, mode]), bool((mu[i].real < 0).all())
        rows.append(
            {
                "sample": sample,
                "force_residual": float(residual[sample]),
                "root_residual": float(roots.residual[i]),
                "token": token,
                "mu": [value.real, abs(value.imag)],
                "critical_eps": float(critical[i].min()) if stable else None,
                "critical_token": int(critical[i].argmin()) // mu.shape[-1] if stable else None,
            }
        )
    return rows
