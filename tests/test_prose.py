"""The check of the language (`make prose`)."""

import pytest

from tests.tools.prose import check, findings, tracked


def test_no_tracked_file_has_an_idiom() -> None:
    paths = tracked()
    assert len(paths) > 500, "the check reads the whole tree"
    assert list(check(paths)) == []


@pytest.mark.parametrize(
    ("text", "line", "idiom"),
    [
        ('"""The rules.\n\nWhoever asks gets an answer."""', 3, "whoever"),
        ("def test_it_is_told_of_the_end() -> None:", 1, "told"),
        ("# The ledger is\n    # away for an hour.", 1, "is away"),
    ],
    ids=["a sentence", "a name", "a line break in a comment"],
)
def test_an_idiom_is_found_with_its_line(text: str, line: int, idiom: str) -> None:
    assert [found[:2] for found in findings(text)] == [(line, idiom)]


@pytest.mark.parametrize("text", ["if value is None:", "as long as it runs", "a soldier in a stronghold"])
def test_plain_words_and_code_are_not_found(text: str) -> None:
    assert list(findings(text)) == []
