"""One layer of an ordinary transformer."""

from torch import Tensor, nn

from dyneq.systems.parts.attention import CausalAttention
from dyneq.systems.parts.feedforward import FeedForward
from dyneq.systems.parts.norms import LayerNorm


class PreNormLayer(nn.Module):
    """``h <- h + Attn(LN1 h)``, then ``h <- h + FFN(LN2 h)`` (Xiong et al., arXiv:2002.04745).

    Args:
        channels: Width C.
        norm_eps: Small constant of the normalisations.
        attn: The attention.
        ffn: The feed-forward part.
    """

    def __init__(self, channels: int, norm_eps: float, attn: CausalAttention, ffn: FeedForward) -> None:
        super().__init__()
        self.ln1 = LayerNorm(channels, eps=norm_eps)
        self.ln2 = LayerNorm(channels, eps=norm_eps)
        self.attn, self.ffn = attn, ffn

    def forward(self, h: Tensor) -> Tensor:
        """Return the layer's output ``[sample, token, channel]``."""
        h = h + self.attn(self.ln1(h))
        return h + self.ffn(self.ln2(h))
