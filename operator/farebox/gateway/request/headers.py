"""Who calls, from where, and with what: the head of a call as admission sees it. Pure.

Headers that two readers may understand in two ways are refused, and no header of the client's that means
something between the gateway's own parts, or to a provider, goes any further.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from farebox.domain.admission.addresses import Address, Network, client_address
from farebox.errors import InvalidCall
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
"""Without it Envoy finds no route."""
_REMOVED_PREFIXES: Final = ("x-gw-", "x-envoy-", "x-forwarded-", "x-farebox-")


def key_hash(head: RequestHead) -> str | None:
    """The hash of the caller's key; None if it sent none that could be one.

    `Authorization: Bearer` as OpenAI's clients send it, or `x-api-key` as Anthropic's; both if they agree.
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
    """Where the client is, by the trusted-hop rule (`farebox.domain.admission.addresses`)."""
    name = "x-forwarded-for"
    return client_address(head.peer, head.headers.get(name), trusted, repeated=name in head.repeated)


def check_headers(head: RequestHead) -> None:
    """Raises InvalidCall for headers that make the body another than it seems."""
    for name in head.repeated:
        if name in _ONCE:
            raise InvalidCall("ambiguous_header", f"the header {name} came more than once")
    if "," in head.headers.get("host", ""):
        # Envoy joins several to one.
        raise InvalidCall("ambiguous_header", "the header host came more than once")
    encoding = head.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise InvalidCall("unsupported_encoding", "a compressed body is not read here: send it as it is")
    content_type = head.headers.get("content-type", "application/json")
    if not _JSON.fullmatch(content_type.strip()):
        raise InvalidCall("unsupported_type", "the body must be JSON: Content-Type: application/json")


def removed_headers(headers: Mapping[str, str], kept: Mapping[str, str]) -> tuple[str, ...]:
    """The client's headers that go no further, but for those that are `kept` with another value."""
    return _removed(tuple(headers), tuple(kept))


@lru_cache(1024)
def _removed(names: tuple[str, ...], kept: tuple[str, ...]) -> tuple[str, ...]:
    """Clients of one sort send the same names with each call."""
    return tuple(
        name
        for name in names
        if (name in _REMOVED or name.startswith(_REMOVED_PREFIXES)) and name not in kept and name != _KEPT
    )
