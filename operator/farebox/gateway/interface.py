"""What the transport and the rules say to each other about one call.

Nothing of Envoy, HTTP/2 or protobuf comes through here, and no rule goes the other way.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from msgspec import Struct, field

FALSE_VALUES: Final = frozenset({"", "0", "false", "no"})
"""Values of a label that mean no, as its absence does."""


class RequestHead(Struct, frozen=True):
    """A call without its body.

    Args:
        method: in capitals.
        path: with the query.
        headers: by lower-case name, the first value of a header that came more than once; "host" too. None
            that begins with "x-gw-", whoever sent it.
        repeated: the names of the headers that came more than once.
        peer: the address that the connection came from, without the port; never from X-Forwarded-For.
        request_id: made by Envoy for this call alone; a client's own X-Request-Id is not believed.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    repeated: frozenset[str]
    peer: str
    request_id: str


class UsageRedaction(StrEnum):
    """Which usage of a stream its caller does not see, because it did not ask for it."""

    NOTHING = ""
    EACH_EVENT = "each-event"
    """That of all events but the last, which tells nothing else."""
    ALL = "all"


class Route(Struct, frozen=True):
    """The call goes to an upstream.

    Args:
        upstream: "host:port"; the Host header too.
        tls: with TLS, and the certificate checked for that host.
        path: with the query.
        body: None leaves it as it came, b"" is an empty one.
        set_headers: replace those of the client.
        remove_headers: names.
        labels: are written in the log beside the usage, and come back in its UsageLine. The transport itself
            reads "service" ("namespace/name"), "model" and "api_key", which the meter is told; "stream" and
            "continuous_usage" (each event of the stream has the usage so far), on unless NO has the value;
            "estimate_input" and "max_output", whole numbers of tokens, for calls that end early.
        redaction: applies to an answer that is a stream of events.
    """

    upstream: str
    tls: bool
    path: str
    body: bytes | None = None
    set_headers: Mapping[str, str] = field(default_factory=dict)
    remove_headers: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    redaction: UsageRedaction = UsageRedaction.NOTHING


@dataclass(frozen=True, slots=True)
class ImmediateResponse:
    """The call is answered here, with this."""

    status: int
    headers: Mapping[str, str]
    body: bytes


BodyHandler = Callable[[bytes | None], Awaitable[Route | ImmediateResponse]]
"""Decides a call whose head is known. The body is None when the request has none, and is whole otherwise."""

OnAbandoned = Callable[[str], None]
"""Hears of the id of a call that was to go on its way, and whose client had left by then. If it went it
will be in the log within moments; if not, nothing will be heard of it."""

HeadHandler = Callable[[RequestHead], ImmediateResponse | BodyHandler]
"""Decides a call by its head: it is refused before its body is read, or this is who decides it with the body.

It answers at once, and may be asked about a call that never gets a body. When either raises, Envoy answers
as if the decision process were away (503), and the call goes nowhere.
"""
