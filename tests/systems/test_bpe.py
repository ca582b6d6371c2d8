"""Byte-pair vocabularies: any text comes back, equal texts give equal digests, checkpoints need no package."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyneq import run_probe
from dyneq.errors import DyneqError
from dyneq.systems.bpe import BpeVocabulary, _alphabet
from dyneq.systems.checkpoint import Checkpoint, EvaluationBatch
from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint
from dyneq.systems.thick import ThickBlock, ThickConfig
from dyneq.systems.vocabulary import vocabulary_from_plain

TEXT = "the cat sat on the mat, and the other cat sat on the other mat; théâtre ∑ 猫\n" * 6
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None, reason="the package tokenizers is not installed"
)


def bare(*further: str, merges: tuple[str, ...] = ()) -> BpeVocabulary:
    """All bytes in the order of their values, and some tokens more; made without the package."""
    alphabet = sorted(_alphabet(), key=_alphabet().__getitem__)
    return BpeVocabulary([*alphabet, *further], merges)


@needs_package
def test_the_alphabet_is_that_of_the_package() -> None:
    from tokenizers import pre_tokenizers

    assert set(_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(_alphabet().values()) == list(range(256))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for byte in range(128):
        ((shown, _),) = byte_level.pre_tokenize_str(chr(byte))
        assert _alphabet()[shown] == byte


@needs_package
@given(st.text(), st.integers(256, 285))
@settings(max_examples=60, deadline=None)
def test_every_text_comes_back(text: str, size: int) -> None:
    vocabulary = BpeVocabulary.learn(TEXT, "", size)
    tokens = vocabulary.encode(text)
    assert tokens.dtype == torch.int64
    assert vocabulary.decode(tokens) == text
    assert int(vocabulary.characters(tokens).sum()) == len(text)


@needs_package
@given(st.text(alphabet="ab ", min_size=1, max_size=80))
@settings(max_examples=40, deadline=None)
def test_what_is_learnt_depends_on_the_text_alone(text: str) -> None:
    def learn() -> BpeVocabulary | str:
        try:
            return BpeVocabulary.learn(text, "held out, not looked at" * 9, 258)
        except DyneqError as error:
            return str(error)

    first, second = learn(), learn()
    if isinstance(first, str):
        assert first == second
        return
    assert first.sha256 == second.sha256
    assert first.sha256 == hashlib.sha256(json.dumps(first.to_plain(), sort_keys=True).encode()).hexdigest()
    assert len(first.encode(text)) <= len(text)


@needs_package
def test_the_first_merge_is_the_most_frequent_pair() -> None:
    vocabulary = BpeVocabulary.learn("banana bandana", "", 257)
    # cut as "banana" and " bandana"; counted here by hand over neighbouring letters
    pairs = Counter(word[i : i + 2] for word in ("banana", " bandana") for i in range(len(word) - 1))
    best, count = pairs.most_common(1)[0]
    assert (best, count) == ("an", 4)
    assert vocabulary.merges == ("a n",)
    an = vocabulary.symbols.index("an")
    assert (vocabulary.encode("banana") == an).sum() == 2


@needs_package
def test_learning_does_not_depend_on_the_process() -> None:
    code = f"from dyneq.systems.bpe import BpeVocabulary; print(BpeVocabulary.learn({TEXT!r}, '', 280).sha256)"
    digests = set()
    for threads in ("1", "4"):
        environment = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout.strip())
    assert digests == {BpeVocabulary.learn(TEXT, "", 280).sha256}


@needs_package
def test_more_tokens_than_the_text_supports() -> None:
    with pytest.raises(DyneqError, match=r"supports a bpe vocabulary of 257 tokens .* asks for 300; ask for 257 or"):
        BpeVocabulary.learn("ab ab", "", 300)
    assert len(BpeVocabulary.learn("ab ab", "", 257)) == 257
    with pytest.raises(DyneqError, match=r"holds all 256 bytes, but data\.vocabulary asks for 255"):
        BpeVocabulary.learn(TEXT, "", 255)


@needs_package
def test_half_a_surrogate_pair_is_named() -> None:
    for act in (lambda: BpeVocabulary.learn("ab\ud800", "", 256), lambda: bare().encode("abc\udfff")):
        with pytest.raises(DyneqError, match=r"half a surrogate pair at character [23]"):
            act()


def test_decoding_and_counting_need_no_package() -> None:
    vocabulary = bare("ab", "abÃ", merges=("a b", "ab Ã"))
    assert vocabulary.decode(torch.tensor([256, 0x20, 257, 0xA9])) == "ab abé"
    assert vocabulary.characters(torch.tensor([[256, 257, 0xA9]])).tolist() == [[2, 3, 0]]
    assert vocabulary.decode(torch.tensor([0xA9, 97])) == "\ufffda"  # cut within a character
    assert vocabulary.unit == "token"


@pytest.mark.parametrize(
    ("further", "merges", "message"),
    [
        (("a",), (), "1 of its 257 tokens occur twice"),
        (("a b",), (), "'a b' is no string of bytes"),
        (("",), (), "'' is no string of bytes"),
        (("ab",), ("a c",), "the merge 'a c'"),
        (("ab",), ("ab",), "the merge 'ab'"),
        (("ab",), ("a b c",), "the merge 'a b c'"),
    ],
)
def test_what_is_no_vocabulary(further: tuple[str, ...], merges: tuple[str, ...], message: str) -> None:
    with pytest.raises(DyneqError, match=message):
        bare(*further, merges=merges)
    with pytest.raises(DyneqError, match="lacks 1 of the 256 bytes"):
        BpeVocabulary(bare().symbols[:-1], ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"symbols": None}, "'bpe' should hold symbols as a list of strings"),
        ({"symbols": "abc"}, "should hold symbols"),
        ({"merges": [["a", "b"]]}, "should hold merges"),
        ({"symbols": ["a"]}, "lacks 255 of the 256 bytes"),
        ({"kind": "bpee"}, "of kind 'bpe' or 'characters', but is 'bpee'"),
        ({"kind": 3}, "but is 'int'"),
    ],
)
def test_damaged_plain_values(change: dict[str, object], message: str) -> None:
    with pytest.raises(DyneqError, match=message):
        vocabulary_from_plain({**bare("ab", merges=("a b",)).to_plain(), **change})


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_checkpoint_is_read_and_diagnosed_without_the_package(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = bare("ab", "ba", merges=("a b", "b a"))
    block = ThickBlock(ThickConfig(vocabulary=len(vocabulary), channels=4, heads=2, tokens=3))
    tokens = torch.tensor([[256, 257, 97], [98, 98, 256]])
    path = tmp_path / f"bpe.{ending}"
    save_checkpoint(path, Checkpoint(block, vocabulary, EvaluationBatch(tokens, tokens.roll(-1, 1)), step=3))
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # as if it were not installed
    kept = load_checkpoint(path)
    assert isinstance(kept.vocabulary, BpeVocabulary)
    assert kept.vocabulary.to_plain() == vocabulary.to_plain()
    assert kept.vocabulary.sha256 == vocabulary.sha256
    assert kept.vocabulary.decode(kept.evaluation.tokens[0]) == "ab" + "ba" + "a"
    assert run_probe("residual", kept.bind(), depth=(3,)).sizes["sample"] == 2
    with pytest.raises(DyneqError, match=r"needs the package tokenizers .*install dyneq\[bpe\]"):
        kept.vocabulary.encode("a")
    with pytest.raises(DyneqError, match="needs the package tokenizers"):
        BpeVocabulary.learn(TEXT, "", 256)
