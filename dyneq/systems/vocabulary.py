"""The character vocabulary a checkpoint carries with it."""

import torch
from torch import Tensor

from dyneq.errors import DyneqError


class CharacterVocabulary:
    """A fixed set of characters, each one token.

    Args:
        symbols: The characters in the order of their indices.

    Raises:
        DyneqError: If the symbols are not distinct single characters.
    """

    kind = "characters"

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

    def to_plain(self) -> dict[str, str]:
        """Return the plain values a checkpoint stores."""
        return {"kind": self.kind, "symbols": self.symbols}

    @classmethod
    def from_plain(cls, plain: object) -> "CharacterVocabulary":
        """Return the vocabulary a checkpoint stored.

        Raises:
            DyneqError: If the values are not those of a character vocabulary.
        """
        if not isinstance(plain, dict) or plain.get("kind") != cls.kind or not isinstance(plain.get("symbols"), str):
            kind = plain.get("kind") if isinstance(plain, dict) else None
            kind = kind[:80] if isinstance(kind, str) else type(plain if kind is None else kind).__name__
            raise DyneqError(
                f"the checkpoint's tokenizer should be of kind {cls.kind!r} with its symbols, but is {kind!r}; "
                "save the checkpoint again with a tokenizer this version knows"
            )
        return cls(plain["symbols"])
