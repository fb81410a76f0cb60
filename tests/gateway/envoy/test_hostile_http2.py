"""Hostile requests over HTTP/2, by a foreign client that checks nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import h2.config
import h2.connection
import h2.events
import pytest
import pytest_asyncio

from tests.gateway.harness import TOKEN
from tests.gateway.hostile import GOOD
from tests.gateway.hostile_target import Answer, Target, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

Headers = list[tuple[str, str]]
HEAD: Headers = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "gateway"),
    (":path", "/v1/chat/completions"),
    ("authorization", f"Bearer {TOKEN}"),
]
BROKEN = "broken"
"""Envoy resets the stream, or ends the connection: what came is no HTTP/2."""


def head(**pseudo: str) -> Headers:
    """The head with other pseudo headers; "" leaves one away."""
    given = [(name, pseudo.get(name.removeprefix(":"), value)) for name, value in HEAD]
    return [(name, value) for name, value in given if value]


CASES: list[tuple[str, Headers, str]] = [
    ("a good one", HEAD, "200"),
    ("a length too short", [*HEAD, ("content-length", "3")], BROKEN),
    ("a length too long", [*HEAD, ("content-length", "3000")], BROKEN),
    ("two lengths", [*HEAD, ("content-length", str(len(GOOD))), ("content-length", "3")], BROKEN),
    ("chunks", [*HEAD, ("transfer-encoding", "chunked")], BROKEN),
    ("Connection", [*HEAD, ("connection", "close")], BROKEN),
    ("two paths", [*HEAD[:4], (":path", "/metrics"), *HEAD[4:]], BROKEN),
    ("a path at the end", [*HEAD[:3], HEAD[4], HEAD[3]], BROKEN),
    ("no path", head(path=""), BROKEN),
    ("a whole URL", head(path="http://x/v1/chat/completions"), BROKEN),
    ("a line in the path", head(path="/v1/chat/completions HTTP/1.1\r\nX-A: b"), BROKEN),
    ("a line in the method", head(method="POST / HTTP/1.1\r\nX-A: "), BROKEN),
    ("a line in a value", [*HEAD, ("x-a", "b\r\nx-gw-cluster: evil")], BROKEN),
    ("capitals", [*HEAD, ("X-GW-Cluster", "evil")], BROKEN),
    ("a space in a name", [*HEAD, ("x a", "b")], BROKEN),
    ("what only the gateway says", [*HEAD, ("x-gw-cluster", "evil"), ("x-gw-peer", "10.0.0.1")], "200"),
    ("another host", [*HEAD, ("host", "other")], "200"),
    ("another path", head(path="/metrics"), "404 unknown_url"),
    ("a path that goes up", head(path="/v1/chat/completions/../files"), "404 unknown_url"),
    ("GET", head(method="GET"), "405 method_not_allowed"),
    ("CONNECT", [(":method", "CONNECT"), *HEAD[2:3], HEAD[4]], "404 unknown_url"),
    ("WebSocket", [(":method", "CONNECT"), (":protocol", "websocket"), *HEAD[1:]], BROKEN),
    ("200 headers", [*HEAD, *((f"x-{number}", "y") for number in range(200))], BROKEN),
    ("no key", HEAD[:4], "401 invalid_api_key"),
]


async def send(target: Target, headers: Headers, trailers: Headers) -> str:
    """The answer, in the table's words."""
    config = h2.config.H2Configuration(
        header_encoding="utf-8",
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
        validate_inbound_headers=False,
    )
    client = h2.connection.H2Connection(config)
    async with target.connected() as (reader, writer):
        client.initiate_connection()
        client.send_headers(1, headers)
        client.send_data(1, GOOD, end_stream=not trailers)
        if trailers:
            client.send_headers(1, trailers, end_stream=True)
        writer.write(client.data_to_send())
        status, body = 0, b""
        while received := await _read(reader):
            for event in client.receive_data(received):
                if isinstance(event, h2.events.ResponseReceived):
                    status = int(_first(event.headers, ":status"))
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    return Answer(status, body).summary
                elif isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                    return BROKEN
        return BROKEN


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(65536)
    except ConnectionError:
        return b""


def _first(headers: Iterable[tuple[str, str]], name: str) -> str:
    return next(value for key, value in headers if key == name)


async def test_hostile_requests_over_http2_are_refused_or_served_once(target: Target) -> None:
    """All at once: Envoy takes a second to close a connection that it finds broken."""
    answers = await asyncio.gather(*(send(target, headers, []) for _, headers, _ in CASES))
    found = {name: answer for (name, _, _), answer in zip(CASES, answers, strict=True)}
    assert found == {name: expected for name, _, expected in CASES}
    await target.check(answers.count("200"))


async def test_trailers_over_http2_say_nothing(target: Target) -> None:
    assert await send(target, HEAD, [("x-gw-cluster", "evil"), ("authorization", "Bearer other")]) == "200"
    await target.check(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with running(tmp_path_factory.mktemp("http2")) as made:
        yield made
