"""Mapping files: where in a foreign state dict the weights of one of our blocks are.

A mapping is data. It names tensors and plain values of a file, and at most two texts, which are read as UTF-8 and
nothing else. Whatever does not depend on a foreign file is decided here, before one is opened.
"""

import hashlib
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from dyneq.catalog.mapping_schema import (
    EvaluationSection,
    MappingFile,
    Origin,
    VocabularySection,
    brief,
    explain,
    validate,
)
from dyneq.errors import DyneqError, UsageError, nearest
from dyneq.systems.checkpoint import EvaluationBatch, block_of_kind
from dyneq.systems.vocabulary import CharacterVocabulary
from dyneq.train.data import Corpus, load_corpus

#: Bytes of a mapping file, and characters of one of its lines: TOML's dotted keys cost the square of their length.
FILE_LIMIT, LINE_LIMIT = 2**16, 2**13
#: Bytes of a text that a mapping names.
TEXT_LIMIT = 2**28
#: Tokens in the evaluation batch: every probe computes with all of them.
BATCH_LIMIT = 2**20
#: Numbers that ``fill`` may make up; all others are bounded by the foreign file.
FILL_LIMIT = 2**24


@dataclass(frozen=True)
class Mapping:
    """A mapping that was read and found possible.

    Attributes:
        path: The mapping file.
        sha256: Its digest.
        said: What it says.
        config: Configuration of the block, every default filled in.
        shapes: Shape of every weight of the block, by name.
        vocabulary: What the token indices mean.
        evaluation: The batch pinned in every checkpoint made with it.
    """

    path: Path
    sha256: str
    said: MappingFile
    config: dict[str, Any]
    shapes: dict[str, torch.Size]
    vocabulary: CharacterVocabulary
    evaluation: EvaluationBatch


def read_mapping(path: str | Path) -> Mapping:
    """Read a mapping file and decide all that does not depend on the foreign file.

    Nothing is written, and nothing that the mapping names is opened except the texts of ``[vocabulary]`` and
    ``[evaluation]``, which lie in its own folder or below.

    Args:
        path: A TOML file of the format ``dyneq-mapping/1``.

    Raises:
        DyneqError: If it, or a text it names, cannot be read or is too short.
        UsageError: If it holds something unknown or impossible, or weights of the block are missing.
    """
    path = Path(path)
    try:
        data = _read(path, FILE_LIMIT)
        said = validate(_parse(data))
        vocabulary = _vocabulary(said.vocabulary, path.parent)
        config, shapes = _block(said.block, len(vocabulary), said.vocabulary.unused)
        _check_weights(said.weights, shapes)
        evaluation = _evaluation(said.evaluation, config, vocabulary, path.parent)
    except RecursionError:
        raise UsageError(f"the mapping {path} is nested too deeply; a mapping has sections and plain values") from None
    except UsageError as error:
        raise UsageError(f"the mapping {path}: {error}") from None
    except DyneqError as error:
        raise DyneqError(f"the mapping {path}: {error}") from None
    return Mapping(path, hashlib.sha256(data).hexdigest(), said, config, shapes, vocabulary, evaluation)


def _read(path: Path, limit: int) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may never end
            raise DyneqError(f"{str(path)!r} should be a file, but is none; name a text file")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # a name may hold what no file system takes
        reason = getattr(error, "strerror", None) or error
        raise DyneqError(f"{str(path)!r} cannot be read ({reason}); check the path") from None
    if len(data) > limit:
        raise DyneqError(f"{str(path)!r} is longer than {limit} bytes, the most that is read here; shorten it")
    return data


def _parse(data: bytes) -> dict[str, Any]:
    try:
        text = data.decode("utf-8")
        if max(map(len, text.split("\n"))) > LINE_LIMIT:
            raise UsageError(f"a line has more than {LINE_LIMIT} characters; break it, or name a vocabulary file")
        return tomllib.loads(text)
    except ValueError as error:  # not UTF-8, not TOML, or a number too long for Python
        raise UsageError(f"TOML was expected, but was not found ({' '.join(str(error).split())}); correct it") from None


def _text(section: VocabularySection | EvaluationSection, folder: Path, validation: float = 0.1) -> Corpus:
    if section.file is not None:
        _read(folder / section.file, TEXT_LIMIT)  # so that what load_corpus reads is a file of a sensible size
        if not (folder / section.file).resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"the text {section.file!r} is a link out of the mapping's folder; put a copy into it")
        return load_corpus("", folder / section.file, validation)
    return load_corpus(str(section.corpus), None, validation)


def _vocabulary(section: VocabularySection, folder: Path) -> CharacterVocabulary:
    if section.characters is not None:
        return CharacterVocabulary(section.characters)
    return CharacterVocabulary.of(_text(section, folder).text)


def _block(given: dict[str, Any], symbols: int, unused: int) -> tuple[dict[str, Any], dict[str, torch.Size]]:
    """Return the configuration with every default, and the shapes of the block's weights without their memory."""
    kind = given.get("kind", "thick")
    if not isinstance(kind, str):
        raise UsageError(f"'block.kind' should be a name such as 'thick', but is {brief(kind)}; correct it")
    block_type = block_of_kind(kind)
    config_type = block_type.Config
    fields = config_type.model_fields
    for key, value in given.items():
        if key not in fields:
            raise UsageError(f"there is no setting {f'block.{key}'!r}{nearest(key, fields)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{f'block.{key}'!r} should be finite, but is {value}; correct it")
    if "vocabulary" in fields:
        if (stated := given.get("vocabulary", symbols + unused)) != symbols + unused:
            raise UsageError(
                f"'block.vocabulary' is {brief(stated)}, but there are {symbols} characters and {unused} unused "
                "indices; give the characters the model was trained with, and vocabulary.unused if it has more indices"
            )
        given = {**given, "vocabulary": symbols + unused}
    try:
        config = config_type.model_validate(given)
    except ValidationError as error:
        raise UsageError(explain(error, "block.")) from None
    try:
        with torch.device("meta"):
            block = block_type(config)
        shapes = {name: weight.shape for name, weight in block.state_dict().items()}
    except Exception as error:  # what a constructor raises on absurd sizes has no end
        first = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"no block can be built of [block] ({type(error).__name__}: {first[:200]}); give the sizes of the model"
        ) from None
    return config.model_dump(), shapes


def _check_weights(weights: dict[str, Origin], shapes: dict[str, torch.Size]) -> None:
    for name in weights:
        if name not in shapes:
            raise UsageError(f"the block has no weight {name!r}{nearest(name, shapes)}")
    if missing := [f"{name} {list(shape)}" for name, shape in shapes.items() if name not in weights]:
        raise UsageError(f"[weights] lacks {', '.join(missing)}; say where each comes from, or fill it")
    filled = sum(math.prod(shapes[name]) for name, origin in weights.items() if origin.fill is not None)
    if filled > FILL_LIMIT:
        raise UsageError(f"[weights] fills {filled} numbers, but at most {FILL_LIMIT} may be; check [block]")


def _evaluation(
    section: EvaluationSection, config: dict[str, Any], vocabulary: CharacterVocabulary, folder: Path
) -> EvaluationBatch:
    """Return the windows the corpus would pin, in the indices of the foreign model's vocabulary."""
    longest = config.get("tokens")
    tokens = longest if section.tokens is None else section.tokens
    if not isinstance(tokens, int):
        raise UsageError("'evaluation.tokens' is missing and this block has no longest context; add it")
    if isinstance(longest, int) and tokens > longest:
        raise UsageError(f"'evaluation.tokens' is {tokens}, but the block takes at most {longest}; shorten the samples")
    if section.samples * tokens > BATCH_LIMIT:
        raise UsageError(
            f"the evaluation batch would have {section.samples} samples of {tokens} tokens, but at most {BATCH_LIMIT} "
            "tokens in all are sensible; take fewer samples"
        )
    corpus = _text(section, folder, section.validation)
    drawn = corpus.evaluation_batch(section.samples, tokens, section.seed)
    symbols = CharacterVocabulary.of(corpus.text).symbols
    index = {symbol: i for i, symbol in enumerate(vocabulary.symbols)}
    table = torch.tensor([index.get(symbol, -1) for symbol in symbols])
    batch = EvaluationBatch(table[drawn.tokens], table[drawn.targets], drawn.source)
    used = torch.cat([drawn.tokens.flatten(), drawn.targets.flatten()]).unique()
    if unknown := [symbols[i] for i in used[table[used] < 0].tolist()]:
        raise UsageError(
            f"the text {corpus.name!r} of [evaluation] holds {len(unknown)} characters that [vocabulary] lacks, such "
            f"as {unknown[0]!r}; give the characters the model was trained with, or another text"
        )
    return batch
