"""The head of a call: its key, its address, and the headers that are refused or removed. Pure.

Headers that two readers may understand differently are refused. Client headers that have a meaning between
the gateway's own parts, or for a provider, are removed.
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
_JSON: Final = re.compile(r'application/json *(; *charset *= *"?utf-8"? *)?', re.IGNORECASE)
_ONCE: Final = frozenset(
    {"authorization", "x-api-key", "content-type", "content-encoding", "content-length", "host"}
)

_REMOVED: Final = frozenset(
    {
        "authorization",
        "x-api-key",
        "api-key",
        "proxy-authorization",
        "cookie",
        "forwarded",
        "via",
        "x-real-ip",
        "openai-organization",
        "openai-project",
        "baggage",
        "expect",
    }
)
_KEPT: Final = "x-forwarded-proto"
"""Envoy finds no route without it."""
_REMOVED_PREFIXES: Final = ("x-gw-", "x-envoy-", "x-forwarded-", "x-farebox-")


def key_hash(head: RequestHead) -> str | None:
    """The hash of the caller's key; None if there is no well-formed key.

    It comes in `Authorization: Bearer` from OpenAI clients, in `x-api-key` from Anthropic clients, or in both
    headers if they agree.
    """
    bearer, api_key = head.headers.get("authorization"), head.headers.get("x-api-key")
    sent = _API_KEY.fullmatch(api_key or "") if bearer is None else _BEARER.fullmatch(bearer)
    if sent is None:
        return None
    token = sent[1]
    if bearer is not None and api_key is not None and api_key.strip() != token:
        return None
    return hashlib.sha256(token.encode()).hexdigest()


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


def removed_headers(headers: Mapping[str, str], kept: Mapping[str, str]) -> tuple[str, ...]:
    """The client's headers that are not forwarded, except those that are `kept` with another value."""
    return _removed(tuple(headers), tuple(kept))


@lru_cache(1024)
def _removed(names: tuple[str, ...], kept: tuple[str, ...]) -> tuple[str, ...]:
    """Cached, because a client sends the same names with each call."""
    return tuple(
        name
        for name in names
        if (name in _REMOVED or name.startswith(_REMOVED_PREFIXES)) and name not in kept and name != _KEPT
    )
