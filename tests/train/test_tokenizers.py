"""Runs on byte-pair tokens: what is learnt from which text, the loss per character, and what a resume refuses."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dyneq.dynamics.relax import relax
from dyneq.errors import DyneqError, UsageError
from dyneq.systems.bpe import BpeVocabulary
from dyneq.systems.checkpoint_io import load_checkpoint
from dyneq.train.data import Corpus, corpus_of, load_corpus
from dyneq.train.log import read_log
from dyneq.train.loop import Ending, resume, start
from dyneq.train.recipe import Recipe
from dyneq.train.run_folder import RunFolder
from dyneq.train.trainer import Trainer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None, reason="the package tokenizers is not installed"
)
Tiny = Callable[..., Recipe]
BPE = {"tokenizer": "bpe", "vocabulary": 270}


def test_the_vocabulary_is_learnt_from_the_training_part_alone() -> None:
    training = "the cat and the hat and the bat in the mat " * 40
    first, second = (
        Corpus("t", training + tail * 10, len(tail) * 10 / len(training + tail * 10)) for tail in ("xyz", "zzé")
    )
    vocabularies = [Corpus(c.name, c.text, c.validation, "bpe", 264).vocabulary.to_plain() for c in (first, second)]
    assert vocabularies[0] == vocabularies[1]
    assert vocabularies[0] == BpeVocabulary.learn(training, "", 264).to_plain()
    corpus = Corpus("t", second.text, second.validation, "bpe", 264)
    assert corpus.vocabulary.decode(corpus.part("training")) == training
    assert corpus.vocabulary.decode(corpus.part("validation")) == "zzé" * 10
    assert len(corpus.part("training")) < len(training)


def test_windows_are_windows_of_tokens() -> None:
    corpus = Corpus("t", "the cat sat on the mat. " * 60, 0.2, "bpe", 266)
    tokens, targets = corpus.batch(50, 5, torch.Generator().manual_seed(0))
    assert torch.equal(targets[:, :-1], tokens[:, 1:])
    text = corpus.vocabulary.decode(corpus.part("training"))
    assert all(corpus.vocabulary.decode(row) in text for row in tokens)
    with pytest.raises(DyneqError, match=r"has \d+ tokens to train on"):
        corpus.evaluation_batch(1000, 5, seed=0)


def test_a_tokenizer_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="no tokenizer called 'bpee'; did you mean 'bpe'"):
        load_corpus("pydoc", None, 0.1, "bpee")


def test_the_loss_per_character_is_the_loss_of_the_text_over_its_characters(tiny: Tiny) -> None:
    recipe = tiny(data=BPE, run={"dtype": "float64"})
    trainer = Trainer(recipe, corpus_of(recipe.data))
    metrics = trainer.evaluate()
    batch = trainer.evaluation
    with torch.no_grad():
        system = trainer.block.bind(batch.tokens, batch.targets)
        logits = trainer.block.logits(relax(system, 5).z)
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    characters = sum(len(trainer.corpus.vocabulary.decode(row)) for row in batch.targets)  # all of them ASCII
    assert characters > batch.targets.numel()
    assert metrics["validation_loss_per_character"] == pytest.approx(nats.item() / characters, rel=1e-12)
    assert metrics["validation_loss"] == pytest.approx(nats.item() / batch.targets.numel(), rel=1e-12)


def test_where_a_loss_per_character_is_not_said(tiny: Tiny) -> None:
    masked = {"kind": "energy", "channels": 8, "heads": 2, "tokens": 6}
    for recipe in (tiny(), tiny(data=BPE, block=masked)):
        assert "validation_loss_per_character" not in Trainer(recipe, corpus_of(recipe.data)).evaluate()


def test_a_run_keeps_its_vocabulary_and_continues_with_it(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny(data=BPE, run={"steps": 6, "snapshots": [3]})
    start(recipe, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    run = RunFolder(tmp_path / "again")
    run.snapshot_file(6).unlink()
    outcome = resume(run.path)
    assert outcome.ending is Ending.COMPLETED
    kept = load_checkpoint(tmp_path / "whole" / "step-000006.pt")
    assert kept.vocabulary.sha256 == corpus_of(recipe.data).vocabulary.sha256
    assert (kept.vocabulary.kind, len(kept.vocabulary)) == ("bpe", 270)
    assert kept.recipe["data"]["tokenizer"] == "bpe"
    logged = [r for r in read_log(tmp_path / "whole" / "log.jsonl") if "validation_loss" in r]
    assert logged
    assert all(0 < r["validation_loss_per_character"] < r["validation_loss"] for r in logged)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "vocabulary = 270",
            "vocabulary = 271",
            r"a vocabulary that does not match: bpe of 270 .* now gives bpe of 271",
        ),
        ('tokenizer = "bpe"', 'tokenizer = "characters"', r"does not match: bpe of 270 .* gives characters of 9 "),
        ("vocabulary = 270", "vocabulary = 27000", r"asks for 27000; ask for \d+ or fewer"),
        ("channels = 8", "channels = 16", r"has changed .*block.channels was 8 and is 16.* start a new run"),
        ("lr = 0.01", "lr = 0.02", r"optimizer.lr was 0\.01 and is 0\.02"),
        ("batch = 3", "batch = 4", r"run.batch was 3 and is 4"),
    ],
)
def test_a_run_does_not_continue_as_another(tiny: Tiny, tmp_path: Path, old: str, new: str, message: str) -> None:
    start(tiny(data=BPE, run={"steps": 2}), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    text = run.recipe_file.read_text()
    assert text.count(old) == 1
    run.recipe_file.write_text(text.replace(old, new))
    with pytest.raises(DyneqError, match=message):
        resume(run.path)
    run.recipe_file.write_text(text)
    assert {p.name: p.read_bytes() for p in run.path.iterdir()} == before


def test_a_run_may_be_made_longer_and_its_text_moved(tiny: Tiny, tmp_path: Path) -> None:
    start(tiny(run={"steps": 4}), tmp_path / "run")
    (tmp_path / "text.txt").rename(tmp_path / "moved.txt")
    run = RunFolder(tmp_path / "run")
    text = run.recipe_file.read_text()
    assert "steps = 4\n" in text
    text = text.replace("text.txt", "moved.txt").replace("[run]\nsteps = 4\n", "[run]\nsteps = 7\n")
    run.recipe_file.write_text(text)
    assert resume(run.path).step == 7
