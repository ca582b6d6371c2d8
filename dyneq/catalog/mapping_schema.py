"""What a mapping file may say: its sections, their types, and one sentence about what is wrong with one."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dyneq.errors import UsageError, nearest

FORMAT = "dyneq-mapping/1"

Name = Annotated[str, Field(min_length=1, max_length=300)]
Metric = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Span = Annotated[list[Count], Field(min_length=2, max_length=2)]


class _Section(BaseModel):
    # strict: TOML has types, so "16" is not a number
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileSection(_Section):
    """Where things are in the foreign file."""

    weights: str = Field("", max_length=300, description="dotted path of the state dict; empty: the file itself is it")
    step: Name | Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="dotted path of the training step, or the step itself"
    )
    step_name: Name | None = Field(None, description="name of the file with one {step}, and * for what varies")

    @model_validator(mode="after")
    def _one_step(self) -> "FileSection":
        if (self.step is None) == (self.step_name is None):
            raise ValueError("give one of step and step_name (step = 0 if the step is not known)")
        if self.step_name is not None and self.step_name.count("{step}") != 1:
            raise ValueError("step_name should hold {step} once, as in 'ckpt-{step}.pt'")
        return self


class _TextSection(_Section):
    corpus: Literal["pydoc", "kjv"] | None = Field(None, description="built-in text")
    file: Name | None = Field(None, description="UTF-8 text in the folder of the mapping file or below")

    @field_validator("file")
    @classmethod
    def _stays_below(cls, file: str | None) -> str | None:
        if file is not None and (Path(file).is_absolute() or ".." in Path(file).parts):
            raise ValueError("it should name a text in the folder of the mapping file or below")
        return file


class VocabularySection(_TextSection):
    """Which character each token index means."""

    characters: str | None = Field(None, min_length=1, description="the characters in the order of their indices")
    unused: Count = Field(0, description="token types after the last character that mean nothing")

    @model_validator(mode="after")
    def _one_source(self) -> "VocabularySection":
        if sum(given is not None for given in (self.characters, self.corpus, self.file)) != 1:
            raise ValueError("give one of characters, corpus and file")
        return self


class EvaluationSection(_TextSection):
    """The batch that every probe of the imported checkpoints will use."""

    samples: Count = Field(64, gt=0, description="number of samples")
    tokens: Count | None = Field(None, gt=0, description="tokens of each; the longest context of the block if None")
    seed: int = Field(0, ge=0, lt=2**63, description="seed that draws them")
    validation: float = Field(0.1, gt=0, lt=1, description="share of the text, at its end, that they are drawn from")

    @model_validator(mode="after")
    def _one_source(self) -> "EvaluationSection":
        if (self.corpus is None) == (self.file is None):
            raise ValueError("give one of corpus and file")
        return self


class Origin(_Section):
    """What one of our weights is made of: rows, columns, transposition and scale, applied in this order."""

    source: Name | None = Field(None, alias="from", description="name of their tensor")
    fill: float | None = Field(None, allow_inf_nan=False, description="the one value of a weight they do not have")
    rows: Span | None = Field(None, description="first index and end along the first axis")
    columns: Span | None = Field(None, description="first index and end along the second axis")
    transpose: bool = Field(False, description="exchange the two axes")
    scale: float = Field(1.0, allow_inf_nan=False, description="factor, multiplied in float64 and rounded once")

    @model_validator(mode="after")
    def _one_origin(self) -> "Origin":
        if (self.source is None) == (self.fill is None):
            raise ValueError("give one of from and fill")
        if self.fill is not None and self.model_fields_set != {"fill"}:
            raise ValueError("fill stands alone, it takes the shape of our weight")
        if self.scale == 0:
            raise ValueError("a scale of 0 would throw the tensor away, say fill = 0.0 instead")
        for span in (self.rows, self.columns):
            if span is not None and not 0 <= span[0] < span[1]:
                raise ValueError("rows and columns are [first, end] with 0 <= first < end")
        return self


class IgnoreSection(_Section):
    """What of theirs is not needed."""

    names: list[Name] = Field(max_length=200, description="names, or patterns with * ? [abc]")


class MappingFile(_Section):
    """A mapping file as it is written."""

    format: Literal["dyneq-mapping/1"]
    block: dict[str, Any]
    file: FileSection
    metrics: dict[Metric, Name] = Field(default_factory=dict)
    vocabulary: VocabularySection
    evaluation: EvaluationSection
    weights: dict[str, Origin]
    ignore: IgnoreSection = IgnoreSection(names=[])

    @field_validator("weights", mode="before")
    @classmethod
    def _bare_names(cls, weights: object) -> object:
        if not isinstance(weights, dict):
            return weights
        return {ours: {"from": theirs} if isinstance(theirs, str) else theirs for ours, theirs in weights.items()}


_SECTIONS: dict[str, type[BaseModel]] = {
    "file": FileSection,
    "vocabulary": VocabularySection,
    "evaluation": EvaluationSection,
    "weights": Origin,
    "ignore": IgnoreSection,
}


def validate(values: dict[str, Any]) -> MappingFile:
    """Return the mapping that parsed TOML describes.

    Raises:
        UsageError: If a key is unknown (with the nearest known one), missing, or its value impossible.
    """
    if values.get("format") != FORMAT:
        raise UsageError(f"'format' should be {FORMAT!r}, but is {brief(values.get('format'))}; correct or add it")
    try:
        return MappingFile.model_validate(values)
    except ValidationError as error:
        raise UsageError(explain(error)) from None


def explain(error: ValidationError, prefix: str = "") -> str:
    """Return the first thing that is wrong, as part of a sentence in one line."""
    first = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"]]
    if where[:1] == ["file"]:
        where = where[:2]  # without pydantic's names of the members of a union
    key = (prefix + ".".join(where)).rstrip(".")
    if first["type"] == "extra_forbidden":
        model = _SECTIONS[where[0]] if len(where) > 1 else MappingFile
        known = [field.alias or name for name, field in model.model_fields.items()]
        return f"there is no setting {key!r}{nearest(where[-1], known)}"
    if first["type"] == "missing":
        return f"{key!r} is missing; add it"
    message = " ".join(first["msg"].removeprefix("Value error, ").split())[:200]
    return f"{key!r} is {brief(first['input'])}, but: {message[:1].lower()}{message[1:]}"


def brief(value: object) -> str:
    """Return a value as messages show it, in one line."""
    if isinstance(value, dict | list):
        return f"a {'table' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
