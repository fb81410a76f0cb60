"""The headers that tell a caller its limits: x-ratelimit-* on every answer, retry-after on a refusal (B31).

The names and the format of durations are those of OpenAI. Pure.
"""

import math
from collections.abc import Sequence
from typing import Final

from farebox.domain.admission.types import LimitStatus

_REQUESTS: Final = (
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)
_TOKENS: Final = ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens")
LOOKUPS: Final = "lookups"
"""The dimension of look-ups by a key (`farebox.gateway.lookups`)."""
_REQUEST_DIMENSIONS: Final = frozenset({"rpm", LOOKUPS})
"""The dimensions that count requests; all others count tokens."""


def limit_headers(
    limit_statuses: Sequence[LimitStatus], exceeded: LimitStatus | None = None
) -> dict[str, str]:
    """x-ratelimit-{limit,remaining,reset}-{requests,tokens}, and retry-after if a limit refused the call.

    Of several limits on requests, or on tokens, the headers describe the one that refused the call, or else
    the one with the least remaining. If waiting does not help, there is no retry-after, and x-should-retry
    stops clients that retry automatically.
    """
    headers: dict[str, str] = {}
    requests = tokens = None
    for each in limit_statuses:
        if each.request.dimension in _REQUEST_DIMENSIONS:
            requests = _shown(requests, each, exceeded)
        else:
            tokens = _shown(tokens, each, exceeded)
    if exceeded is not None:
        if exceeded.retry_ms is not None:
            headers["retry-after"] = str(max(1, math.ceil(exceeded.retry_ms / 1000)))
        else:
            headers["x-should-retry"] = "false"
    if requests is not None:
        _describe(headers, _REQUESTS, requests)
    if tokens is not None:
        _describe(headers, _TOKENS, tokens)
    return headers


def _shown(before: LimitStatus | None, each: LimitStatus, exceeded: LimitStatus | None) -> LimitStatus:
    """Which of two limits of the same unit the headers describe."""
    if before is None or each is exceeded:
        return each
    return before if before is exceeded or before.remaining <= each.remaining else each


def _describe(headers: dict[str, str], names: tuple[str, str, str], status: LimitStatus) -> None:
    limit, remaining, reset = names
    headers[limit] = str(status.request.limit)
    headers[remaining] = str(status.remaining)
    if status.reset_ms is not None:
        headers[reset] = duration(status.reset_ms)


def duration(milliseconds: int) -> str:
    """A duration in the format of OpenAI's headers.

    >>> duration(17), duration(61_000), duration(7_200_500), duration(0)
    ('17ms', '1m1s', '2h0m1s', '0s')
    """
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, seconds = divmod(math.ceil(milliseconds / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
