"""Small random blocks in float64 with weights strong enough to be interesting."""

import pytest
import torch

from dyneq.systems.thick import ThickBlock, ThickConfig


def build(seed=0, samples=3, tokens=5, gain=1.0, **options):
    """Return a bound float64 block with its output projections scaled by ``gain``."""
    options = {"vocabulary": 13, "channels": 8, "heads": 2, "tokens": tokens, **options}
    generator = torch.Generator().manual_seed(seed)
    block = ThickBlock(ThickConfig(**options), generator).double()
    with torch.no_grad():
        block.attn.wo.weight.mul_(gain)
        block.ffn.pj.weight.mul_(gain)
        for name, p in block.named_parameters():
            if "ln" in name or name.endswith("bias"):
                p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    batch = torch.randint(0, options["vocabulary"], (samples, tokens), generator=generator)
    return block.bind(batch, batch.roll(-1, 1))


@pytest.fixture(name="build")
def _build():
    return build
