"""The script on answers: what it reports of them, and what callers see (B16, B25-B29)."""

import asyncio
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lupa import luajit21

from farebox.gateway.envoy.response_filter import NAMESPACE, script
from farebox.gateway.interface import ImmediateResponse, RequestHead, Route, UsageRedaction
from farebox.gateway.metering.dialects import MAX_REPORTED_TOKENS
from farebox.gateway.metering.usage import BilledTokens, billed_tokens
from tests.gateway.envoy_gateway import Simulator, by_body, chat, gateway
from tests.gateway.metering.test_metering import CONTINUOUS, leave_after

USAGE: dict[str, Any] = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "prompt_tokens_details": {"cached_tokens": 1},
}
TEXTS = ['"usage":{"a":1}', '\\"usage\\": {}', '}}}{"choices":[]', "\n\n", "é", ""]


LONGEST_EVENT, LONGEST_USAGE = 2**18, 2**12
"""Those of the script."""


MAX_STEPS = 1000
"""A million instructions: a hundred times what the longest answer of FRAGMENTS needs."""
FRAGMENTS = [
    *(
        '"usage"',
        '"error"',
        '"choices"',
        '"content"',
        '"text"',
        '"delta"',
        '"type"',
        '"index"',
        '"finish_reason"',
    ),
    *('"reasoning"', '"reasoning_content"', '"stop_reason"', '"message"', '"response"', '"prompt_tokens"'),
    *(
        '"completion_tokens"',
        "usage",
        "[DONE]",
        "null",
        "{}",
        "[]",
        "5",
        '"a"',
        '"',
        "\\",
        "{",
        "}",
        "[",
        "]",
    ),
    *(":", ",", " ", "\n", "\r", "\n\n", "\r\n\r\n", "data: ", "event: error", ";base64,", "é", "\\u00e9"),
    *('{"usage":{"prompt_tokens":3,"completion_tokens":2}}', '"usage":null', '{"choices":[],'),
]


class Chunk:
    """A piece of a body, as Envoy passes it to the script."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def length(self) -> int:
        return len(self.text)

    def getBytes(self, start: int, size: int) -> bytes:
        return self.text[start : start + size]

    def setBytes(self, text: bytes) -> None:
        self.text = text


class Answer:
    """An answer after the script, run by LuaJIT as in Envoy: its bytes, its headers, and what was reported.

    `reported` has the usage; `content` and other texts are as they are. `steps` are thousands of LuaJIT's own
    instructions; it counts them where it does not compile.
    """

    def __init__(
        self,
        redaction: UsageRedaction,
        pieces: list[bytes],
        kind: bytes = b"text/event-stream",
        *,
        dialect: str = "chat",
        choices: int = 1,
        by_choice: bool = False,
        headers: dict[str, str] | None = None,
        added: str | None = None,
        ceiling: int = MAX_REPORTED_TOKENS,
        compiled: bool = True,
        max_steps: float = math.inf,
    ) -> None:
        self._max_steps = max_steps
        self.reported: dict[str, Any] = {}
        self.steps = 0
        chunks = [Chunk(piece) for piece in pieces]
        lua = luajit21.LuaRuntime(encoding=None, unpack_returned_tuples=True)
        lua.execute(script().encode())
        if not compiled:
            lua.eval(b"function(step) jit.off(); debug.sethook(function() step() end, '', 1000) end")(
                self._step
            )
        sent = {":status": "200", "content-type": kind.decode(), **(headers or {})}
        seen = lua.table_from({name.encode(): value.encode() for name, value in sent.items()})
        rules = f"{dialect} {redaction} {choices} {by_choice:d} {ceiling} r-1".encode()
        decision = {b"rules": rules} | ({b"headers": added.encode()} if added else {})
        whole = Chunk(b"".join(pieces))
        is_error = sent[":status"] != "200"
        _handle(lua)(lua.table_from(chunks), seen, lua.table_from(decision), whole, self._keep)
        self.pieces = [chunk.text for chunk in chunks]
        self.text = whole.text if is_error else b"".join(self.pieces)
        self.headers = {name.decode(): value.decode() for name, value in seen.items()}

    @property
    def usage(self) -> dict[str, Any]:
        """The reported usage, by "first", "last" and "final"."""
        return {
            name: json.loads(text)
            for name, text in self.reported.items()
            if name in ("first", "last", "final")
        }

    def _step(self, *_: object) -> None:
        self.steps += 1
        assert self.steps < self._max_steps, "the script does not end"

    def _keep(self, namespace: bytes, name: bytes, value: bytes) -> None:
        assert namespace.decode() == NAMESPACE
        self.reported[name.decode()] = value.decode(errors="surrogateescape")


def _handle(lua: Any) -> Callable[..., None]:
    """Calls the script with a handle that is as Envoy's."""
    call: Callable[..., None] = lua.eval(
        b"""function(chunks, sent, decision, whole, keep)
          local at = 0
          local function until_next(object)  -- Envoy's objects are good until the script waits
            local made = at
            return setmetatable({}, {__index = function(_, name)
              assert(at == made, "object used outside of proper scope")
              return object[name]
            end})
          end
          local headers = setmetatable(sent, {__index = {
            get = function(self, name) return rawget(self, name) end,
            remove = function(self, name) self[name] = nil end,
            replace = function(self, name, value) self[name] = value end,
          }})
          local metadata = {
            get = function(_, namespace) return namespace == RULES and decision or nil end,
            set = function(_, namespace, name, value) keep(namespace, name, value) end,
          }
          local info = {dynamicMetadata = function() return until_next(metadata) end}
          local function buffer(chunk)
            return until_next({
              length = function() return chunk.length() end,
              getBytes = function(_, from, size) return chunk.getBytes(from, size) end,
              setBytes = function(_, text) chunk.setBytes(text) end,
            })
          end
          envoy_on_response({
            headers = function() return headers end,
            streamInfo = function() return until_next(info) end,
            body = function(_, always) assert(always); return buffer(whole) end,
            bodyChunks = function()
              return function()
                local chunk = chunks[at + 1]
                if not chunk then return nil end  -- the last piece is good until the script ends
                at = at + 1
                return buffer(chunk)
              end
            end})
        end"""
    )
    return call


STREAM, DOCUMENT = b"text/event-stream", b"application/json"


def through(redaction: UsageRedaction, pieces: list[bytes], kind: bytes = STREAM) -> bytes:
    """The bytes of an answer after the script."""
    return Answer(redaction, pieces, kind).text


def cut(text: bytes, places: list[int]) -> list[bytes]:
    """The text in pieces."""
    bounds = sorted({0, len(text), *(place for place in places if place < len(text))})
    return [text[start:stop] for start, stop in pairwise(bounds)]


CUTS = st.lists(st.integers(0, 3000), max_size=12)
HOSTILE = st.sampled_from(TEXTS) | st.text()
VALUES = st.recursive(
    st.none() | st.integers() | HOSTILE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["usage", "message", "response", "a"]) | HOSTILE, inner, max_size=4)
    ),
    max_leaves=12,
)
COUNTS = st.fixed_dictionaries(
    {
        "prompt_tokens": st.integers(1, 10**6),
        "completion_tokens": st.integers(0, 10**6),
        "details": st.none() | st.just({}),
    }
)
WRITTEN = st.sampled_from([(", ", ": "), (",", ":"), (" ,\n", " :\t")])


def usage_in(document: Any) -> tuple[Any, str | None]:
    """The usage of a document, and where it stands: what the script should find."""
    for name, value in document.items() if isinstance(document, dict) else ():
        if name == "usage" and isinstance(value, dict):
            return value, None
        if name in ("message", "response", "choices") and isinstance(value, dict):
            inner = value.get("usage")
            if isinstance(inner, dict):
                return inner, name
    return None, None


@given(
    before=st.dictionaries(HOSTILE, VALUES, max_size=3),
    usage=COUNTS | st.none(),
    within=st.sampled_from(["", "message", "response", "choices"]),
    after=st.dictionaries(HOSTILE, VALUES, max_size=3),
    written=WRITTEN,
    ascii_only=st.booleans(),
    cuts=CUTS,
)
def test_the_usage_of_a_document_is_found_wherever_it_is_cut(
    before: Any, usage: Any, within: str, after: Any, written: Any, ascii_only: bool, cuts: list[int]
) -> None:
    reported = {"usage": usage}
    document = before | ({within: {**after, **reported}} if within else reported) | after
    text = json.dumps(document, separators=written, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    answer = Answer(UsageRedaction.NOTHING, cut(text, cuts), DOCUMENT)
    expected, _ = usage_in(document)
    assert answer.usage == ({} if expected is None else {"final": expected})
    assert answer.text == text


@given(
    texts=st.lists(HOSTILE, min_size=1, max_size=5),
    form=st.sampled_from(["each", "once", "response", "message"]),
    echo=VALUES,
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    cuts=CUTS,
)
def test_the_last_usage_of_a_stream_is_kept_wherever_it_is_cut(
    texts: list[str], form: str, echo: Any, end: str, cuts: list[int]
) -> None:
    reported = [{"prompt_tokens": 3, "completion_tokens": number} for number in range(len(texts) + 1)]
    dialect = {"response": "responses", "message": "messages"}.get(form, "chat")
    choices = [{"id": "c", "choices": [{"delta": {"content": text, "echo": echo}}]} for text in texts]
    documents: list[Any]
    if form == "each":
        documents = [{**each, "usage": usage} for each, usage in zip(choices, reported, strict=False)]
    elif form == "once":
        documents = [{**each, "usage": None} for each in choices] + [{"choices": [], "usage": reported[-1]}]
    elif form == "response":
        whole = {"tools": [echo], "text": texts[0]}
        documents = [{"response": {**whole, "usage": usage}} for usage in [None, reported[-1]]]
    else:
        end_of_message = {"delta": {"stop_reason": "end_turn"}, "usage": reported[-1]}
        documents = [{"message": {"content": [], "usage": reported[0]}}, *choices, end_of_message]
    stream = "".join(f"event: e{end}data: {json.dumps(each)}{end}{end}" for each in documents).encode()
    answer = Answer(UsageRedaction.NOTHING, [*cut(stream, cuts), b""], STREAM, dialect=dialect)
    expected = {"last" if form == "each" else "final": usage_in(documents[-1])[0]}
    assert answer.usage == (expected | {"first": reported[0]} if form == "message" else expected)
    assert answer.text == stream


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("size", [LONGEST_USAGE, 3 * LONGEST_EVENT])
def test_a_document_of_any_size_is_read(first: bool, size: int) -> None:
    usage = {"usage": {"prompt_tokens": 3, "total_tokens": 3}}
    data = {"data": [{"embedding": [0.25] * (size // 6)}], "text": '\\"' * size}
    text = json.dumps(usage | data if first else data | usage).encode()
    pieces = [text[at : at + 16_000] for at in range(0, len(text), 16_000)]
    answer = Answer(UsageRedaction.NOTHING, pieces, b"Application/JSON; charset=utf-8", dialect="embeddings")
    assert answer.usage == {"final": usage["usage"]}


@pytest.mark.parametrize("redaction", list(UsageRedaction))
@pytest.mark.parametrize("size", [LONGEST_EVENT - 50, LONGEST_EVENT, 8 * LONGEST_EVENT])
def test_an_event_of_any_size_is_read(redaction: UsageRedaction, size: int) -> None:
    long = json.dumps({"response": {"instructions": "x" * size, "usage": USAGE}}).encode()
    stream = event("one", {"prompt_tokens": 1}) + b"data: " + long + b"\n\n" + event("after")
    for step in (1000, 70_000, len(stream)):
        pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
        usage = Answer(redaction, pieces, STREAM, dialect="responses").usage
        assert usage["final"] == USAGE


@pytest.mark.parametrize("redaction", list(UsageRedaction))
def test_what_a_caller_wrote_into_a_schema_is_not_read_again_and_again(redaction: UsageRedaction) -> None:
    """Envoy's thread serves others with what it saves."""

    def steps(number: int) -> int:
        schema = {"properties": [{"usage": {"type": "integer"}}] * number}
        stream = b"data: " + json.dumps({"response": {"tools": [schema], "usage": USAGE}}).encode() + b"\n\n"
        answer = Answer(redaction, [stream.replace(b'"usage": {"p', b'"used": {"p')], STREAM, compiled=False)
        assert answer.usage == {}
        return answer.steps

    assert 0 < steps(1000) < 3 * steps(500)


def event(text: str, usage: Any = None, *, spaced: bool = False, end: str = "\n") -> bytes:
    separators = (", ", ": ") if spaced else (",", ":")
    document: dict[str, Any] = {"id": "c", "choices": [{"delta": {"content": text}}]}
    if usage is not None:
        document |= {"usage": usage}
    return f"data: {json.dumps(document, separators=separators)}{end}{end}".encode()


def last(end: str = "\n") -> bytes:
    return f'data: {{"id":"c","choices":[],"usage":{json.dumps(USAGE)}}}{end}{end}'.encode()


@given(
    texts=st.lists(st.sampled_from(TEXTS) | st.text(), max_size=5),
    spaced=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    cuts=CUTS,
    redaction=st.sampled_from([UsageRedaction.EACH_EVENT, UsageRedaction.ALL]),
)
def test_wherever_a_stream_is_cut_only_its_usage_is_hidden(
    texts: list[str], spaced: bool, end: str, cuts: list[int], redaction: UsageRedaction
) -> None:
    done = f"data: [DONE]{end}{end}".encode()
    stream = b"".join(event(text, USAGE, spaced=spaced, end=end) for text in texts) + last(end) + done
    kept = last(end) if redaction is UsageRedaction.EACH_EVENT else b""
    seen = through(redaction, [*cut(stream, cuts), b""])
    plain = b"".join(event(text, spaced=spaced, end=end) for text in texts) + kept + done
    assert documents(seen) == [
        {**each, "usage": None} if each["choices"] else each for each in documents(plain)
    ]
    assert seen.endswith(done)
    assert seen.count(end.encode()) == plain.count(end.encode())


def documents(stream: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: {")]


@pytest.mark.parametrize("value", ["null", "{}", "[]", '"text"', "1"])
def test_usage_of_any_other_value_passes(value: str) -> None:
    """Most providers send "usage": null in all events but the last."""
    one = f'data: {{"choices":[{{"delta":{{}}}}],"usage":{value}}}\n\n'.encode()
    stream = one * 3 + b"data: [DONE]\n\n"
    for redaction in UsageRedaction:
        expected = stream.replace(b'"usage":{}', b'"usage":null') if redaction else stream
        assert through(redaction, [stream]) == expected


def test_an_answer_without_usage_passes_byte_for_byte() -> None:
    events = b"".join(map(event, ["a", *TEXTS]))
    stream = b": hello\r\n\r\nevent: ping\ndata:\n\n" + events + b"data: [DONE]\n\n"
    for redaction in (UsageRedaction.EACH_EVENT, UsageRedaction.ALL):
        assert through(redaction, [stream]) == stream


def test_a_line_that_does_not_end_is_not_waited_for() -> None:
    pieces = [b"data: " + b"x" * (LONGEST_EVENT // 3) for _ in range(4)] + [b"\n\n" + last()]
    assert through(UsageRedaction.ALL, pieces) == b"".join(pieces[:-1]) + b"\n\n"
    assert through(UsageRedaction.ALL, [*pieces[:2], b"\n\n" + last()]) == b"".join(pieces[:2]) + b"\n\n"


def test_an_answer_that_is_no_stream_passes_byte_for_byte() -> None:
    whole = b'{"choices":[],"usage":{"prompt_tokens":1}}\nrest'
    assert through(UsageRedaction.ALL, [whole], DOCUMENT) == whole


def asking(upstream: str, redaction: UsageRedaction, **labels: str) -> Any:
    """A handler that forwards calls as they are, and hides usage of their streams."""

    @by_body
    async def handler(head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        return Route(upstream, False, head.path, labels={"service": "a/b", **labels}, redaction=redaction)

    return handler


@pytest.mark.parametrize(
    ("redaction", "usages"),
    [
        (UsageRedaction.NOTHING, [0, 1, 2, 3, 3, 3]),
        (UsageRedaction.EACH_EVENT, [None, None, None, None, None, 3]),
        (UsageRedaction.ALL, [None, None, None, None, None]),
    ],
)
async def test_what_is_hidden_is_metered(
    tmp_path: Path, upstream: str, redaction: UsageRedaction, usages: list[int | None]
) -> None:
    body = chat(max_tokens=3, stream=True, stream_options=CONTINUOUS)
    async with gateway(tmp_path, asking(upstream, redaction, continuous_usage="true")) as running:
        reply = await running.call(body=body)
        line = await running.line()
    seen = [each["usage"] and each["usage"]["completion_tokens"] for each in documents(reply.body)]
    assert seen == usages
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert billed_tokens(line) == BilledTokens(3 + 3, 0, 3, estimated=False)


async def test_a_client_that_leaves_midway_pays_what_it_did_not_see_the_count_of(
    tmp_path: Path, slow: Simulator
) -> None:
    handler = asking(slow.upstream, UsageRedaction.ALL, continuous_usage="true", stream="true")
    async with gateway(tmp_path, handler) as running:
        body = chat(stream=True, stream_options=CONTINUOUS, min_tokens=10_000)
        seen = await leave_after(running.url, body, 10)
        paid = billed_tokens(await running.line())
    assert paid is not None
    assert not paid.estimated
    assert seen - 1 <= paid.output_tokens <= seen + 10


async def test_an_event_is_passed_on_as_soon_as_it_is_whole(tmp_path: Path) -> None:
    """Nothing waits for more of the stream, and what came in pieces is one event."""
    written, seen = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n")
        first = event("one", USAGE)
        for at in range(len(first)):
            writer.write(first[at : at + 1])
            await writer.drain()
        written.set()
        await seen.wait()
        writer.write(last() + b"data: [DONE]\n\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    handler = asking(f"127.0.0.1:{port}", UsageRedaction.ALL, continuous_usage="true")
    async with server, gateway(tmp_path, handler) as running:
        call = running.session.post(f"{running.url}/v1/chat/completions", json=chat(stream=True))
        async with call as response:
            await written.wait()
            line = await asyncio.wait_for(response.content.readuntil(b"\n\n"), 60)
            assert documents(line) == [{**documents(event("one"))[0], "usage": None}]
            seen.set()
            assert await response.read() == b"data: [DONE]\n\n"


@settings(max_examples=1000)
@given(
    fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=60),
    kind=st.sampled_from([STREAM, DOCUMENT]),
    dialect=st.sampled_from(["chat", "completions", "messages", "responses", "embeddings", ""]),
    redaction=st.sampled_from(list(UsageRedaction)),
    choices=st.integers(1, 3),
    by_choice=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_the_script_ends_whatever_an_upstream_sends(
    fragments: list[str],
    kind: bytes,
    dialect: str,
    redaction: UsageRedaction,
    choices: int,
    by_choice: bool,
    cuts: list[int],
) -> None:
    """It runs in Envoy's thread: if it did not end, no call of the gateway would."""
    text = "".join(fragments).encode()
    pieces = [*cut(text, cuts), b""]
    answer = Answer(
        redaction,
        pieces,
        kind,
        dialect=dialect,
        choices=choices,
        by_choice=by_choice,
        compiled=False,
        max_steps=MAX_STEPS,
    )
    if not redaction:
        assert answer.text == text
