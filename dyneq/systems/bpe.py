"""Byte-pair vocabularies: tokens of several bytes, learnt from a text; every text can be encoded.

Only learning and encoding need the package tokenizers; a checkpoint is read, decoded and diagnosed without it.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.systems.vocabulary import Vocabulary

#: Occurrences of a pair of tokens in the training text from which it may become a token.
OCCURRENCES = 2


def _alphabet() -> dict[str, int]:
    """Return the printable character that stands for each byte.

    As in GPT-2 and the package tokenizers: a printable byte of Latin-1 stands for itself, the others in their order are
    U+0100, U+0101 and so on. So no token ever holds a blank, and a token is a readable string whatever its bytes.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _alphabet()


class BpeVocabulary(Vocabulary):
    """Tokens learnt by merging, again and again, the pair of neighbouring tokens that occurs most often.

    Words are cut as GPT-2 does; no merge crosses a cut. (Sennrich et al., arXiv:1508.07909, on bytes.)

    Args:
        symbols: The tokens in the order of their indices, one character of :func:`_alphabet` for a byte; all 256 bytes
            are among them.
        merges: Pairs of tokens as ``"a b"``, the most often seen first; ``ab`` is a token too.

    Raises:
        DyneqError: If they do not make up a byte-level vocabulary.
    """

    kind = "bpe"

    def __init__(self, symbols: Sequence[str], merges: Sequence[str]) -> None:
        self.symbols, self.merges = tuple(symbols), tuple(merges)
        index = {symbol: i for i, symbol in enumerate(self.symbols)}
        pairs = [merge.split(" ") for merge in self.merges]
        problem = None
        if len(index) != len(self.symbols):
            problem = f"{len(self.symbols) - len(index)} of its {len(self.symbols)} tokens occur twice"
        elif missing := [byte for symbol, byte in _BYTES.items() if symbol not in index]:
            problem = f"it lacks {len(missing)} of the 256 bytes"
        elif odd := [s for s in self.symbols if not s or not _BYTES.keys() >= set(s)]:
            problem = f"the token {odd[0][:80]!r} is no string of bytes"
        elif bad := [
            m for m, p in zip(self.merges, pairs, strict=True) if len(p) != 2 or not {*p, "".join(p)} <= index.keys()
        ]:
            problem = f"the merge {bad[0][:80]!r} is not one of its tokens into another"
        if problem is not None:
            raise DyneqError(
                f"a bpe vocabulary needs distinct tokens, all bytes among them, and merges of them, but {problem}; "
                "make it with BpeVocabulary.learn"
            )
        self._index = index

    @classmethod
    def learn(cls, training: str, held_out: str, size: int) -> Self:
        """Return the vocabulary of ``size`` tokens of the training text alone.

        Raises:
            DyneqError: If fewer tokens than bytes are asked for, the text does not support so many, or the package
                tokenizers is missing.
        """
        if size < len(_BYTES):
            raise DyneqError(
                f"a bpe vocabulary holds all {len(_BYTES)} bytes, but data.vocabulary asks for {size} tokens in all; "
                f"ask for {len(_BYTES)} or more"
            )
        tokenizers = _package()
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size, min_frequency=OCCURRENCES, show_progress=False, initial_alphabet=sorted(_BYTES)
        )
        _require_unicode(training)
        tokenizer.train_from_iterator([training], trainer, length=1)
        model = json.loads(tokenizer.to_str())["model"]
        symbols = sorted(model["vocab"], key=model["vocab"].__getitem__)
        if len(symbols) < size:
            raise DyneqError(
                f"the text to train on supports a bpe vocabulary of {len(symbols)} tokens (its bytes and pairs seen at "
                f"least {OCCURRENCES} times), but data.vocabulary asks for {size}; ask for {len(symbols)} or fewer, or "
                "use a longer text"
            )
        return cls(symbols, [m if isinstance(m, str) else " ".join(m) for m in model["merges"]])

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizers = _package()
        pairs = [tuple(merge.split(" ")) for merge in self.merges]
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=self._index, merges=pairs))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tokenizer

    def encode(self, text: str) -> Tensor:
        """Return the indices ``[token]``, int64.

        Raises:
            DyneqError: If the package tokenizers is missing, or the text holds half a surrogate pair.
        """
        _require_unicode(text)
        return torch.tensor(self._tokenizer.encode(text).ids, dtype=torch.int64)

    def decode(self, tokens: Tensor) -> str:
        """Return the text of indices ``[token]``; a character that is cut off at an end becomes U+FFFD."""
        return b"".join(self._bytes[i] for i in tokens.tolist()).decode("utf-8", errors="replace")

    @cached_property
    def _bytes(self) -> list[bytes]:
        return [bytes(_BYTES[c] for c in symbol) for symbol in self.symbols]

    @cached_property
    def _begun(self) -> Tensor:
        # every byte of UTF-8 begins a character but those of the form 10xxxxxx
        return torch.tensor([sum(byte & 0xC0 != 0x80 for byte in token) for token in self._bytes])

    def characters(self, tokens: Tensor) -> Tensor:
        """Return how many characters begin in each token, int64, of the shape of ``tokens``."""
        return self._begun.to(tokens.device)[tokens]

    def to_plain(self) -> dict[str, Any]:
        """Return the plain values a checkpoint stores."""
        return {"kind": self.kind, "symbols": list(self.symbols), "merges": list(self.merges)}

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """Return the vocabulary a checkpoint stored.

        Raises:
            DyneqError: If the values are not those of a bpe vocabulary.
        """
        symbols, merges = (plain.get(k) if isinstance(plain, dict) else None for k in ("symbols", "merges"))
        for name, values in (("symbols", symbols), ("merges", merges)):
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise DyneqError(
                    f"the checkpoint's tokenizer of kind {cls.kind!r} should hold {name} as a list of strings, but "
                    "does not; save the checkpoint again"
                )
        assert isinstance(symbols, list)
        assert isinstance(merges, list)
        return cls(symbols, merges)


def _package() -> Any:
    try:
        import tokenizers
        from tokenizers import models, pre_tokenizers, trainers  # noqa: F401 (they become attributes)
    except ImportError as error:
        raise DyneqError(
            f"the tokenizer 'bpe' needs the package tokenizers to encode text, which cannot be imported ({error}); "
            "install dyneq[bpe], or use data.tokenizer=characters"
        ) from None
    return tokenizers


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DyneqError(
            f"the text holds half a surrogate pair at character {error.start}, which is no character and has no UTF-8 "
            "form; remove it"
        ) from None
