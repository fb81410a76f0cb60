"""Error responses of the gateway: OpenAI's format with two more fields, or Anthropic's (`in_form_of`).

    {"error": {"type", "code", "message", "source": "client" | "gateway" | "upstream", "request_id"}}

`source` names the side that has to act: the caller, the gateway's operator, or the upstream. This module has
the only table of statuses; it decides nothing.
"""

import math
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from farebox.domain.admission.types import Denied
from farebox.gateway.interface import ImmediateResponse, RequestHead
from farebox.gateway.request.limit_headers import limit_headers
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

TOO_LARGE: Final = "request_too_large"
"""The code of a body over the limit."""
_JSON: Final = {"content-type": "application/json"}


class MethodNotAllowed(Denied):
    """A path is called with another method than `allowed`."""

    def __init__(self, path: str, allowed: str) -> None:
        super().__init__(405, "method_not_allowed", f"{path} accepts only {allowed}")
        self.allowed = allowed


class TooManyRefused(Denied):
    """Refused calls of a key have cost too much work (`workload.RefusedWork`). It may retry in `seconds`."""

    def __init__(self, seconds: float) -> None:
        message = "Too many calls of this API key were refused. Correct the requests and retry later"
        super().__init__(429, "too_many_refused_requests", message)
        self.seconds = seconds


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
    headers = limit_headers(denied.limit_statuses, denied.exceeded)
    if denied.status == 401:
        headers["www-authenticate"] = 'Bearer realm="farebox"'
    if isinstance(denied, MethodNotAllowed):
        headers["allow"] = denied.allowed
    if isinstance(denied, TooManyRefused):
        headers["retry-after"] = str(max(1, math.ceil(denied.seconds)))
    return error_response(denied.status, denied.code, denied.message, request_id, headers)


def too_large(head: RequestHead, max_body_bytes: int) -> ImmediateResponse:
    """The response to a body that exceeds the limit."""
    message = f"The request body exceeds the limit of {max_body_bytes} bytes"
    return in_form_of(error_response(413, TOO_LARGE, message, head.request_id), head)


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
