"""Parses times of the command line, all in UTC. Pure: the current time is a parameter."""

import re
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from farebox.cli_reports import TIME_FORMS
from farebox.errors import ConfigurationError
from farebox.meterapi.scalars import parse_time

_AGO: Final = re.compile(r"([0-9]{1,4})([dhm])")
_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}
_MONTH: Final = re.compile(r"([0-9]{4})-([0-9]{2})")
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class Period(NamedTuple):
    """A moment, or a day or a month with its beginning and its end."""

    start: datetime
    end: datetime


def period(text: str, now: datetime) -> Period:
    """Parse a time. `--from` uses the start of the period, `--to` its end, so `--to 2026-03` includes March.

    Raises:
        ConfigurationError: the text has none of the TIME_FORMS.
    """
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    day = timedelta(days=1)
    if text == "now":
        return Period(now, now)
    if text in ("today", "yesterday"):
        start = today if text == "today" else today - day
        return Period(start, start + day)
    try:
        if ago := _AGO.fullmatch(text):
            moment = now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            return Period(moment, moment)
        if month := _MONTH.fullmatch(text):
            start = today.replace(year=int(month[1]), month=int(month[2]), day=1)
            return Period(start, (start + timedelta(days=32)).replace(day=1))
        if _DAY.fullmatch(text):
            start = parse_time(f"{text}T00:00:00Z")
            return Period(start, start + day)
        moment = parse_time(text)
        return Period(moment, moment)
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"{text!r} is not a time: write {TIME_FORMS}") from error
