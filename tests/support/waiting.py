"""Waiting for a condition: tests never sleep for a fixed time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.02
_LATE_BY = 0.1
_LONGEST_SECONDS = 0.25
"""Looks take CPU from what is waited for: they come ever further apart, and are late by a tenth at most."""


class NotInTime(AssertionError):
    """A condition did not come true in time; the message says which, and what was seen last."""


def wait_for(
    what: str, look: Callable[[], T | None], seconds: float = 60.0, poll_seconds: float = _POLL_SECONDS
) -> T:
    """Call `look` until it returns something true, and return that.

    Args:
        what: the condition in words, for the error.
        poll_seconds: between two looks, at first.

    Raises:
        NotInTime: it stayed false for `seconds`; errors of the last look are named.
    """
    began = time.monotonic()
    deadline = began + seconds
    last: object = None
    while True:
        try:
            found = look()
            if found:
                return found
            last = found
        except (AssertionError, LookupError, OSError) as error:
            last = f"{type(error).__name__}: {error}"
        now = time.monotonic()
        if now >= deadline:
            raise NotInTime(f"{what}: not within {seconds:g} s; seen last: {last!r}")
        time.sleep(max(poll_seconds, min((now - began) * _LATE_BY, _LONGEST_SECONDS)))
