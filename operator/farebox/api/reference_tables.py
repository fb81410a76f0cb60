"""Tables of a kind's page, from its schema: fields, rules, columns. `reference_pages` inserts them."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from farebox.api.kinds import KindInfo
from farebox.api.openapi import Schema, object_schema
from farebox.api.schema import COLUMNS

Table = Callable[[], str]
"""Renders a table in Markdown."""

_RULES = "x-kubernetes-validations"
# Fields of pod templates, conditions and selectors would only repeat what Kubernetes documents.
_CLOSED = frozenset({"conditions", "selector", "template"})


def tables(info: KindInfo) -> dict[str, Table]:
    """The tables of a kind's page, by their names in the page."""
    return {
        "spec": partial(_fields_table, info, "spec"),
        "status": partial(_fields_table, info, "status"),
        "refusals": partial(_refusals_table, info),
        "columns": partial(_columns_table, info),
    }


def table_of(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown. Cells may contain anything except line breaks."""
    head = list(columns)
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
    body.insert(1, "|" + "---|" * len(head))
    return "\n".join(body) + "\n"


def _fields_table(info: KindInfo, part: str) -> str:
    fields = _fields(object_schema(info.cls)["properties"][part])
    return table_of(
        ("field", "type", "meaning"),
        (
            (f"`{path}`", f"{_type(schema)}, required" if required else _type(schema), schema["description"])
            for path, schema, required in fields
        ),
    )


def _fields(schema: Schema, prefix: str = "") -> Iterator[tuple[str, Schema, bool]]:
    """Every field below a schema: its path, its schema, and whether it is required."""
    for name, field in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        yield path, field, name in schema.get("required", ())
        if name in _CLOSED:
            continue
        yield from _fields(field, f"{path}.")
        if "items" in field:
            yield from _fields(field["items"], f"{path}[].")


def _type(schema: Schema) -> str:
    if "enum" in schema:
        return " | ".join(schema["enum"])
    word = schema["type"]
    if word == "array":
        return "list of words" if "enum" in schema["items"] else f"list of {schema['items']['type']}s"
    least, most = schema.get("minimum"), schema.get("maximum")
    if word == "integer" and most is not None and most < 2**31 - 1:
        return f"{least}..{most}"
    if word == "integer" and least == 1:
        return "integer above 0"
    return "time" if schema.get("format") == "date-time" else str(word)


def _refusals_table(info: KindInfo) -> str:
    """The messages of CEL rules, by the field that the error names."""
    rules = _rules(object_schema(info.cls))
    return table_of(("field", "error message"), ((f"`{path}`", rule["message"]) for path, rule in rules))


def _rules(schema: Schema, path: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    for rule in schema.get(_RULES, ()):
        yield (path + rule.get("fieldPath", "")).removeprefix("."), rule
    for name, field in schema.get("properties", {}).items():
        yield from _rules(field, f"{path}.{name}")
    if "items" in schema:
        yield from _rules(schema["items"], f"{path}[]")


def _columns_table(info: KindInfo) -> str:
    return table_of(
        ("column", "shows", "in"),
        (
            (column["name"], column["description"], "`-o wide`" if column.get("priority") else "always")
            for column in COLUMNS[info.kind]
        ),
    )
