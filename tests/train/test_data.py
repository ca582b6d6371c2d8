"""Corpora and batches."""

from importlib import metadata
from pathlib import Path

import pytest
import torch

from dyneq.errors import DyneqError, UsageError
from dyneq.train import data
from dyneq.train.data import Corpus, load_corpus


def test_pydoc_is_the_language_reference_in_a_fixed_order() -> None:
    corpus = load_corpus("pydoc")
    from pydoc_data.topics import topics

    assert 300_000 < len(corpus.text) < 1_000_000
    assert corpus.text.startswith(topics[min(topics)])
    assert corpus.text.endswith(topics[max(topics)])
    assert corpus.sha256 == load_corpus("pydoc").sha256


def test_the_two_parts_make_up_the_text() -> None:
    corpus = Corpus("t", "the quick brown fox jumps over the lazy dog" * 10, 0.25)
    both = torch.cat([corpus.part("training"), corpus.part("validation")])
    assert corpus.vocabulary.decode(both) == corpus.text
    assert len(corpus.part("validation")) == len(corpus.text) // 4


def test_batches_are_windows_of_the_training_text_and_repeat_with_the_seed() -> None:
    corpus = Corpus("t", "".join(chr(0x4E00 + i) for i in range(500)), 0.2)  # every character once: a window is known
    tokens, targets = corpus.batch(300, 7, torch.Generator().manual_seed(3))
    again, _ = corpus.batch(300, 7, torch.Generator().manual_seed(3))
    assert torch.equal(tokens, again)
    assert torch.equal(tokens[:, 1:], tokens[:, :-1] + 1)
    assert torch.equal(targets, tokens + 1)
    assert targets.max() < 400
    # every window that fits can be drawn, the last one included
    all_starts = corpus.batch(20_000, 7, torch.Generator().manual_seed(0))[0][:, 0]
    assert set(all_starts.tolist()) == set(range(400 - 7))


def test_the_pinned_batch_is_held_out_text_without_overlap() -> None:
    corpus = Corpus("t", "".join(chr(0x4E00 + i) for i in range(500)), 0.2)
    batch = corpus.evaluation_batch(10, 7, seed=1)
    used = torch.cat([batch.tokens, batch.targets[:, -1:]], 1).flatten().tolist()
    assert len(set(used)) == len(used) == 80
    assert min(used) >= 400
    assert batch.sha256 == corpus.evaluation_batch(10, 7, seed=1).sha256
    assert batch.sha256 != corpus.evaluation_batch(10, 7, seed=2).sha256
    assert batch.source["sha256"] == corpus.sha256


def test_a_text_too_short_is_refused() -> None:
    with pytest.raises(DyneqError, match=r"10 held out, but .* windows of 7 tokens"):
        Corpus("t", "a" * 100).evaluation_batch(2, 7, seed=0)


def test_texts_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="did you mean 'pydoc'"):
        load_corpus("pydocs")
    with pytest.raises(DyneqError, match=r"nowhere\.txt cannot be read"):
        load_corpus("pydoc", tmp_path / "nowhere.txt")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(DyneqError, match="should be UTF-8, but byte 3"):
        load_corpus("pydoc", tmp_path / "latin")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(DyneqError, match="is empty"):
        load_corpus("pydoc", tmp_path / "empty")

    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(data.metadata, "distribution", missing)
    with pytest.raises(DyneqError, match=r"install dyneq\[text\]"):
        load_corpus("kjv")


def test_kjv_is_read_without_importing_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verses = tmp_path / "bible" / "data" / "kjv.jsonl"
    verses.parent.mkdir(parents=True)
    verses.write_text('{"text": "In the beginning"}\n{"text": "And the earth"}\n', encoding="utf-8")

    class Distribution:
        def locate_file(self, path: str) -> Path:
            return tmp_path / path

    monkeypatch.setattr(data.metadata, "distribution", lambda name: Distribution())
    assert load_corpus("kjv").text == "In the beginning\nAnd the earth"
