"""The settings that several blocks share, each with its bound and its description; defaults are the block's own."""

from typing import Annotated

from pydantic import Field

Vocabulary = Annotated[int, Field(gt=0, description="number of token types V")]
Channels = Annotated[int, Field(gt=0, description="width C")]
Heads = Annotated[int, Field(gt=0, description="attention heads H, a divisor of C")]
Tokens = Annotated[int, Field(gt=0, description="longest context T")]
Eps = Annotated[float, Field(gt=0, description="step of the relaxation, time units")]
Damping = Annotated[float, Field(gt=-1, description="c in F = x - (1 + c) z + ...")]
Widening = Annotated[int, Field(gt=0, description="hidden width of the feed-forward branch in units of C")]
MemoryWidening = Annotated[int, Field(gt=0, description="patterns of the Hopfield memory in units of C")]
FfnBias = Annotated[bool, Field(description="biases in the feed-forward branch")]
AttentionBias = Annotated[bool, Field(description="biases in the four attention projections")]
QkNorm = Annotated[bool, Field(description="RMS-normalise queries and keys per head")]
FinalNorm = Annotated[bool, Field(description="layer norm before the read-out")]
NormEps = Annotated[float, Field(gt=0, description="small constant of the normalisations")]
EmbeddingStd = Annotated[float, Field(gt=0, description="standard deviation of tok and pos at initialisation")]


def require_divisor(channels: int, heads: int) -> None:
    """Raise unless the heads share the channels evenly.

    Raises:
        ValueError: If they do not, for pydantic to report.
    """
    if channels % heads:
        raise ValueError(f"channels={channels} is not a multiple of heads={heads}")
