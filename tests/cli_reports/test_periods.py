"""Times of the command line."""

from datetime import UTC, datetime

import pytest

from farebox.cli_reports.periods import period
from farebox.errors import ConfigurationError

NOW = datetime(2026, 3, 15, 14, 30, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("now", "2026-03-15T14:30:05", "2026-03-15T14:30:05"),
        ("today", "2026-03-15", "2026-03-16"),
        ("yesterday", "2026-03-14", "2026-03-15"),
        ("7d", "2026-03-08T14:30:05", "2026-03-08T14:30:05"),
        ("12h", "2026-03-15T02:30:05", "2026-03-15T02:30:05"),
        ("90m", "2026-03-15T13:00:05", "2026-03-15T13:00:05"),
        ("2026-03", "2026-03-01", "2026-04-01"),
        ("2025-12", "2025-12-01", "2026-01-01"),
        ("2024-02", "2024-02-01", "2024-03-01"),
        ("2026-03-01", "2026-03-01", "2026-03-02"),
        ("2026-03-01T02:00:00+02:00", "2026-03-01", "2026-03-01"),
    ],
)
def test_a_time_has_a_start_and_an_end(text: str, start: str, end: str) -> None:
    expected = tuple(datetime.fromisoformat(moment).replace(tzinfo=UTC) for moment in (start, end))
    assert period(text, NOW) == expected


@pytest.mark.parametrize(
    "text", ["", "soon", "7w", "2026", "2026-13", "2026-02-30", "9999-12", "9999-12-31", "-1d"]
)
def test_an_invalid_time_is_refused_with_the_valid_forms(text: str) -> None:
    with pytest.raises(ConfigurationError, match="write today, yesterday"):
        period(text, NOW)
