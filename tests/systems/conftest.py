"""Small blocks whose every parameter is random, so that no term of a formula is multiplied by zero or one."""

import pytest
import torch

from dyneq.systems.checkpoint import Checkpoint, EvaluationBatch
from dyneq.systems.thick import ThickBlock, ThickConfig
from dyneq.systems.vocabulary import CharacterVocabulary

SIZES = {"vocabulary": 11, "channels": 8, "heads": 2, "tokens": 5}


def random_block(**options) -> ThickBlock:
    generator = torch.Generator().manual_seed(1)
    block = ThickBlock(ThickConfig(**{**SIZES, **options}), generator).double()
    with torch.no_grad():
        for name, p in block.named_parameters():
            if p.ndim == 1:
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=0.3)
            if name == "attn.wo.weight":
                p.mul_(2.0)
    return block


def random_tokens(samples: int, tokens: int, vocabulary: int, seed: int = 2) -> torch.Tensor:
    return torch.randint(vocabulary, (samples, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def make_bound():
    """Return a function ``options -> (bound block, random state, generator)`` with 2 samples of 5 tokens."""

    def make(**options):
        block = random_block(**options)
        bound = block.bind(random_tokens(2, 5, 11), random_tokens(2, 5, 11, seed=3))
        generator = torch.Generator().manual_seed(4)
        return bound, torch.randn(2, 5, 8, generator=generator, dtype=torch.float64), generator

    return make


@pytest.fixture
def checkpoint() -> Checkpoint:
    """Return a small checkpoint with every optional part."""
    block = random_block(qk_norm=True, final_norm=True, attention_bias=True, damping=0.5).float()
    batch = EvaluationBatch(random_tokens(4, 5, 11), random_tokens(4, 5, 11, seed=3), {"corpus": "pydoc", "seed": 7})
    return Checkpoint(
        block,
        CharacterVocabulary("abc def\nü∑\U0001f600"),
        batch,
        step=12,
        metrics={"validation_loss": 2.5, "abscissa": -0.1},
        recipe={"steps": 100, "betas": [0.9, 0.99], "note": None},
        training={"ema": {"w": torch.arange(3.0)}, "rng": {"torch": torch.arange(4, dtype=torch.uint8)}},
    )
