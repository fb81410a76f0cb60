"""Generates the tables in docs/reference from the code.

People write the pages, except what is between `<!-- generated: ... -->` and `<!-- end -->`:

    python -m farebox.reference_pages docs/reference            writes the tables
    python -m farebox.reference_pages docs/reference --check    fails if a table is stale
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from farebox.api.kinds import KINDS
from farebox.api.reference_tables import Table, table_of, tables
from farebox.settings import CommonSettings, GatewaySettings, MeterSettings, OperatorSettings
from farebox.up.settings import UpSettings

SETTINGS: Final[Mapping[str, type[CommonSettings]]] = {
    "common": CommonSettings,
    "operator": OperatorSettings,
    "meter": MeterSettings,
    "gateway": GatewaySettings,
    "up": UpSettings,
}
"""The settings of each process, by the name of their table in settings.md."""
_BLOCK: Final = re.compile(r"<!-- generated: (?P<table>[a-z]+) -->\n.*?<!-- end -->", re.DOTALL)


def pages(directory: Path) -> dict[Path, str]:
    """The text of all pages with current tables."""
    made = {f"{info.singular}.md": tables(info) for info in KINDS.values()}
    made["settings.md"] = {name: partial(_settings_table, cls) for name, cls in SETTINGS.items()}
    return {
        directory / name: _fill((directory / name).read_text(encoding="utf-8"), page)
        for name, page in made.items()
    }


def check(directory: Path) -> list[str]:
    """The pages whose tables differ from the code."""
    return [
        f"{path}: differs from the code. Run `python -m farebox.reference_pages {directory}`"
        for path, text in pages(directory).items()
        if path.read_text(encoding="utf-8") != text
    ]


def _fill(text: str, page: Mapping[str, Table]) -> str:
    """A page with its tables replaced."""

    def table(match: re.Match[str]) -> str:
        name = match["table"]
        return f"<!-- generated: {name} -->\n{page[name]()}<!-- end -->"

    return _BLOCK.sub(table, text)


def _settings_table(cls: type[CommonSettings]) -> str:
    """The settings of a process, without the common ones."""
    prefix = str(cls.model_config.get("env_prefix", ""))
    return table_of(
        ("variable", "default", "meaning"),
        ((f"`{prefix}{name.upper()}`", *_row(field)) for name, field in _own(cls)),
    )


def _own(cls: type[CommonSettings]) -> Iterator[tuple[str, FieldInfo]]:
    """The settings that are new, or differ from the base class, which has a table of its own."""
    (base,) = cls.__bases__
    for name, field in cls.model_fields.items():
        inherited = getattr(base, "model_fields", {}).get(name)
        if inherited is None or _row(inherited) != _row(field):
            yield name, field


def _row(field: FieldInfo) -> tuple[str, str]:
    """Default and meaning of a setting."""
    return _default(field), field.description or ""


def _default(field: FieldInfo) -> str:
    """The default as it is written in a manifest, or "" if it depends on the machine."""
    value = field.get_default()
    if value in (None, "", PydanticUndefined):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def main() -> int:
    """The command in the module's docstring. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m farebox.reference_pages")
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
