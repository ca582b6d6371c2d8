"""From an expression of the selection language to an SQLite condition, with every value and JSON path a parameter.

Three-valued as SQL: a comparison with what is missing, or of a number with a text, is unknown, ``not`` unknown is
unknown, and only true selects. So a validation loss stored as the text ``"NaN"`` is neither below, above nor different
from 2.4, although SQLite by itself orders every text after every number.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from dyneq.catalog.selection import excerpt, parse_field
from dyneq.catalog.selection_tree import And, Boolean, Comparison, Expression, Field, Not, Number, Value
from dyneq.errors import UsageError, nearest

PLACEHOLDER = "{compare}"


@dataclass(frozen=True)
class Column:
    """A field with an SQL expression of its own.

    Attributes:
        sql: An SQL expression without parameters, for example ``c.step``. For ``many`` a condition in which
            ``{compare}`` stands once, where the comparison belongs:
            ``EXISTS (SELECT 1 FROM tags t WHERE t.sha256 = c.sha256 AND t.tag {compare})``.
        kind: ``text``: text or NULL. ``number``: an integer, a real or NULL. ``any``: each row may hold another type.
            ``many``: a set of texts; true where a member satisfies the comparison, and ``tag != x`` where none is x.
    """

    sql: str
    kind: Literal["text", "number", "any", "many"]

    def __post_init__(self) -> None:
        if self.sql.count(PLACEHOLDER) != (self.kind == "many"):
            raise ValueError(f"{self.sql!r} of kind {self.kind!r}: {PLACEHOLDER} stands once in many, else nowhere")


@dataclass(frozen=True)
class Schema:
    """What the fields of a selection stand for.

    Attributes:
        columns: Field, as a selection writes it, to column.
        documents: First segment of a field to an SQL expression of a JSON text or NULL; the other segments are the
            path in it. The JSON must be valid: infinity written as 9e999 and not a number as the text "NaN".
        default: The document in which a name of one segment is looked up that is nothing else; None if it is an error.
        aliases: Short name to the field it stands for, which is not an alias again.
    """

    columns: Mapping[str, Column]
    documents: Mapping[str, str]
    default: str | None
    aliases: Mapping[str, str]


def to_sql(expression: Expression, schema: Schema) -> tuple[str, list[object]]:
    """Return the WHERE condition of an expression and its positional parameters.

    Args:
        expression: What :func:`dyneq.catalog.selection.parse` returned.
        schema: The fields there are.

    Raises:
        UsageError: If a field is not known, or a comparison makes no sense for it: a number with a text, an order of
            true and false.
    """
    condition = _condition(expression, schema, negated=False)
    return f"({condition.sql})", condition.parameters


@dataclass(frozen=True)
class _Condition:
    """SQL without parentheses around it, and its loosest operator: OR, AND, or empty for a single comparison.

    SQLite's parser keeps what it has not finished on a stack of 100 entries; ``stack`` is how many of them this needs
    beyond those of a comparison.
    """

    sql: str
    parameters: list[object]
    word: str
    stack: int


def _condition(expression: Expression, schema: Schema, *, negated: bool) -> _Condition:
    """Return the SQL of an expression or of its negation, by De Morgan's laws, which hold in three values too."""
    if isinstance(expression, Not):
        return _condition(expression.item, schema, negated=not negated)
    if isinstance(expression, Comparison):
        sql, parameters = _comparison(expression, schema)
        return _Condition(f"NOT ({sql})" if negated else f"({sql})", parameters, "", 0)
    word = "AND" if isinstance(expression, And) != negated else "OR"
    items = [_condition(item, schema, negated=negated) for item in expression.items]
    if word == "AND":
        items = [_Condition(f"({i.sql})", i.parameters, "", i.stack + 1) if i.word == "OR" else i for i in items]
    # What needs most of the stack first, when nothing is on it yet; later items stand behind an operand and the word
    items.sort(key=lambda item: -item.stack)
    return _Condition(
        f" {word} ".join(item.sql for item in items),
        [parameter for item in items for parameter in item.parameters],
        word,
        max(items[0].stack, 2 + items[1].stack),
    )


def _comparison(comparison: Comparison, schema: Schema) -> tuple[str, list[object]]:
    resolved = _resolve(comparison.field, schema)
    if isinstance(resolved, Column):
        return {"text": _text, "many": _many, "number": _number, "any": _any}[resolved.kind](resolved.sql, comparison)
    return _document(*resolved, comparison)


def _resolve(field: Field, schema: Schema) -> Column | tuple[str, tuple[str, ...]]:
    """Return the column of a field, or the SQL of its document and the path in it."""
    name = str(field)
    if name in schema.columns:
        return schema.columns[name]
    if name in schema.aliases:
        return _resolve(parse_field(schema.aliases[name]), Schema(schema.columns, schema.documents, None, {}))
    root, *path = field.segments
    if path and root in schema.documents:
        return schema.documents[root], tuple(path)
    if name in schema.documents:
        raise UsageError(f"the field {name} of the selection is a whole document; write {name}.NAME for a value in it")
    if not path and schema.default is not None:
        return schema.documents[schema.default], field.segments
    hint = nearest(root, schema.documents) if path else nearest(name, [*schema.columns, *schema.aliases])
    raise UsageError(f"the selection has an unknown field {excerpt(name)}{hint}")


def _operator(comparison: Comparison, marks: list[str]) -> str:
    """Return the operator and its right-hand side."""
    if comparison.operator == "in":
        return f"IN ({', '.join(marks)})"
    return f"{'GLOB' if comparison.operator == '~' else comparison.operator} {marks[0]}"


def _texts(comparison: Comparison, values: tuple[Value, ...]) -> tuple[str, list[object]]:
    return _operator(comparison, ["?"] * len(values)), [value.text for value in values]


def _text(sql: str, comparison: Comparison) -> tuple[str, list[object]]:
    compare, parameters = _texts(comparison, comparison.values)
    return f"({sql}) {compare}", parameters


def _many(sql: str, comparison: Comparison) -> tuple[str, list[object]]:
    if comparison.operator == "!=":
        condition, parameters = _many(sql, Comparison(comparison.field, "=", comparison.values))
        return f"NOT ({condition})", parameters
    compare, parameters = _texts(comparison, comparison.values)
    return sql.replace(PLACEHOLDER, compare), parameters


def _number(sql: str, comparison: Comparison) -> tuple[str, list[object]]:
    for value in comparison.values:
        if comparison.operator == "~" or not isinstance(value, Number):
            raise UsageError(
                f"the selection has {excerpt(str(comparison))}, but {excerpt(str(comparison.field))} is a number; "
                "write a number without quotes after one of = != < <= > >= or in, as in step>=800"
            )
    numbers: list[object] = [value.value for value in comparison.values if isinstance(value, Number)]
    return f"({sql}) {_operator(comparison, ['?'] * len(numbers))}", numbers


def _any(sql: str, comparison: Comparison) -> tuple[str, list[object]]:
    if any(isinstance(value, Boolean) for value in comparison.values):
        raise UsageError(
            f"the selection has {excerpt(str(comparison))}, but {excerpt(str(comparison.field))} holds numbers "
            "and texts; put true or false in quotes if the text is meant"
        )

    def of_type(types: str, compare: str, parameters: list[object]) -> tuple[str, list[object]]:
        # the unary plus takes away the column's affinity, which would turn a text "3" into a number
        return f"CASE WHEN typeof({sql}) IN ({types}) THEN +({sql}) {compare} END", parameters

    return _by_type(comparison, of_type, number="?", convert=lambda number: number)


def _document(sql: str, path: tuple[str, ...], comparison: Comparison) -> tuple[str, list[object]]:
    # Keys are compared as they are written in the JSON: in letters of their own, or as \uXXXX outside ASCII
    raw = "$" + "".join(f'."{segment}"' for segment in path)
    escaped = "$." + ".".join(json.dumps(segment) for segment in path)
    paths = list(dict.fromkeys([raw, escaped]))

    def read(function: str) -> str:
        calls = [f"{function}({sql}, ?)"] * len(paths)
        return calls[0] if len(calls) == 1 else f"coalesce({', '.join(calls)})"

    def of_type(types: str, compare: str, parameters: list[object]) -> tuple[str, list[object]]:
        value = read("json_type" if "true" in types else "json_extract")
        return f"CASE WHEN {read('json_type')} IN ({types}) THEN {value} {compare} END", [*paths, *paths, *parameters]

    # SQLite itself reads the literal, by the routine that reads the document: equal texts then are equal numbers
    return _by_type(comparison, of_type, number="json_extract(?, '$')", convert=_json_number)


def _json_number(number: int | float) -> str:
    return repr(number) if math.isfinite(number) else "9e999" if number > 0 else "-9e999"


def _by_type(
    comparison: Comparison,
    of_type: Callable[[str, str, list[object]], tuple[str, list[object]]],
    *,
    number: str,
    convert: Callable[[int | float], object],
) -> tuple[str, list[object]]:
    """Return a comparison of a value whose type is known only at run time: one guarded condition a type of literal.

    Args:
        comparison: What is compared.
        of_type: Makes the condition from the SQL names of the types, the operator with its right-hand side, and that
            side's parameters; NULL where the value is of another type.
        number: The SQL of a number's parameter.
        convert: The parameter of a number.
    """
    numbers = [value for value in comparison.values if isinstance(value, Number)]
    flags = [value for value in comparison.values if isinstance(value, Boolean)]
    texts = tuple(value for value in comparison.values if not isinstance(value, Number | Boolean))
    if flags and comparison.operator not in ("=", "!=", "in"):
        raise UsageError(
            f"the selection has {excerpt(str(comparison))}, but true and false have no order; write "
            f"= or != or in, or put {flags[0]} in quotes if the text is meant"
        )
    parts = []
    if numbers:
        compare = _operator(comparison, [number] * len(numbers))
        parts.append(of_type("'integer', 'real'", compare, [convert(value.value) for value in numbers]))
    if texts:
        parts.append(of_type("'text'", *_texts(comparison, texts)))
    if flags:
        names: list[object] = [str(flag.value).lower() for flag in flags]
        parts.append(of_type("'true', 'false'", _operator(comparison, ["?"] * len(flags)), names))
    return " OR ".join(sql for sql, _ in parts), [p for _, parameters in parts for p in parameters]
