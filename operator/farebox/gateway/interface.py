"""The interface between the transport and the handler, for one call.

It contains nothing of Envoy, HTTP/2 or protobuf, and no rule.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from msgspec import Struct, field


class RequestHead(Struct, frozen=True):
    """A call without its body.

    Args:
        method: in capitals.
        path: with the query.
        headers: by lower-case name, "host" included; the first value of a repeated header. Headers that begin
            with "x-gw-" are removed before.
        repeated: the names of headers that occur more than once.
        peer: the address of the connection, without the port; never from X-Forwarded-For.
        request_id: made by Envoy for this call; a client's own X-Request-Id is ignored.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    repeated: frozenset[str]
    peer: str
    request_id: str


class UsageRedaction(StrEnum):
    """The usage that is removed from a stream, because the caller did not ask for it."""

    NOTHING = ""
    EACH_EVENT = "each-event"
    """The usage in every event except the last, which contains nothing else."""
    ALL = "all"


class Route(Struct, frozen=True):
    """The call is forwarded to an upstream.

    Args:
        upstream: "host:port", also the Host header.
        tls: whether to use TLS, with the certificate checked for that host.
        path: with the query.
        body: None keeps the client's body, b"" is an empty one.
        set_headers: replace those of the client.
        remove_headers: names.
        labels: are logged with the usage, and returned in its UsageLine. The transport reads "service"
            ("namespace/name"), "model" and "api_key" for the meter; "dialect"; the integers of tokens
            "estimate_input", "max_input" and "max_output", for calls that end early and for usage that
            cannot be; "output_ceiling", the tokens that may be reported if they are more than "max_output";
            "inputs", the number of texts that the model reads separately, if there are several;
            "image_tokens", those of each image in an answer, unless they are the usual ones; "cached_share",
            the thousandths of the input that are likely read from a cache.
        redaction: applies to an answer that is a stream of events.
        dialect: the API of the answer (`APIEndpoint.dialect`), which says where its text and usage stand.
        choices: how many answers the caller gets.
        usage_by_choice: whether the usage in an event of a stream covers only one of them.
        response_headers: are added to the answer, whatever its status.
    """

    upstream: str
    tls: bool
    path: str
    body: bytes | None = None
    set_headers: Mapping[str, str] = field(default_factory=dict)
    remove_headers: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    redaction: UsageRedaction = UsageRedaction.NOTHING
    dialect: str = ""
    choices: int = 1
    usage_by_choice: bool = False
    response_headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImmediateResponse:
    """The gateway answers the call itself."""

    status: int
    headers: Mapping[str, str]
    body: bytes


BodyHandler = Callable[[bytes | None], Awaitable[Route | ImmediateResponse]]
"""Decides a call with its complete body, or None if the request has none."""

OnAbandoned = Callable[[str], None]
"""Receives the id of a call whose client left during the decision. If Envoy has forwarded the call, it is in
the log soon; otherwise it never is."""

OnRefused = Callable[[RequestHead, int, str], None]
"""Receives a call that the transport itself refuses, with the status and the code of the error."""

HeadHandler = Callable[[RequestHead], ImmediateResponse | BodyHandler]
"""Decides a call by its head: it returns a response before the body is read, or the handler of the body.

It returns immediately, and the body may never arrive. If one of the two raises, Envoy answers 503 as if the
decision process were unreachable, and the call is not forwarded.
"""
