"""The language of ``--select``: text such as ``run=floss-3 and step>=800 and val<2.4`` to a checked expression.

Grammar, loosest binding first; keywords in any case, spaces only where two words would run together::

    expression  any ("or" any)*           any    all ("and" all)*
    all         "not" all | "(" expression ")" | field operator value | field "in" "(" value ("," value)* ")"
    field       segment ("." segment)*    segment: A-Z a-z 0-9 _ -, not starting a field with 0-9 or -; or quoted
    operator    = == != < <= > >= ~
    value       number | true | false | word of A-Z a-z 0-9 _ - . / @ : + | 'text' | "text"

Nothing is evaluated. :mod:`dyneq.catalog.selection_sql` makes an SQLite condition of an expression.
"""

import re
from typing import NoReturn

from dyneq.catalog.selection_tree import (
    FIRST_SEGMENT,
    KEYWORDS,
    SEGMENT,
    WORD,
    And,
    Comparison,
    Expression,
    Field,
    Not,
    Or,
    Text,
    Value,
    fields,
    literal,
)
from dyneq.errors import UsageError

__all__ = ["Expression", "excerpt", "fields", "parse", "parse_field"]

MAX_CHARACTERS = 10_000
MAX_DEPTH = 50
#: With the depth it keeps the condition within the 1,000 levels and the 100 entries of SQLite's parser.
MAX_COMPARISONS = 200

EXAMPLE = "write for example run=floss-3 and step>=800"
OPERATORS = "= != < <= > >= ~ or in"

# NUL would end a glob pattern early inside SQLite, and half of a surrogate pair has no UTF-8
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_SPACE = re.compile(r"[ \t\r\n]*")
_OPERATOR = re.compile(r"==|!=|<=|>=|[=<>~]")
_QUOTED = re.compile(r"""'(?:[^'\\]|\\['"\\])*'|"(?:[^"\\]|\\['"\\])*\"""")


def parse(text: str) -> Expression:
    """Return the expression a selection stands for; ``str()`` of it gives a text with the same meaning.

    Args:
        text: The selection as the user wrote it.

    Raises:
        UsageError: If it is not in the language, or beyond its limits; the sentence says where and what was expected.
    """
    if len(text) > MAX_CHARACTERS:
        raise UsageError(
            f"the selection {excerpt(text)} has {len(text):,} characters, but at most {MAX_CHARACTERS:,} are "
            "allowed; tag the checkpoints and select by tag"
        )
    return _Parser(text).parse()


def parse_field(text: str) -> Field:
    """Return the field a name such as ``recipe.optimizer.lr`` or ``metrics."val/loss"`` stands for.

    Raises:
        UsageError: If it is not one field.
    """
    parser = _Parser(text)
    field = parser.field()
    if parser.at < len(text):
        parser.fail("the end of the field name")
    return field


class _Parser:
    """Recursive descent over the characters; ``at`` is the next one to read, 0-based."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.comparisons = 0
        if found := _FORBIDDEN.search(text):
            self.at = found.start()
            self.fail("text without control characters")

    def parse(self) -> Expression:
        expression = self.disjunction()
        if self.at < len(self.text):
            self.fail("and, or, or the end")
        return expression

    def disjunction(self) -> Expression:
        items = [self.conjunction()]
        while self.keyword("or"):
            items.append(self.conjunction())
        return items[0] if len(items) == 1 else Or(tuple(items))

    def conjunction(self) -> Expression:
        items = [self.item()]
        while self.keyword("and"):
            items.append(self.item())
        return items[0] if len(items) == 1 else And(tuple(items))

    def item(self) -> Expression:
        start = self.skip()
        if self.keyword("not"):
            self.descend(start)
            inner: Expression = Not(self.item())
        elif self.take("("):
            self.descend(start)
            inner = self.disjunction()
            if not self.take(")"):
                self.fail(f"and, or, or the ) that closes the ( at character {start + 1}")
        else:
            return self.comparison()
        self.depth -= 1
        return inner

    def descend(self, start: int) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UsageError(
                f"the selection {excerpt(self.text, start)} nests parentheses and not more than {MAX_DEPTH} deep at "
                f"character {start + 1}; write it with fewer, or select with in (..., ...)"
            )

    def comparison(self) -> Expression:
        field = self.field()
        self.comparisons += 1
        if self.comparisons > MAX_COMPARISONS:
            raise UsageError(
                f"the selection {excerpt(self.text, self.at)} has more than {MAX_COMPARISONS} comparisons; write "
                "in (..., ...) for several values of one field"
            )
        if self.keyword("in"):
            return Comparison(field, "in", self.listed())
        self.skip()
        found = _OPERATOR.match(self.text, self.at)
        if not found:
            self.fail(f"one of {OPERATORS} after {excerpt(str(field))}")
        self.at = found.end()
        operator = "=" if found[0] == "==" else found[0]
        value = self.value()
        return Comparison(field, operator, (Text(value.text) if operator == "~" else value,))

    def listed(self) -> tuple[Value, ...]:
        if not self.take("("):
            self.fail("( and the values after in")
        values = [self.value()]
        while self.take(","):
            values.append(self.value())
        if not self.take(")"):
            self.fail("a comma or the ) that ends the list")
        return tuple(values)

    def field(self) -> Field:
        start = self.skip()
        segments: list[str] = []
        while not segments or self.text.startswith(".", self.at):
            self.at += bool(segments)
            pattern = SEGMENT if segments else FIRST_SEGMENT
            if found := _QUOTED.match(self.text, self.at):
                segments.append(_unquote(found[0]))
                # SQLite's JSON paths have no way to write these
                if not segments[-1] or set(segments[-1]) & {'"', "\\"}:
                    self.fail("a field name without double quotes and backslashes in it")
            elif (found := pattern.match(self.text, self.at)) is None:
                self.fail("the rest of the field name" if segments else "a field name such as run, not or (")
            else:
                segments.append(found[0])
            self.at = found.end()
        if segments[0].lower() in KEYWORDS and self.text[start] not in "'\"":
            self.at = start
            self.fail("a field name such as run (in quotes if it is really called so)")
        return Field(tuple(segments))

    def value(self) -> Value:
        self.skip()
        if found := _QUOTED.match(self.text, self.at):
            value: Value = Text(_unquote(found[0]))
        elif not (found := WORD.match(self.text, self.at)):
            self.fail("a value: a number, true, false, a word, or text in quotes")
        elif found[0].lower() in KEYWORDS:
            self.fail("a value (in quotes if it is really this word)")
        else:
            value = literal(found[0])
        self.at = found.end()
        self.skip()
        return value

    def skip(self) -> int:
        space = _SPACE.match(self.text, self.at)
        self.at = space.end() if space else self.at
        return self.at

    def take(self, character: str) -> bool:
        taken = self.text.startswith(character, self.skip())
        self.at += taken
        self.skip()
        return taken

    def keyword(self, word: str) -> bool:
        found = WORD.match(self.text, self.skip())
        if found is None or found[0].lower() != word:
            return False
        self.at = found.end()
        self.skip()
        return True

    def fail(self, expected: str) -> NoReturn:
        rest = WORD.match(self.text, self.at)
        found = repr(rest[0][:40] if rest else self.text[self.at]) if self.at < len(self.text) else "the end"
        closing = ""
        if self.text[self.at : self.at + 1] in ("'", '"') and not _QUOTED.match(self.text, self.at):
            closing = " that begins no complete quoted text (a backslash goes only before a quote or a backslash)"
        raise UsageError(
            f"the selection {excerpt(self.text, self.at)} is not understood at character {self.at + 1}: expected "
            f"{expected}, found {found}{closing}; {EXAMPLE}"
        )


def _unquote(quoted: str) -> str:
    return re.sub(r"\\(.)", r"\1", quoted[1:-1])


def excerpt(text: str, at: int = 0) -> str:
    """Return the text for a message, in quotes: whole, or the part around ``at`` if it is long."""
    if len(text) <= 120:
        return repr(text)
    first = max(0, min(at - 60, len(text) - 120))
    return ("..." if first else "") + repr(text[first : first + 120]) + ("..." if first + 120 < len(text) else "")
