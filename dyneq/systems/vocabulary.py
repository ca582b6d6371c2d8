"""Vocabularies: what the token indices of a checkpoint mean. Every kind is a tokeniser that recipes can name."""

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from dyneq import plugins
from dyneq.errors import DyneqError, UsageError


class Vocabulary(ABC):
    """A fixed set of tokens; a checkpoint carries it as plain values.

    Attributes:
        kind: Its name in recipes and checkpoints; the name of its entry point in ``dyneq.tokenizers``.
        unit: What one token is, as in "nats per character".
    """

    kind: ClassVar[str]
    unit: ClassVar[str] = "token"

    @classmethod
    @abstractmethod
    def learn(cls, training: str, held_out: str, size: int) -> Self:
        """Return the vocabulary of a corpus; equal arguments give equal vocabularies.

        Args:
            training: The text to train on.
            held_out: The text that is held out, from which nothing but its characters may be learnt.
            size: Tokens asked for; a kind whose texts decide the number ignores it.

        Raises:
            DyneqError: If the text does not support so many tokens, or a package is missing.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of tokens."""

    @abstractmethod
    def encode(self, text: str) -> Tensor:
        """Return the indices ``[token]``, int64.

        Raises:
            DyneqError: If the text cannot be encoded.
        """

    @abstractmethod
    def decode(self, tokens: Tensor) -> str:
        """Return the text of indices ``[token]``."""

    @abstractmethod
    def characters(self, tokens: Tensor) -> Tensor:
        """Return how many characters begin in each token, int64, of the shape of ``tokens``."""

    @abstractmethod
    def to_plain(self) -> dict[str, Any]:
        """Return the plain values a checkpoint stores, ``kind`` among them."""

    @classmethod
    @abstractmethod
    def from_plain(cls, plain: object) -> Self:
        """Return the vocabulary a checkpoint stored.

        Raises:
            DyneqError: If the values are not those of such a vocabulary.
        """

    @property
    def sha256(self) -> str:
        """Digest of its plain values."""
        return hashlib.sha256(json.dumps(self.to_plain(), sort_keys=True).encode()).hexdigest()


class CharacterVocabulary(Vocabulary):
    """A fixed set of characters, each one token.

    Args:
        symbols: The characters in the order of their indices.

    Raises:
        DyneqError: If the symbols are not distinct single characters.
    """

    kind = "characters"
    unit = "character"

    def __init__(self, symbols: str) -> None:
        if not symbols or len(set(symbols)) != len(symbols):
            raise DyneqError(
                f"a character vocabulary needs distinct characters, but {len(symbols)} were given of which "
                f"{len(set(symbols))} differ; build it with CharacterVocabulary.of(text)"
            )
        self.symbols = symbols
        self._index = {symbol: i for i, symbol in enumerate(symbols)}

    @classmethod
    def of(cls, text: str) -> "CharacterVocabulary":
        """Return the vocabulary of all characters of ``text``, in code-point order."""
        return cls("".join(sorted(set(text))))

    @classmethod
    def learn(cls, training: str, held_out: str, size: int) -> Self:
        """Return all characters of both parts, in code-point order, however many there are."""
        return cls("".join(sorted(set(training) | set(held_out))))

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> Tensor:
        """Return the indices ``[character]``, int64.

        Raises:
            DyneqError: If a character is not in the vocabulary.
        """
        try:
            return torch.tensor([self._index[c] for c in text], dtype=torch.int64)
        except KeyError as error:
            raise DyneqError(
                f"the character {error.args[0]!r} is not among the {len(self)} of this vocabulary; "
                "remove it from the text or train with a vocabulary that has it"
            ) from None

    def decode(self, tokens: Tensor) -> str:
        """Return the text of indices ``[character]``."""
        return "".join(self.symbols[i] for i in tokens.tolist())

    def characters(self, tokens: Tensor) -> Tensor:
        """Return ones."""
        return torch.ones_like(tokens)

    def to_plain(self) -> dict[str, str]:
        """Return the plain values a checkpoint stores."""
        return {"kind": self.kind, "symbols": self.symbols}

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """Return the vocabulary a checkpoint stored.

        Raises:
            DyneqError: If the values are not those of a character vocabulary.
        """
        if not isinstance(plain, dict) or plain.get("kind") != cls.kind or not isinstance(plain.get("symbols"), str):
            raise DyneqError(
                f"the checkpoint's tokenizer should be of kind {cls.kind!r} with its symbols, but is {_shown(plain)}; "
                "save the checkpoint again with a tokenizer this version knows"
            )
        return cls(plain["symbols"])


def tokenizer_of_kind(kind: str) -> type[Vocabulary]:
    """Return the class of vocabularies of a kind, as its entry point declares it.

    Raises:
        UsageError: If there is none, or it is no vocabulary.
    """
    found = plugins.load(plugins.TOKENIZERS, kind, "tokenizer")
    if not (isinstance(found, type) and issubclass(found, Vocabulary)):
        raise UsageError(
            f"the entry point {kind!r} of {plugins.TOKENIZERS} should be a Vocabulary subclass, but is {found!r}; "
            f"name one of {', '.join(plugins.names(plugins.TOKENIZERS))}"
        )
    return found


def vocabulary_from_plain(plain: object) -> Vocabulary:
    """Return the vocabulary a checkpoint stored, of whatever kind.

    Raises:
        DyneqError: If there is no such kind, or the values are not those of one.
    """
    kind = plain.get("kind") if isinstance(plain, dict) else None
    known = plugins.names(plugins.TOKENIZERS)
    if kind == CharacterVocabulary.kind:
        return CharacterVocabulary.from_plain(plain)
    if not isinstance(kind, str) or kind not in known:
        raise DyneqError(
            f"the checkpoint's tokenizer should be of kind {' or '.join(map(repr, known))}, but is {_shown(plain)}; "
            "install the package that declares it, or save the checkpoint again with a tokenizer this version knows"
        )
    return tokenizer_of_kind(kind).from_plain(plain)


def _shown(plain: object) -> str:
    kind = plain.get("kind") if isinstance(plain, dict) else None
    return repr(kind[:80] if isinstance(kind, str) else type(plain if kind is None else kind).__name__)
