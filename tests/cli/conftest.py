"""A small checkpoint on disk and a way to run the command in this process."""

import json

import pytest
import torch

from dyneq.cli.main import run
from dyneq.systems.checkpoint import Checkpoint, EvaluationBatch
from dyneq.systems.checkpoint_io import save_checkpoint
from dyneq.systems.thick import ThickBlock, ThickConfig
from dyneq.systems.vocabulary import CharacterVocabulary


@pytest.fixture
def ckpt(tmp_path):
    """Return the path of a checkpoint of a tiny block with four pinned samples."""
    generator = torch.Generator().manual_seed(0)
    block = ThickBlock(ThickConfig(vocabulary=11, channels=8, heads=2, tokens=5), generator)
    tokens = torch.randint(0, 11, (4, 5), generator=generator)
    path = tmp_path / "tiny.pt"
    made = Checkpoint(
        block,
        CharacterVocabulary("abcdefghijk"),
        EvaluationBatch(tokens, tokens.roll(-1, 1)),
        step=7,
        metrics={"a": 1.0},
    )
    save_checkpoint(path, made)
    return path


@pytest.fixture
def dyneq_run(capsys):
    """Return a function that runs ``dyneq ARGS`` and gives exit code, standard output and standard error."""

    def call(*args):
        code = run([str(a) for a in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def dyneq_json(dyneq_run):
    """Return a function that runs ``dyneq ARGS --json`` and gives the document."""

    def call(*args):
        code, out, err = dyneq_run(*args, "--json")
        assert (code, err) == (0, "")
        assert out.count("\n") == 1, "one document on one line"
        return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    return call
