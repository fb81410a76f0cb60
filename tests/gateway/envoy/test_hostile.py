"""Hostile requests to a real Envoy over raw sockets: each is refused clearly, or served once and metered."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from tests.gateway import hostile
from tests.gateway.hostile import (
    CASES,
    CHUNKED,
    GOOD,
    KEY,
    LENGTH,
    LINE,
    SECOND,
    chunked,
    posted,
    request,
)
from tests.gateway.hostile_target import Target, answer, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with running(tmp_path_factory.mktemp("hostile"), max_body_bytes=1_000_000) as made:
        yield made


@pytest.mark.parametrize(("sent", "expected"), [each[1:] for each in CASES], ids=[each[0] for each in CASES])
async def test_a_hostile_request_is_refused_or_served_once(
    target: Target, sent: bytes, expected: str
) -> None:
    assert (await target.send(sent)).summary == expected
    await target.check(int(expected == "200"))


async def test_an_odd_request_reaches_the_upstream_in_plain_form(target: Target) -> None:
    """Whatever Envoy tolerates has one meaning when it leaves."""
    odd = (
        "Traceparent: b\rX-B: c",
        "Tracestate: d\r\n e",
        "X-A: b",
        "x_gw_cluster: evil",
        "Expect: tea",
        "TE: trailers, gzip",
    )
    assert (await target.send(posted(CHUNKED, *odd, body=chunked(GOOD, last=hostile.TRAILERS)))).status == 200
    _, headers, body = target.upstream.requests[-1]
    assert json.loads(body)["max_tokens"] == 5
    assert (headers["traceparent"], headers["tracestate"]) == ("bX-B: c", "d e")
    assert headers["content-length"] == str(len(body))
    assert not {"transfer-encoding", "expect", "x_gw_cluster", "x-a", "x-b", "x-trailer"} & set(headers)
    await target.check(1)


async def test_each_request_of_a_connection_is_decided_by_itself(target: Target) -> None:
    """What comes behind a body is another request, with a key of its own or none."""
    first = request().replace(b"Connection: close\r\n", b"")
    async with target.connected() as (reader, writer):
        writer.write(first + first + SECOND)
        answers = [await answer(reader) for _ in range(3)]
    assert [each.status for each in answers] == [200, 200, 401]
    await target.check(2)


async def test_a_client_that_leaves_within_its_request_is_not_served(target: Target) -> None:
    for sent in (request()[:-1], request()[:60], posted(CHUNKED, body=chunked(GOOD, last=b""))):
        async with target.connected() as (_, writer):
            writer.write(sent)
            await writer.drain()
    await target.check(0)


async def test_a_body_that_comes_byte_by_byte_is_decided_when_it_is_whole(target: Target) -> None:
    async with target.connected() as (reader, writer):
        for byte in request():
            writer.write(bytes((byte,)))
            await writer.drain()
        assert (await answer(reader)).status == 200
    await target.check(1)


async def drip(writer: asyncio.StreamWriter) -> None:
    """One byte after another, for as long as it takes."""
    while True:
        writer.write(b"a")
        await writer.drain()
        await asyncio.sleep(0.01)


async def rest(writer: asyncio.StreamWriter) -> None:
    """Nothing more."""


@pytest.mark.parametrize("more", [drip, rest])
@pytest.mark.parametrize(
    "begin",
    [
        f"{LINE}\r\nX-A: ".encode(),
        f"{LINE}\r\nHost: gateway\r\n{KEY}\r\n{LENGTH}0\r\n\r\n".encode(),
        f"{LINE}\r\nHost: gateway\r\n{KEY}\r\n{CHUNKED}\r\n\r\nfffff\r\n".encode(),
        f"{LINE}\r\nHost: gateway\r\n{KEY}\r\n{CHUNKED}\r\n\r\n5;".encode(),
    ],
    ids=["head", "body", "chunk", "extension"],
)
async def test_a_request_that_is_incomplete_at_the_timeout_is_ended(
    impatient: Target, begin: bytes, more: Callable[[asyncio.StreamWriter], Awaitable[None]]
) -> None:
    async with impatient.connected() as (reader, writer):
        writer.write(begin)
        writing = asyncio.ensure_future(more(writer))
        assert (await answer(reader)).summary == "408 request_timeout"
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    assert impatient.upstream.requests == []
    assert impatient.envoy.lines() == []


@pytest.mark.parametrize(
    ("path", "form"), [("/v1/messages", {"type", "error", "request_id"}), ("/v1/responses", {"error"})]
)
async def test_an_error_of_envoy_itself_has_the_form_of_the_api(
    impatient: Target, path: str, form: set[str]
) -> None:
    begin = f"POST {path} HTTP/1.1\r\nHost: gateway\r\n{KEY}\r\n{LENGTH}0\r\n\r\n"
    async with impatient.connected() as (reader, writer):
        writer.write(begin.encode())
        document = json.loads((await answer(reader)).body)
    assert set(document) == form
    assert document["error"]["code"] == "request_timeout"
    assert document["error"]["type"] == "invalid_request_error"
    assert document.get("type", "error") == "error"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with running(tmp_path_factory.mktemp("slow"), head_seconds=0.2, body_seconds=0.3) as made:
        yield made
