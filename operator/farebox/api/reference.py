"""Tables of docs/reference from the schemas: fields, refusals, columns.

The pages are written by people; what stands between `<!-- generated: ... -->` and `<!-- end -->` is not:

    python -m farebox.api.reference docs/reference            writes it
    python -m farebox.api.reference docs/reference --check    fails where it is not up to date
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from farebox.api.kinds import KINDS, KindInfo
from farebox.api.openapi import Schema, object_schema
from farebox.api.schema import COLUMNS

_BLOCK = re.compile(r"<!-- generated: (?P<table>[a-z]+) -->\n.*?<!-- end -->", re.DOTALL)
_RULES = "x-kubernetes-validations"
# Looking into a pod template, or once more into a condition or a selector, helps nobody.
_CLOSED = frozenset({"conditions", "selector", "template"})


def pages(directory: Path) -> dict[Path, str]:
    """The pages of all kinds with their tables as the models give them now."""
    result = {}
    for info in KINDS.values():
        path = directory / f"{info.singular}.md"
        result[path] = render(info, path.read_text(encoding="utf-8"))
    return result


def render(info: KindInfo, text: str) -> str:
    """A kind's page with its tables made anew."""

    def table(match: re.Match[str]) -> str:
        name = match["table"]
        return f"<!-- generated: {name} -->\n{_TABLES[name](info)}<!-- end -->"

    return _BLOCK.sub(table, text)


def check(directory: Path) -> list[str]:
    """The pages whose tables differ from the models."""
    return [
        f"{path}: differs from the models: run `python -m farebox.api.reference {directory}`"
        for path, text in pages(directory).items()
        if path.read_text(encoding="utf-8") != text
    ]


def _fields_table(part: str) -> Callable[[KindInfo], str]:
    def table(info: KindInfo) -> str:
        lines = ["| field | type | meaning |", "|---|---|---|"]
        for path, schema, required in _fields(object_schema(info.cls)["properties"][part]):
            word = f"{_type(schema)}, required" if required else _type(schema)
            lines.append(f"| `{path}` | {word} | {_cell(schema['description'])} |")
        return "\n".join(lines) + "\n"

    return table


def _fields(schema: Schema, prefix: str = "") -> Iterator[tuple[str, Schema, bool]]:
    """Every field below a schema: its path, its schema, and whether its parent must have it."""
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
        return " \\| ".join(schema["enum"])
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
    """What the rules refuse, by the field that the error names."""
    lines = ["| field | when broken, the error says |", "|---|---|"]
    lines += [f"| `{path}` | {_cell(rule['message'])} |" for path, rule in _rules(object_schema(info.cls))]
    return "\n".join(lines) + "\n"


def _rules(schema: Schema, path: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    for rule in schema.get(_RULES, ()):
        yield (path + rule.get("fieldPath", "")).removeprefix("."), rule
    for name, field in schema.get("properties", {}).items():
        yield from _rules(field, f"{path}.{name}")
    if "items" in schema:
        yield from _rules(schema["items"], f"{path}[]")


def _columns_table(info: KindInfo) -> str:
    lines = ["| column | shows | in |", "|---|---|---|"]
    for column in COLUMNS[info.kind]:
        where = "`-o wide`" if column.get("priority") else "always"
        lines.append(f"| {column['name']} | {_cell(column['description'])} | {where} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_TABLES: dict[str, Callable[[KindInfo], str]] = {
    "spec": _fields_table("spec"),
    "status": _fields_table("status"),
    "refusals": _refusals_table,
    "columns": _columns_table,
}


def main() -> int:
    """The command in the module's docstring. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m farebox.api.reference")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a page differs")
    arguments = parser.parse_args()
    if arguments.check:
        problems = check(arguments.directory)
        print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
        return 1 if problems else 0
    for path, text in pages(arguments.directory).items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
