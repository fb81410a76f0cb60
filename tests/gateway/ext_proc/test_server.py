"""The ext_proc server with a client other than Envoy: when it calls the handler, how each failure ends."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.gateway.ext_proc import discard, messages
from farebox.gateway.ext_proc.messages import CONTINUE, InvalidMessage
from farebox.gateway.ext_proc.server import ProcessingStream, listening
from farebox.gateway.ext_proc.streams import Stream
from farebox.gateway.interface import HeadHandler, ImmediateResponse, RequestHead, Route
from tests.gateway.envoy_gateway import by_body
from tests.gateway.h2_client import GRPC_HEADERS, Client, connected, eventually
from tests.gateway.protobuf import field, fields, headers_message

LIMIT = 100_000


def forwarded(head: RequestHead, body: bytes | None) -> Route:
    return Route("model:8000", False, head.path, body, labels={"service": "team/chat"})


@by_body
async def forwards(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
    return forwarded(head, body)


@asynccontextmanager
async def served(directory: Path, handler: HeadHandler = forwards) -> AsyncIterator[Client]:
    socket = directory / "decide.sock"
    async with listening(socket, handler, LIMIT), connected(socket) as client:
        yield client


async def test_a_request_without_a_body_is_decided_on_its_headers(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        stream = await client.request()
        await client.message(stream, headers_message({":path": "/v1/models"}, end=True))
        (answer,), trailers = await client.answer(stream)
    assert trailers == {"grpc-status": "0"}
    assert list(fields(answer)) == [1, 8], "request_headers, and the labels"


async def test_a_request_with_a_body_is_decided_when_the_body_is_there(tmp_path: Path) -> None:
    asked: list[bytes | None] = []

    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        asked.append(body)
        return forwarded(head, body)

    async with served(tmp_path, handler) as client:
        stream = await client.request()
        await client.message(stream, headers_message({":path": "/"}, end=False))
        await client.until_data(stream, 5 + len(CONTINUE))
        assert asked == []
        await client.message(stream, field(4, field(1, b"x" * 50_000)))
        (first, second), _ = await client.answer(stream)
    assert first == CONTINUE
    assert list(fields(second)) == [3, 8]
    assert asked == [b"x" * 50_000]


async def test_a_call_that_is_over_is_freed_without_a_search_for_garbage(tmp_path: Path) -> None:
    """The search for what thousands of calls left stopped all others for a tenth of a second."""

    def left() -> list[object]:
        return [each for each in gc.get_objects() if isinstance(each, (Stream, ProcessingStream))]

    async with served(tmp_path) as client:
        gc.collect()
        gc.disable()
        try:
            for reads in (True, False):
                stream = await client.request()
                await client.message(stream, headers_message({":path": "/"}, end=False))
                await client.until_data(stream, 5 + len(CONTINUE))
                await client.message(stream, field(4, field(1, b"x")))
                if reads:
                    await client.answer(stream)
                client.h2.reset_stream(stream)
                await client.flush()
            await eventually(lambda: not left())
        finally:
            gc.enable()


async def test_the_head_is_read_with_repeated_and_odd_headers(tmp_path: Path) -> None:
    heads: list[RequestHead] = []

    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        heads.append(head)
        return ImmediateResponse(402, {"retry-after": "1"}, b"{}")

    sent = [
        (":method", "POST"),
        (":path", "/v1/x?y=1"),
        (":authority", "host"),
        ("x-request-id", "id-1"),
        ("x-gw-peer", "10.0.0.9"),
        ("x-twice", "a"),
        ("x-twice", "b"),
        ("x-odd", "\xe9\xff"),
    ]
    async with served(tmp_path, handler) as client:
        for _ in range(2):
            stream = await client.request()
            await client.message(stream, headers_message(sent, end=True))
            (answer,), _ = await client.answer(stream)
    assert list(fields(answer)) == [7], "an immediate response"
    head = heads[0]
    assert (head.method, head.path, head.peer, head.request_id) == ("POST", "/v1/x?y=1", "10.0.0.9", "id-1")
    assert head.headers == {"host": "host", "x-request-id": "id-1", "x-twice": "a", "x-odd": "\xe9\xff"}
    assert head.repeated == {"x-twice"}
    assert heads[1] == head, "read from the memory of entries"


async def test_a_head_that_is_refused_is_answered_before_its_body(tmp_path: Path) -> None:
    def handler(head: RequestHead) -> ImmediateResponse:
        return ImmediateResponse(401, {"x-path": head.path}, b"{}")

    async with served(tmp_path, handler) as client:
        for headers, end in (({}, True), ({"content-length": str(discard.SMALL_BYTES)}, False)):
            stream = await client.request()
            await client.message(stream, headers_message({":path": "/v1/x", **headers}, end=end))
            (answer,), trailers = await client.answer(stream)
            assert list(fields(answer)) == [7], "an immediate response"
            assert trailers == {"grpc-status": "0"}


def refuses(head: RequestHead) -> ImmediateResponse:
    return ImmediateResponse(
        401, {"content-type": "application/json", "x-request-id": "id-1"}, b'{"error": 1}'
    )


async def sent_to(client: Client, headers: dict[str, str]) -> dict[str, str]:
    """The headers that the server makes Envoy set for a refused call with a body."""
    stream = await client.request()
    await client.message(stream, headers_message({"authorization": "Bearer k", **headers}, end=False))
    (answer,), trailers = await client.answer(stream)
    assert trailers == {"grpc-status": "0"}
    message = fields(answer)
    assert list(message) in ([1], [7]), "no labels: it is not logged"
    if 7 in message:
        return {}
    mutation = fields(fields(fields(message[1][0])[1][0])[2][0])
    assert b"authorization" in mutation[2], "the key goes no further"
    options = [fields(fields(option)[1][0]) for option in mutation[1]]
    return {option[1][0].decode(): option[3][0].decode() for option in options}


async def drained(client: Client, added: dict[str, str], body: bytes, end: bool) -> tuple[int, bytes]:
    """Send the body as Envoy does; status and body of the answer."""
    headers = [(":method", "POST"), (":scheme", "http"), (":authority", "g"), (":path", added[":path"])]
    stream = await client.request(headers=[*headers, (discard.HEADER, added[discard.HEADER])])
    await client.send(stream, body, end=end)
    answer = await client.until(h2.events.ResponseReceived, stream)
    await client.until(h2.events.StreamEnded, stream)
    given = dict(answer.headers)
    assert given["x-request-id"] == "id-1"
    data = b"".join(client.taken(stream))
    assert int(given["content-length"]) == len(data)
    return int(given[":status"]), data


@pytest.mark.parametrize("headers", [{}, {"content-length": "40000"}, {"content-length": str(10 * LIMIT)}])
@pytest.mark.parametrize("end", [True, False])
async def test_a_large_body_of_a_refused_call_is_thrown_away_before_the_answer(
    tmp_path: Path, headers: dict[str, str], end: bool
) -> None:
    """At its end, or when nothing more comes."""
    async with served(tmp_path, refuses) as client:
        added = await sent_to(client, headers)
        assert added["x-gw-cluster"] == "decision"
        assert await drained(client, added, bytes(3_000_000), end) == (401, b'{"error": 1}')


async def test_bodies_of_refused_calls_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    async with served(tmp_path, refuses) as client:
        added = await sent_to(client, {})
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "g"),
            (":path", added[":path"]),
        ]
        streams = [
            await client.request(headers=[*headers, (discard.HEADER, added[discard.HEADER])])
            for _ in range(discard.MAX_BODIES)
        ]
        assert await sent_to(client, {}) == {}, "answered at once"
        for stream in streams[:2]:
            client.h2.reset_stream(stream)
        await client.flush()
        assert await sent_to(client, {}) == added, "some have left"
        for stream in streams[2:]:
            await client.until(h2.events.StreamEnded, stream)
        assert await drained(client, added, b"", end=True) == (401, b'{"error": 1}')


@pytest.mark.parametrize("value", ["", "no base64!", "AAAA"])
async def test_a_body_without_a_refusal_is_unimplemented(tmp_path: Path, value: str) -> None:
    headers = [(":method", "POST"), (":scheme", "http"), (":authority", "g")]
    headers += [(":path", discard.PATH.decode()), (discard.HEADER, value)]
    async with served(tmp_path, refuses) as client:
        stream = await client.request(headers=headers, end=True)
        _, trailers = await client.answer(stream)
        assert trailers["grpc-status"] == "12"
        assert await sent_to(client, {}), "the connection goes on"


async def test_a_body_that_was_not_asked_for_is_no_message(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        stream = await client.request()
        await client.message(stream, field(4, field(1, b"x")))
        assert await client.answer(stream) == ([], {"grpc-status": "3"})


async def test_a_body_over_the_limit_is_refused_without_asking(tmp_path: Path) -> None:
    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        raise AssertionError("asked")

    async with served(tmp_path, handler) as client:
        announced = await client.request()
        await client.message(announced, headers_message({"content-length": str(LIMIT + 1)}, end=False))
        (refused,), _ = await client.answer(announced)
        assert discard.HEADER.encode() in refused
        came = await client.request()
        await client.message(came, headers_message({}, end=False))
        await client.message(came, field(4, field(1, bytes(LIMIT + 1))))
        (_, also), _ = await client.answer(came)
    assert b"request_too_large" in also


async def test_a_handler_that_raises_lets_nothing_through(tmp_path: Path) -> None:
    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        raise RuntimeError("a fault")

    def at_once(head: RequestHead) -> ImmediateResponse:
        raise RuntimeError("a fault")

    for faulty in (handler, at_once):
        async with served(tmp_path, faulty) as client:
            stream = await client.request()
            await client.message(stream, headers_message({}, end=True))
            messages, trailers = await client.answer(stream)
        assert messages == []
        assert trailers == {"grpc-status": "13"}


async def test_a_call_that_is_gone_is_not_decided_any_more(tmp_path: Path) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with served(tmp_path, handler) as client:
        stream = await client.request()
        await client.message(stream, headers_message({}, end=True))
        await began.wait()
        client.h2.reset_stream(stream)
        await client.flush()
        await ended.wait()


@by_body
async def pays(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
    return forwarded(head, body) if head.path == "/" else ImmediateResponse(402, {}, b"")


@asynccontextmanager
async def answered(directory: Path, unread: list[str]) -> AsyncIterator[tuple[Client, list[int]]]:
    """Two calls that were answered, the second with a refusal."""
    socket = directory / "decide.sock"
    async with listening(socket, pays, LIMIT, unread.append), connected(socket) as client:
        made = []
        for path in ("/", "/refused"):
            made.append(await client.request())
            headers = {":path": path, "x-request-id": path}
            await client.message(made[-1], headers_message(headers, end=True))
            await client.answer(made[-1])
        assert unread == []
        yield client, made


async def test_a_call_whose_client_left_during_the_decision_counts_as_abandoned(tmp_path: Path) -> None:
    """Envoy ends its side then; in answer to the trailers it resets a stream."""
    unread: list[str] = []
    async with answered(tmp_path, unread) as (client, streams):
        for stream in streams:
            client.h2.end_stream(stream)
        await client.ping()
        assert unread == ["/"]


async def test_a_call_whose_answer_was_read_does_not_count_as_abandoned(tmp_path: Path) -> None:
    unread: list[str] = []
    async with answered(tmp_path, unread) as (client, streams):
        for stream in streams:
            client.h2.reset_stream(stream)
        await client.ping()
    assert unread == []


async def test_an_envoy_that_is_lost_may_have_read_no_answer(tmp_path: Path) -> None:
    unread: list[str] = []
    async with answered(tmp_path, unread) as (client, _):
        client.writer.close()
        await eventually(lambda: unread)
    assert unread == ["/"]


async def test_a_call_whose_client_left_before_the_decision_counts_as_abandoned(tmp_path: Path) -> None:
    unread: list[str] = []
    go = asyncio.Event()

    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        await go.wait()
        return forwarded(head, body)

    socket = tmp_path / "decide.sock"
    async with listening(socket, handler, LIMIT, unread.append), connected(socket) as client:
        stream = await client.request()
        await client.message(stream, headers_message({"x-request-id": "/"}, end=True))
        client.h2.end_stream(stream)
        await client.ping()
        assert unread == []
        go.set()
        await client.answer(stream)
        assert unread == ["/"]


async def test_a_call_that_is_reset_before_its_answer_is_sent_counts_as_abandoned(
    tmp_path: Path,
) -> None:
    unread: list[str] = []

    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        return forwarded(head, b"x" * 1_000_000)

    socket = tmp_path / "decide.sock"
    async with listening(socket, handler, LIMIT, unread.append), connected(socket) as client:
        client.hold_windows = True
        stream = await client.request()
        await client.message(stream, headers_message({"x-request-id": "large"}, end=True))
        await client.until_data(stream, 65_535)
        assert unread == []
        client.h2.reset_stream(stream)
        await client.ping()
        assert unread == ["large"]


async def test_what_is_no_message_is_an_error_of_that_stream_alone(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        for sent in (b"\x01\x00\x00\x00\x01x", b"\x00\x7f\x00\x00\x00", b"\x00\x00\x00\x00\x02\x0a\x7f"):
            stream = await client.request()
            await client.send(stream, sent)
            messages, trailers = await client.answer(stream)
            assert messages == []
            assert trailers == {"grpc-status": "3"}
        stream = await client.request()
        await client.message(stream, headers_message({}, end=True))
        assert len((await client.answer(stream))[0]) == 1


async def test_a_client_that_ends_without_a_question_gets_no_open_door(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        stream = await client.request(end=True)
        assert (await client.answer(stream)) == ([], {"grpc-status": "1"})


async def test_another_method_is_not_implemented(tmp_path: Path) -> None:
    headers = [(":path", "/x") if name == ":path" else (name, value) for name, value in GRPC_HEADERS]
    async with served(tmp_path) as client:
        stream = await client.request(headers=headers, end=True)
        _, trailers = await client.answer(stream)
    assert trailers["grpc-status"] == "12"


async def test_decisions_under_way_are_finished_at_the_end(tmp_path: Path) -> None:
    socket = tmp_path / "decide.sock"
    began, go = asyncio.Event(), asyncio.Event()

    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        began.set()
        await go.wait()
        return forwarded(head, body)

    stop = asyncio.Event()

    async def serve() -> None:
        async with listening(socket, handler, LIMIT):
            await stop.wait()

    serving = asyncio.create_task(serve())
    await eventually(socket.exists)
    async with connected(socket) as client:
        stream = await client.request()
        await client.message(stream, headers_message({}, end=True))
        await began.wait()
        stop.set()
        go.set()
        messages, _ = await client.answer(stream)
    assert len(messages) == 1
    await serving


async def test_a_socket_that_a_dead_process_left_is_replaced(tmp_path: Path) -> None:
    for _ in range(2):
        async with served(tmp_path) as client:
            stream = await client.request()
            await client.message(stream, headers_message({}, end=True))
            assert (await client.answer(stream))[1] == {"grpc-status": "0"}


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_invalid(message: bytes) -> None:
    with suppress(InvalidMessage):
        messages.read_request(message)


@given(st.integers(0, 2**63 - 1))
def test_numbers_come_back(value: int) -> None:
    encoded = messages._number(value)
    assert messages._varint(encoded, 0) == (value, len(encoded))


@given(st.dictionaries(st.text(max_size=300), st.text(max_size=300), max_size=5), st.binary(max_size=300))
def test_a_decision_can_be_read_by_another_reader(labels: dict[str, str], body: bytes) -> None:
    decision = Route("h:1", True, "/p", body, {"x-a": "b"}, ("x-c",), labels)
    message = fields(messages.continue_request(decision, on_headers=False))
    common = fields(fields(message[3][0])[1][0])
    set_headers = {}
    for option in fields(common[2][0])[1]:
        header = fields(fields(option)[1][0])
        set_headers[header[1][0].decode()] = header[3][0].decode()
    assert set_headers == {
        "x-a": "b",
        ":path": "/p",
        ":authority": "h:1",
        "x-gw-cluster": "upstream_tls",
        "content-length": str(len(body)),
    }
    assert fields(common[2][0])[2] == [b"accept-encoding", b"x-c"]
    mutation = fields(common[3][0])
    assert mutation == ({1: [body]} if body else {2: [b"\x01"]})
    farebox = fields(fields(fields(message[8][0])[1][0])[2][0])[5][0]
    text = fields(fields(fields(farebox)[1][0])[2][0])[3][0]
    assert json.loads(text) == labels


@pytest.mark.parametrize("size", [0, 5, 300_000])
def test_a_long_body_is_decoded_in_place(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    around = field(9, b"attributes") + field(11, 5)
    message = bytearray(around + field(4, field(1, body) + field(2, 1)) + around)
    assert messages.long_body(message) == body
    assert messages.read_request(around + field(4, field(1, body) + field(2, 1))) == body


@pytest.mark.parametrize(
    "message",
    [
        b"",
        field(2, b"headers"),
        field(4, field(2, 1)),
        field(4, field(1, b"body"))[:-1],
        field(4, field(1, b"body") + b"\x0a\x7f"),
        b"\x24",
        b"\x22",
        b"\x22\xff",
    ],
)
def test_a_long_message_that_is_no_body_is_invalid(message: bytes) -> None:
    with pytest.raises(InvalidMessage):
        messages.long_body(bytearray(message))
