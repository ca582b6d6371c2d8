"""What the attention of a block does at a state: how spread it is, and how large its queries, keys and logits are."""

import torch
from torch import Tensor, nn

from dyneq.systems.block import BoundBlock
from dyneq.systems.parts.attention import CausalAttention
from dyneq.systems.protocol import System

#: What :func:`attention_statistics` returns, each ``[sample, head, token]``.
STATISTICS = (
    "entropy",
    "relative_entropy",
    "own_weight",
    "query_rms_before",
    "query_rms",
    "key_rms_before",
    "key_rms",
    "logit_min",
    "logit_max",
)


def attention_of(system: System) -> CausalAttention | None:
    """Return the attention of a bound block, None where the system has none that is known here."""
    if not isinstance(system, BoundBlock) or not hasattr(system.block, "ln1"):
        return None
    attention = getattr(system.block, "attn", None)
    return attention if isinstance(attention, CausalAttention) else None


@torch.no_grad()
def attention_statistics(system: System, z: Tensor) -> dict[str, Tensor] | None:
    """Return what the attention of a block does at a state, or None where the system has no attention.

    Args:
        system: Any system.
        z: State ``[sample, token, channel]``.

    Returns:
        The :data:`STATISTICS`, each ``[sample, head, token]``, float64: entropy of the weights -sum p log p in nats,
        and relative to log(t + 1), that of uniform attention to the t + 1 tokens seen (NaN at token 0, which sees
        itself alone); weight of the token itself; root mean square of query and key over the head's channels before
        and after their normalisation (the same where there is none); smallest and largest of the logits q k^T/sqrt(d)
        over the tokens seen.
    """
    attention = attention_of(system)
    if attention is None:
        return None
    assert isinstance(system, BoundBlock)
    normalize = system.block.ln1
    assert isinstance(normalize, nn.Module)
    u = normalize(z)
    query, (key, _) = attention.query(u), attention.key_value(u)
    logits = (query * attention.scale) @ key.transpose(-1, -2)
    p = attention._probabilities(logits).double()
    tokens = logits.shape[-1]
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=z.device).tril()
    # entr(0) = 0, the limit of -p log p
    entropy = torch.special.entr(p).sum(-1)
    uniform = torch.arange(1, tokens + 1, dtype=torch.float64, device=z.device).log()
    raw_query, raw_key = (w(u).unflatten(-1, (attention.heads, -1)).transpose(-2, -3) for w in _projections(attention))
    return {
        "entropy": entropy,
        "relative_entropy": torch.where(uniform > 0, entropy / uniform, torch.nan),
        "own_weight": torch.diagonal(p, 0, -2, -1),
        "query_rms_before": _rms(raw_query),
        "query_rms": _rms(query),
        "key_rms_before": _rms(raw_key),
        "key_rms": _rms(key),
        "logit_min": logits.double().masked_fill(~seen, torch.inf).amin(-1),
        "logit_max": logits.double().masked_fill(~seen, -torch.inf).amax(-1),
    }


def _projections(attention: CausalAttention) -> tuple[nn.Module, nn.Module]:
    return attention.wq, attention.wk


def _rms(u: Tensor) -> Tensor:
    return u.double().square().mean(-1).sqrt()
