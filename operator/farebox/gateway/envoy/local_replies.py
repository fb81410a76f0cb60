"""What Envoy answers by itself, in the form of an error that `refusals` has."""

from typing import Final

from farebox.gateway.envoy import TYPES, Json
from farebox.gateway.ext_proc import messages
from farebox.gateway.request.errors import STATUSES

_BY_CODE: Final[tuple[tuple[int, str, str], ...]] = (
    (408, "request_timeout", "the request did not come whole in time"),
    (413, "request_too_large", "the body of the request is too large"),
    (426, "unsupported_protocol", "HTTP/1.1 or HTTP/2 is needed"),
    (431, "headers_too_large", "the request has too many headers, or too long ones"),
    (501, "unsupported_encoding", "the transfer coding of the request is not known"),
    (504, "upstream_timeout", "the model did not answer in time"),
)
"""Answers that keep their status."""


def local_replies() -> Json:
    """What Envoy says by itself, in the gateway's form of an error. The first that matches counts."""
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
            # The health check's answer has no body, and its status is what counts.
            {"filter": _when("response.code_details.startsWith('health_check')")},
            {
                **_mapper(
                    "response.code_details == 'overload'",
                    *(503, "gateway_overloaded", "the gateway has no memory left for more calls; try again"),
                ),
                "headers_to_add": [{"header": {"key": "retry-after", "value": "1"}}],
            },
            _mapper(no_decision, 503, "gateway_unavailable", "calls cannot be decided now; try again"),
            *(_mapper(f"response.code == {each[0]}", *each) for each in _BY_CODE),
            _mapper(
                f"response.code >= 500 || ({upstream})",
                502,
                "upstream_unreachable",
                "the model cannot be reached, or broke off",
            ),
            _mapper("true", None, "invalid_request", "this is no request that can be served"),
        ]
    }


def _mapper(condition: str, status: int | None, code: str, message: str) -> Json:
    """Args: status: None keeps what Envoy found, which is some fault of the client's."""
    kind, source = STATUSES[status or 400]
    body = {
        "type": kind,
        "code": code,
        "message": message,
        "source": source,
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    return {
        "filter": _when(condition),
        **({"status_code": status} if status else {}),
        "body_format_override": {"json_format": {"error": body}, "content_type": "application/json"},
    }


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
