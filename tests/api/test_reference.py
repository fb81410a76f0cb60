"""docs/reference says what the code does."""

import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from farebox import reference_pages
from farebox.api import KINDS, ConditionType, StopReason
from farebox.settings import CommonSettings
from tests.api.pages import PAGES, examples
from tests.api.samples import Manifest
from tests.api.test_schema import openapi

ROOT = Path(__file__).parents[2]
CODE = ROOT / "operator" / "farebox"
_CONDITION = re.compile(r'(?:true|false|unknown)\(\s*ConditionType\.[A-Z_]+,\s*"(\w+)"')
_BESIDE = re.compile(r'(?:reconciling|stalled)="(\w+)"')


def test_tables_are_those_of_the_models() -> None:
    assert reference_pages.check(PAGES) == []


def test_a_table_edited_by_hand_is_reported_and_rewritten(tmp_path: Path) -> None:
    for path in PAGES.glob("*.md"):
        text = path.read_text().replace("Cannot be changed. |", "Can be changed. |")
        (tmp_path / path.name).write_text(text)
    reported = [problem.partition(":")[0] for problem in reference_pages.check(tmp_path)]
    assert str(tmp_path / "inferenceservice.md") in reported
    for path, text in reference_pages.pages(tmp_path).items():
        assert text == (PAGES / path.name).read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_every_page_has_all_tables_and_an_example(kind: str) -> None:
    text = (PAGES / f"{kind.lower()}.md").read_text()
    for table in ("spec", "refusals", "status", "columns"):
        assert f"<!-- generated: {table} -->\n| " in text
    assert any(manifest["kind"] == kind for manifest in examples())


@pytest.mark.parametrize("cls", reference_pages.SETTINGS.values())
def test_every_setting_says_what_it_is_for(cls: type[CommonSettings]) -> None:
    assert [name for name, field in cls.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("manifest", examples(), ids=lambda manifest: str(manifest["metadata"]["name"]))
def test_examples_are_valid(manifest: Manifest) -> None:
    Draft202012Validator(openapi(manifest["kind"])).validate(manifest)
    assert KINDS[manifest["kind"]].cls.model_validate(manifest).manifest() == manifest


def test_stop_reasons_are_listed_in_their_order() -> None:
    text = (PAGES / "inferenceservice.md").read_text()
    rows = text.partition("## Stop reasons")[2].partition("\n## ")[0]
    assert re.findall(r"^\| ([A-Z]\w+) \|", rows, re.MULTILINE) == [reason.value for reason in StopReason]


def test_every_condition_that_the_operator_reports_is_described() -> None:
    text = "\n".join(path.read_text() for path in PAGES.glob("*.md"))
    code = "\n".join(path.read_text() for path in CODE.rglob("*.py"))
    reasons = {*_CONDITION.findall(code), *_BESIDE.findall(code)}
    assert len(reasons) > 10
    for word in (*reasons, *ConditionType):
        assert re.search(rf"\b{word}\b", text), word
