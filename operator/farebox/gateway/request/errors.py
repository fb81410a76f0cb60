"""Errors as callers of the gateway read them: OpenAI's form, and two fields more.

    {"error": {"type", "code", "message", "source": "client" | "gateway" | "upstream", "request_id"}}

`source` says who has to act: the caller, the gateway or whoever runs it, the upstream. This module has the
one table of statuses; it decides nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from farebox.domain.admission.cases import Deny
from farebox.domain.admission.rate_limits import LimitStatus
from farebox.gateway.interface import ImmediateResponse, RequestHead
from farebox.metrics import GATEWAY_DECISIONS

Source = Literal["client", "gateway", "upstream"]

STATUSES: Final[Mapping[int, tuple[str, Source]]] = {
    400: ("invalid_request_error", "client"),
    401: ("authentication_error", "client"),
    402: ("permission_error", "gateway"),
    403: ("permission_error", "client"),
    404: ("invalid_request_error", "client"),
    405: ("invalid_request_error", "client"),
    408: ("invalid_request_error", "client"),
    413: ("invalid_request_error", "client"),
    426: ("invalid_request_error", "client"),
    429: ("rate_limit_error", "gateway"),
    431: ("invalid_request_error", "client"),
    500: ("internal_error", "gateway"),
    501: ("invalid_request_error", "client"),
    502: ("upstream_error", "upstream"),
    503: ("unavailable_error", "gateway"),
    504: ("upstream_error", "upstream"),
}
"""The type and the source of each status; `model_not_found` is a type of its own."""

_JSON: Final = {"content-type": "application/json"}


def error_body(status: int, code: str, message: str, request_id: str) -> bytes:
    """The body of an error."""
    type_, source = STATUSES[status]
    error = {
        "type": code if code == "model_not_found" else type_,
        "code": code,
        "message": message,
        "source": source,
        "request_id": request_id,
    }
    return msgspec.json.encode({"error": error})


def refuse(
    status: int, code: str, message: str, request_id: str, headers: Mapping[str, str] | None = None
) -> ImmediateResponse:
    """A refusal as the transport takes it; counted by its code."""
    GATEWAY_DECISIONS.labels(code).inc()
    body = error_body(status, code, message, request_id)
    return ImmediateResponse(status, {**_JSON, "x-request-id": request_id, **(headers or {})}, body)


def of_rule(refusal: Deny, request_id: str) -> ImmediateResponse:
    """A refusal by a rule, with the headers that its limits ask for (B15)."""
    headers = {} if refusal.exceeded is None else limit_headers(refusal.limit_statuses, refusal.exceeded)
    if refusal.status == 401:
        headers["www-authenticate"] = 'Bearer realm="farebox"'
    return refuse(refusal.status, refusal.code, refusal.message, request_id, headers)


def too_large(head: RequestHead, max_body_bytes: int) -> ImmediateResponse:
    """A body beyond what the gateway reads."""
    message = f"the request is larger than {max_body_bytes} bytes, the most that is read here"
    return refuse(413, "request_too_large", message, head.request_id)


def limit_headers(limit_statuses: Sequence[LimitStatus], exceeded: LimitStatus) -> dict[str, str]:
    """retry-after, and x-ratelimit-{limit,remaining,reset}-{requests,tokens}.

    Of several limits on the same, the one that refused is told, else the one with the least left. A limit
    that time alone does not lift has no retry-after, and tells clients that repeat by themselves not to.
    """
    headers = {}
    if exceeded.retry_ms is not None:
        headers["retry-after"] = str(max(1, math.ceil(exceeded.retry_ms / 1000)))
    else:
        headers["x-should-retry"] = "false"
    for sort in ("requests", "tokens"):
        same = [each for each in limit_statuses if (each.request.dimension == "rpm") == (sort == "requests")]
        if not same:
            continue
        told = exceeded if exceeded in same else min(same, key=lambda each: each.remaining)
        headers[f"x-ratelimit-limit-{sort}"] = str(told.request.limit)
        headers[f"x-ratelimit-remaining-{sort}"] = str(told.remaining)
        if told.reset_ms is not None:
            headers[f"x-ratelimit-reset-{sort}"] = duration(told.reset_ms)
    return headers


def duration(milliseconds: int) -> str:
    """A time window as OpenAI's headers have it.

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
