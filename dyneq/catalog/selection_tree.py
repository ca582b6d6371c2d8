"""The nodes of a selection, which print as the text they stand for."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

KEYWORDS = frozenset({"and", "or", "not", "in"})
WORD = re.compile(r"[A-Za-z0-9_./@:+-]+")
SEGMENT = re.compile(r"[A-Za-z0-9_-]+")
FIRST_SEGMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf)", re.IGNORECASE)


@dataclass(frozen=True)
class Field:
    """A dotted name, as its segments.

    Attributes:
        segments: One string a level: ``("recipe", "optimizer", "lr")``.
    """

    segments: tuple[str, ...]

    def __str__(self) -> str:
        first, *rest = self.segments
        plain = FIRST_SEGMENT.fullmatch(first) and first.lower() not in KEYWORDS
        texts = [first if plain else _quote(first), *(s if SEGMENT.fullmatch(s) else _quote(s) for s in rest)]
        return ".".join(texts)


@dataclass(frozen=True)
class Text:
    """A text to compare with."""

    text: str

    def __str__(self) -> str:
        plain = WORD.fullmatch(self.text) and self.text.lower() not in KEYWORDS
        return self.text if plain and isinstance(literal(self.text), Text) else _quote(self.text)


@dataclass(frozen=True)
class Number:
    """A number to compare with.

    Attributes:
        text: As the user wrote it; a text column is compared with this.
    """

    text: str

    @property
    def value(self) -> int | float:
        """The number: an int where it is written as one and has at most 64 bits, else a float."""
        if _INTEGER.fullmatch(self.text) and len(self.text) <= 20 and -(2**63) <= int(self.text) < 2**63:
            return int(self.text)
        return float(self.text)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Boolean:
    """``true`` or ``false``; ``text`` is what the user wrote, in any case."""

    text: str

    @property
    def value(self) -> bool:
        """The truth value."""
        return self.text.lower() == "true"

    def __str__(self) -> str:
        return self.text


Value = Text | Number | Boolean


@dataclass(frozen=True)
class Comparison:
    """``field operator value``.

    Attributes:
        field: What is compared.
        operator: ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``~`` (glob match) or ``in``.
        values: What with: one or more for ``in``, else exactly one; for ``~`` a :class:`Text`.
    """

    field: Field
    operator: str
    values: tuple[Value, ...]

    def __str__(self) -> str:
        if self.operator == "in":
            return f"{self.field} in ({', '.join(map(str, self.values))})"
        return f"{self.field}{self.operator}{self.values[0]}"


@dataclass(frozen=True)
class Not:
    """The negation; unknown stays unknown."""

    item: "Expression"

    def __str__(self) -> str:
        return f"not {_enclosed(self.item)}"


@dataclass(frozen=True)
class And:
    """True where all of two or more items are."""

    items: tuple["Expression", ...]

    def __str__(self) -> str:
        return " and ".join(map(_enclosed, self.items))


@dataclass(frozen=True)
class Or:
    """True where any of two or more items is."""

    items: tuple["Expression", ...]

    def __str__(self) -> str:
        return " or ".join(str(item) if isinstance(item, And) else _enclosed(item) for item in self.items)


Expression = Comparison | Not | And | Or


def fields(expression: Expression) -> list[str]:
    """Return the names used, each once, in the order of their first use and written as a selection writes them."""
    return list(dict.fromkeys(str(comparison.field) for comparison in comparisons(expression)))


def comparisons(expression: Expression) -> Iterator[Comparison]:
    """Yield the comparisons of an expression from left to right."""
    if isinstance(expression, Comparison):
        yield expression
        return
    for item in (expression.item,) if isinstance(expression, Not) else expression.items:
        yield from comparisons(item)


def literal(word: str) -> Value:
    """Return what a word without quotes stands for: a number, true or false, else itself."""
    if _NUMBER.fullmatch(word):
        return Number(word)
    return Boolean(word) if word.lower() in ("true", "false") else Text(word)


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _enclosed(item: Expression) -> str:
    return f"({item})" if isinstance(item, And | Or) else str(item)
