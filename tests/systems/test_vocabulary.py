"""The character vocabulary: every text of its characters comes back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyneq.errors import DyneqError
from dyneq.systems.vocabulary import CharacterVocabulary

repeatable = settings(max_examples=100, derandomize=True, database=None, deadline=None)


@repeatable
@given(text=st.text(min_size=1))
def test_text_comes_back(text):
    vocabulary = CharacterVocabulary.of(text)
    tokens = vocabulary.encode(text)
    assert tokens.dtype == torch.int64
    assert tokens.shape == (len(text),)
    assert vocabulary.decode(tokens) == text
    assert set(tokens.tolist()) == set(range(len(vocabulary)))
    assert CharacterVocabulary.from_plain(vocabulary.to_plain()).symbols == vocabulary.symbols
    # order of code points, so that the same text gives the same indices everywhere
    assert list(vocabulary.symbols) == sorted(set(text))


@repeatable
@given(text=st.text(min_size=1), other=st.characters())
def test_a_character_that_is_not_in_it_is_named(text, other):
    vocabulary = CharacterVocabulary.of(text)
    if other in text:
        assert vocabulary.encode(other).tolist() == [vocabulary.symbols.index(other)]
    else:
        with pytest.raises(DyneqError) as caught:
            vocabulary.encode(text + other)
        assert repr(other) in str(caught.value)
        assert f"the {len(set(text))} of this vocabulary" in str(caught.value)


def test_indices_keep_their_order():
    vocabulary = CharacterVocabulary("cab")
    assert vocabulary.encode("abc").tolist() == [1, 2, 0]
    assert vocabulary.decode(torch.tensor([0, 0, 2])) == "ccb"
    assert vocabulary.encode("").shape == (0,)


@pytest.mark.parametrize("symbols", ["", "aa", "abca"])
def test_symbols_that_are_not_distinct_are_refused(symbols):
    with pytest.raises(DyneqError, match="distinct characters"):
        CharacterVocabulary(symbols)


@pytest.mark.parametrize(
    "plain", [None, [], {}, {"kind": "bpe", "symbols": "ab"}, {"kind": "characters", "symbols": ["a"]}]
)
def test_other_tokenizers_are_refused(plain):
    with pytest.raises(DyneqError, match="tokenizer should be of kind 'characters'"):
        CharacterVocabulary.from_plain(plain)
