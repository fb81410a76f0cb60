"""Envoy's local replies, in the gateway's error format (`request.errors`)."""

from typing import Final

from farebox.gateway.envoy import TYPES, Json
from farebox.gateway.envoy.response_filter import LOCAL_REPLY_HEADER
from farebox.gateway.ext_proc import messages
from farebox.gateway.request.errors import STATUSES, anthropic_type

_BY_CODE: Final[tuple[tuple[int, str, str], ...]] = (
    (408, "request_timeout", "The request did not arrive completely in time"),
    (413, "request_too_large", "The request body is too large"),
    (426, "unsupported_protocol", "Use HTTP/1.1 or HTTP/2"),
    (431, "headers_too_large", "The request headers are too many or too long"),
    (501, "unsupported_encoding", "The Transfer-Encoding of the request is not supported"),
    (504, "upstream_timeout", "The model backend did not answer in time"),
)
"""Replies that keep their status."""


def local_replies() -> Json:
    """The mappers of local replies. The first match applies."""
    refused = {
        "filter": _when(f"response.code_details == '{messages.REFUSED}'"),
        "body_format_override": {
            "text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"},
            "content_type": "application/json",
        },
    }
    no_decision = (
        "response.code_details.startsWith('ext_proc') || response.code_details.startsWith('cluster')"
    )
    upstream = "response.flags != 0 && response.code_details.contains('upstream')"
    return {
        "mappers": [
            refused,
            # A reply of the health check keeps its empty body.
            {"filter": _when("response.code_details.startsWith('health_check')")},
            *(
                {**each, "headers_to_add": [_header("retry-after", "1"), _LOCAL_REPLY]}
                for each in _mappers(
                    "response.code_details == 'overload'",
                    *(503, "gateway_overloaded", "The gateway is overloaded. Retry later"),
                )
            ),
            *_mappers(
                no_decision, 503, "gateway_unavailable", "The gateway is temporarily unavailable. Retry later"
            ),
            *(mapper for each in _BY_CODE for mapper in _mappers(f"response.code == {each[0]}", *each)),
            *_mappers(
                f"response.code >= 500 || ({upstream})",
                502,
                "upstream_unreachable",
                "The model backend is unreachable or closed the connection",
            ),
            *_mappers("true", None, "invalid_request", "Malformed HTTP request"),
        ]
    }


def _mappers(condition: str, status: int | None, code: str, message: str) -> list[Json]:
    """Two mappers to an error: in Anthropic's form for its paths (`request.errors.in_form_of`), and OpenAI's.

    `status` None keeps Envoy's status, which is a client error.
    """
    kind, source = STATUSES[status or 400]
    body = {
        "type": kind,
        "code": code,
        "message": message,
        "source": source,
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    anthropic = {
        "type": "error",
        "error": body | {"type": anthropic_type(status or 400)},
        "request_id": body["request_id"],
    }
    # The path may be the upstream's already, which ends the same.
    forms = (
        (f"({condition}) && request.path.contains('/messages')", anthropic),
        (condition, {"error": body}),
    )
    return [
        {
            "filter": _when(when),
            **({"status_code": status} if status else {}),
            "body_format_override": {"json_format": form, "content_type": "application/json"},
            "headers_to_add": [_LOCAL_REPLY],
        }
        for when, form in forms
    ]


def _header(name: str, value: str) -> Json:
    return {"header": {"key": name, "value": value}}


def _when(condition: str) -> Json:
    return {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": {
                "@type": f"{TYPES}access_loggers.filters.cel.v3.ExpressionFilter",
                "expression": condition,
            },
        }
    }


_LOCAL_REPLY: Final = _header(LOCAL_REPLY_HEADER, "true")
