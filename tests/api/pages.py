"""The pages of docs/reference, and the manifests in them."""

import re
from pathlib import Path

import yaml

from tests.api.samples import Manifest

PAGES = Path(__file__).parents[2] / "docs" / "reference"
_YAML = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)


def examples() -> list[Manifest]:
    """All manifests that the pages show."""
    return [
        manifest
        for path in sorted(PAGES.glob("*.md"))
        for block in _YAML.findall(path.read_text(encoding="utf-8"))
        for manifest in yaml.safe_load_all(block)
    ]
