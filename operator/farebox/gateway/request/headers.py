"""The head of a call: its key, its address, and the headers that are refused or removed. Pure.

Headers that two readers may understand differently are refused. Only headers of an allow list reach an
upstream, because others may have a meaning between the gateway's own parts, or for a provider.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from farebox.domain.admission.addresses import Address, Network, client_address
from farebox.domain.admission.types import Denied
from farebox.gateway.interface import RequestHead

_TOKEN: Final = r"(fbx_[A-Za-z0-9_-]{43})"
_BEARER: Final = re.compile(rf"(?i:bearer) +{_TOKEN} *")
_API_KEY: Final = re.compile(rf"\s*{_TOKEN}\s*")
_JSON: Final = re.compile(r'application/json *(; *charset *= *"?utf-?8"? *)?;? *', re.IGNORECASE)
_ONCE: Final = frozenset(
    {"authorization", "x-api-key", "content-type", "content-encoding", "content-length", "host"}
)

_FORWARDED: Final = frozenset(
    {
        "accept",
        "content-type",
        "user-agent",
        "anthropic-version",
        "openai-beta",
        "traceparent",
        "tracestate",
        # These belong to the gateway and Envoy, which set or remove them themselves.
        "accept-encoding",
        "content-length",
        "transfer-encoding",
        "host",
        "x-forwarded-proto",
        "x-request-id",
    }
)
"""The client's headers that reach an upstream (docs/decisions/521). All others may name accounts, carry
credentials or describe the client's machine, and no answer depends on them."""
_PRIVATE: Final = frozenset(
    {"authorization", "x-api-key", "api-key", "proxy-authorization", "cookie", "forwarded", "via"}
)
_PRIVATE_PREFIXES: Final = ("x-gw-", "x-envoy-", "x-forwarded-", "x-farebox-")

BETA: Final = "anthropic-beta"
_BETAS: Final = (
    "adaptive-thinking-",
    "advanced-tool-use-",
    "claude-code-",
    "compact-",
    "context-management-",
    "dev-full-thinking-",
    "effort-",
    "extended-cache-ttl-",
    "fine-grained-tool-streaming-",
    "interleaved-thinking-",
    "model-context-window-exceeded-",
    "oauth-",
    "output-128k-",
    "prompt-caching-",
    "redact-thinking-",
    "structured-outputs-",
    "task-budgets-",
    "token-efficient-tools-",
    "tool-examples-",
    "tool-search-tool-",
)
"""Betas without a price of their own and without stored objects. Others, such as a larger context at a higher
price, fast mode, files and MCP servers, are not forwarded."""


def key_hash(head: RequestHead) -> str | None:
    """The hash of the caller's key; None if there is no well-formed key.

    It comes in `Authorization: Bearer` from OpenAI clients, in `x-api-key` from Anthropic clients, or in both
    headers if they agree. Credentials of another form are ignored beside a well-formed key, because tools add
    those of other services.
    """
    bearer, api_key = head.headers.get("authorization"), head.headers.get("x-api-key")
    sent = None if bearer is None else _BEARER.fullmatch(bearer)
    if api_key is not None:
        other = _API_KEY.fullmatch(api_key)
        if sent is not None and other is not None and other[1] != sent[1]:
            return None
        sent = sent or other
    return None if sent is None else hashlib.sha256(sent[1].encode()).hexdigest()


def address_of(head: RequestHead, trusted: Sequence[Network]) -> Address | None:
    """The address of the client, by the trusted-hop rule (`farebox.domain.admission.addresses`)."""
    name = "x-forwarded-for"
    return client_address(head.peer, head.headers.get(name), trusted, repeated=name in head.repeated)


def check_headers(head: RequestHead) -> None:
    """Raises Denied for headers under which readers could read different bodies or hosts."""
    for name in head.repeated:
        if name in _ONCE:
            raise Denied(400, "ambiguous_header", f"Header {name} occurs more than once")
    if "," in head.headers.get("host", ""):
        # Envoy joins repeated Host headers with a comma.
        raise Denied(400, "ambiguous_header", "Header host occurs more than once")
    encoding = head.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise Denied(400, "unsupported_encoding", "Compressed bodies are not supported. Send it uncompressed")
    content_type = head.headers.get("content-type", "application/json")
    if not _JSON.fullmatch(content_type.strip()):
        raise Denied(400, "unsupported_type", "The body must be JSON. Send Content-Type: application/json")


def removed_headers(
    headers: Mapping[str, str], kept: Mapping[str, str], more: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """The client's headers that are not forwarded.

    Args:
        kept: headers that the gateway sets itself.
        more: names that the gateway's operator forwards too (`FAREBOX_REQUEST_HEADERS`).
    """
    return _removed(tuple(headers), tuple(kept), more)


@lru_cache(1024)
def _removed(names: tuple[str, ...], kept: tuple[str, ...], more: frozenset[str]) -> tuple[str, ...]:
    """Cached, because a client sends the same names with each call."""
    return tuple(name for name in names if name not in _FORWARDED and name not in more and name not in kept)


def harmless_betas(value: str) -> str:
    """The values of `anthropic-beta` that are forwarded, separated by commas.

    >>> harmless_betas("claude-code-20250219, context-1m-2025-08-07,interleaved-thinking-2025-05-14")
    'claude-code-20250219,interleaved-thinking-2025-05-14'
    """
    return ",".join(beta for beta in map(str.strip, value.split(",")) if beta.startswith(_BETAS))


def forwarded_names(text: str) -> frozenset[str]:
    """The names in a list that is separated by commas, in lower case.

    Raises:
        ValueError: a header carries credentials or addresses, or has a meaning between the gateway's parts.
    """
    names = frozenset(name.strip().lower() for name in text.split(",") if name.strip())
    for name in sorted(names):
        if name in _PRIVATE or name.startswith(_PRIVATE_PREFIXES):
            raise ValueError(f"header {name} must not reach an upstream")
    return names
