"""Every Python file that the documentation names exists, so that no page points to a module that moved."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("tests/**/README.md"),
        *ROOT.glob("operator/**/README.md"),
        *ROOT.glob("manifests/**/*.yaml"),
    ]
)
FILES = frozenset(
    f"/{path.relative_to(ROOT)}"
    for tree in ("operator/farebox", "tests", "docs")
    for path in (ROOT / tree).rglob("*.py")
)
_NAMED = re.compile(r"[\w./{},*-]*\w\.(?:py|lua)\b")


def exists(name: str) -> bool:
    """Whether a file of the repository ends with this path."""
    if name.endswith(".lua"):
        return any(ROOT.rglob(f"operator/**/{Path(name).name}"))
    return any(path.endswith(f"/{name.lstrip('/')}") for path in FILES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_python_file_named_in_a_page_exists(page: Path) -> None:
    named = set(_NAMED.findall(page.read_text(encoding="utf-8")))
    assert sorted(name for name in named if not exists(name.removeprefix("../"))) == []
