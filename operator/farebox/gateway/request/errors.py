"""Error responses of the gateway: OpenAI's format with two more fields, or Anthropic's (`in_form_of`).

    {"error": {"type", "code", "message", "source": "client" | "gateway" | "upstream", "request_id"}}

`source` names the side that has to act: the caller, the gateway's operator, or the upstream. This module has
the only table of statuses; it decides nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from farebox.domain.admission.types import Denied, LimitStatus
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
"""The type and the source of each status; the code `model_not_found` has a type of its own."""

ANTHROPIC_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""The types of Anthropic's API by status; all others are "invalid_request_error"."""
MESSAGES_PREFIX: Final = "/v1/messages"
"""The paths of Anthropic's API, whose errors have its form."""

_JSON: Final = {"content-type": "application/json"}


def error_body(status: int, code: str, message: str, request_id: str) -> bytes:
    """The body of an error response."""
    type_, source = STATUSES[status]
    error = {
        "type": code if code == "model_not_found" else type_,
        "code": code,
        "message": message,
        "source": source,
        "request_id": request_id,
    }
    return msgspec.json.encode({"error": error})


def error_response(
    status: int, code: str, message: str, request_id: str, headers: Mapping[str, str] | None = None
) -> ImmediateResponse:
    """An error response, counted in the metrics by its code."""
    GATEWAY_DECISIONS.labels(code).inc()
    body = error_body(status, code, message, request_id)
    return ImmediateResponse(status, {**_JSON, "x-request-id": request_id, **(headers or {})}, body)


def denial_response(denied: Denied, request_id: str) -> ImmediateResponse:
    """The response to a denied call, with the headers of its limits (B15)."""
    headers = {} if denied.exceeded is None else limit_headers(denied.limit_statuses, denied.exceeded)
    if denied.status == 401:
        headers["www-authenticate"] = 'Bearer realm="farebox"'
    return error_response(denied.status, denied.code, denied.message, request_id, headers)


def too_large(head: RequestHead, max_body_bytes: int) -> ImmediateResponse:
    """The response to a body that exceeds the limit."""
    message = f"The request body exceeds the limit of {max_body_bytes} bytes"
    return in_form_of(error_response(413, "request_too_large", message, head.request_id), head)


def anthropic_type(status: int) -> str:
    """The type of an error in Anthropic's words."""
    return ANTHROPIC_TYPES.get(status, "invalid_request_error")


def in_form_of(response: ImmediateResponse, head: RequestHead) -> ImmediateResponse:
    """An error response in the form of the API that was called.

    Anthropic's is {"type": "error", "error": {...}, "request_id"}, with types in its words. Its clients find
    no message in another form.
    """
    if not head.path.startswith(MESSAGES_PREFIX):
        return response
    error = msgspec.json.decode(response.body)["error"] | {"type": anthropic_type(response.status)}
    body = msgspec.json.encode({"type": "error", "error": error, "request_id": head.request_id})
    return ImmediateResponse(response.status, response.headers, body)


def limit_headers(limit_statuses: Sequence[LimitStatus], exceeded: LimitStatus) -> dict[str, str]:
    """retry-after, and x-ratelimit-{limit,remaining,reset}-{requests,tokens}.

    Of several limits on requests, or on tokens, the headers describe the one that refused the call, or else
    the one with the least remaining. If waiting does not help, there is no retry-after, and x-should-retry
    stops clients that retry automatically.
    """
    headers = {}
    if exceeded.retry_ms is not None:
        headers["retry-after"] = str(max(1, math.ceil(exceeded.retry_ms / 1000)))
    else:
        headers["x-should-retry"] = "false"
    for unit in ("requests", "tokens"):
        same = [each for each in limit_statuses if (each.request.dimension == "rpm") == (unit == "requests")]
        if not same:
            continue
        shown = exceeded if exceeded in same else min(same, key=lambda each: each.remaining)
        headers[f"x-ratelimit-limit-{unit}"] = str(shown.request.limit)
        headers[f"x-ratelimit-remaining-{unit}"] = str(shown.remaining)
        if shown.reset_ms is not None:
            headers[f"x-ratelimit-reset-{unit}"] = duration(shown.reset_ms)
    return headers


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
