"""Lifting an eigenpair of a token block to the whole Jacobian: the test that the token spectrum is the spectrum."""

import torch
from torch import Tensor

from dyneq.dynamics.linearization import Linearization


@torch.no_grad()
def lift_pair(linearization: Linearization, sample: int, token: int, mu: complex, v: Tensor) -> tuple[Tensor, float]:
    """Extend (mu, v) of J_tt to an eigenvector of the whole, block lower triangular J by forward substitution.

    Tokens before t are 0; for s > t, (J_ss - mu) v_s = -sum over r < s of J_sr v_r.

    Args:
        linearization: J of a causal system.
        sample: Sample of the pair.
        token: Token t of the pair.
        mu: Eigenvalue of J_tt.
        v: Its right vector ``[channel]``, complex.

    Returns:
        The unit eigenvector ``[token, channel]`` and its residual norm(J v - mu v), from a product with the whole J.
    """
    one = Linearization(linearization.system.select(torch.tensor([sample])), linearization.z[sample : sample + 1])
    blocks = one.token_blocks()[0]
    tokens, channels = one.z.shape[1:]
    lifted = torch.zeros(1, tokens, channels, dtype=torch.complex128, device=blocks.device)
    lifted[0, token] = v.to(torch.complex128)
    eye = torch.eye(channels, dtype=torch.complex128, device=blocks.device)
    for s in range(token + 1, tokens):
        known = one.matvec(lifted.to(torch.complex128 if blocks.dtype == torch.float64 else torch.complex64))[0, s]
        lifted[0, s] = torch.linalg.solve(blocks[s].to(torch.complex128) - mu * eye, -known.to(torch.complex128))
    lifted /= torch.linalg.vector_norm(lifted)
    product = one.matvec(lifted.to(torch.complex128 if blocks.dtype == torch.float64 else torch.complex64))
    residual = torch.linalg.vector_norm(product - mu * lifted)
    return lifted[0], float(residual)
