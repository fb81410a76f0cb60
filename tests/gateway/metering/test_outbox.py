"""Usage from the log to a real meter: rotation, repetition, an unreachable meter."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from farebox.errors import LedgerUnavailable
from farebox.gateway.metering.log_segments import Checkpoint, LogSegments, Position
from farebox.gateway.metering.outbox import Outbox
from farebox.gateway.metering.publisher import Event, PublishResult, UsagePublisher
from farebox.gateway.metering.usage import UsageLine
from farebox.meterapi.client import MeterClient
from farebox.meterapi.types import CreditLease
from tests.gateway.h2_client import eventually
from tests.gateway.ledger_rows import stored
from tests.ledger.databases import Database
from tests.ledger.support import CHAT
from tests.meter.support import GATEWAY, Running


class Log:
    """Writes lines as Envoy does, and reopens the file on request."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written = 0
        self.reopened = 0
        self._file = path.open("ab", buffering=0)

    def write(self, count: int = 1, **changes: Any) -> None:
        for _ in range(count):
            self._file.write(self.line(self.written, **changes))
            self.written += 1

    def raw(self, data: bytes) -> None:
        self._file.write(data)

    async def reopen(self) -> None:
        self._file.close()
        self._file = self.path.open("ab", buffering=0)
        self.reopened += 1

    def close(self) -> None:
        self._file.close()

    def rotated(self) -> int:
        return len(list(self.path.parent.glob("usage.log.*")))

    @staticmethod
    def line(number: int, **changes: Any) -> bytes:
        values: dict[str, Any] = {
            "at": f"{datetime.now(UTC).timestamp():.6f}",
            "details": "via_upstream",
            "flags": "-",
            "id": f"call-{number}",
            "labels": json.dumps({"service": str(CHAT)}),
            "ms": 5,
            "sent": 10,
            "status": 200,
            "upstream": 300,
            "usage": {"last": '{"prompt_tokens":100,"completion_tokens":20}'},
        }
        return json.dumps(values | changes, separators=(",", ":")).encode() + b"\n"


@asynccontextmanager
async def shipping(log: Log, events: Any, **listeners: Any) -> AsyncIterator[Outbox]:
    """An outbox that runs, and is killed (not stopped) at the end."""
    outbox = Outbox(log.path, "gateway-0", events, log.reopen, **listeners)
    outbox.rotate_bytes = 2000
    task = asyncio.create_task(outbox.run(asyncio.Event()))
    try:
        yield outbox
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Metric:
    """How much a counter has grown since this was made."""

    def __init__(self, name: str, **labels: str) -> None:
        self._name = name
        self._labels = labels
        self._start = self._total()

    def _total(self) -> float:
        return REGISTRY.get_sample_value(self._name, self._labels) or 0.0

    def __call__(self) -> float:
        return self._total() - self._start


def accepted() -> Metric:
    """Events that the meter accepts from now on."""
    return Metric("farebox_gateway_usage_events_total", result="taken")


def replace(token: Path, content: str) -> None:
    token.write_text(content)


@asynccontextmanager
async def publishing(meter: Running, token: Path) -> AsyncIterator[UsagePublisher]:
    """A publisher to this meter."""
    async with MeterClient(meter.url, token) as client:
        yield UsagePublisher(client)


def calls(count: int) -> list[str]:
    return sorted(f"call-{number}" for number in range(count))


async def test_each_line_is_charged_once_over_rotations_and_restarts(
    tmp_path: Path, meter: Running, database: Database, token: Path
) -> None:
    log = Log(tmp_path / "usage.log")
    async with publishing(meter, token) as events:
        for round_ in range(4):
            sent = accepted()
            async with shipping(log, events):
                for _ in range(20):
                    log.write(5)
                    await asyncio.sleep(0.002)
                await eventually(lambda sent=sent, round_=round_: sent() >= 20 and log.reopened > round_)
        async with shipping(log, events):
            await eventually(lambda: len(stored(database)) == log.written)
            await eventually(lambda: log.rotated() <= 1)  # what is done is deleted
    assert stored(database) == calls(400)


async def test_a_lost_checkpoint_sends_usage_again_and_charges_nothing_twice(
    tmp_path: Path, meter: Running, database: Database, token: Path
) -> None:
    log, checkpoint = Log(tmp_path / "usage.log"), tmp_path / "usage.done"
    log.write(5)
    async with publishing(meter, token) as events:
        sent = accepted()
        async with shipping(log, events):
            # A thread writes it. Here it outlives the task of the outbox, as no thread outlives its process.
            await eventually(lambda: sent() == 5 and checkpoint.exists())
        checkpoint.unlink()
        async with shipping(log, events):
            await eventually(lambda: sent() == 10)
    assert stored(database) == calls(5)


class UnreliableSink:
    """The real meter behind a connection that fails on demand."""

    def __init__(self, events: UsagePublisher) -> None:
        self._events = events
        self.unreachable = False
        self.lose_answers = False
        self.tries = 0

    async def post(self, events: Sequence[Event]) -> PublishResult:
        self.tries += 1
        if self.unreachable:
            raise LedgerUnavailable("unreachable")
        result = await self._events.post(events)
        if self.lose_answers:
            raise LedgerUnavailable("the answer is lost")
        return result


async def test_an_unreachable_meter_delays_usage_and_loses_none(
    tmp_path: Path, meter: Running, database: Database, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farebox.gateway.metering.outbox.READ_AHEAD", 7)
    monkeypatch.setattr("farebox.gateway.metering.outbox._RETRY_SECONDS", (0.01, 0.02))
    log = Log(tmp_path / "usage.log")
    received: list[UsageLine] = []
    async with publishing(meter, token) as remote:
        events = UnreliableSink(remote)
        events.unreachable = True
        async with shipping(log, events, on_usage=lambda line, _: received.append(line)):
            log.write(100)
            await eventually(lambda: len(received) == 100)
            await eventually(lambda: events.tries > 3)
            assert stored(database) == []
        received.clear()
        async with shipping(log, events, on_usage=lambda line, _: received.append(line)) as outbox:
            log.write(100)
            await eventually(lambda: len(received) == 200)
            events.unreachable, events.lose_answers = False, True
            await eventually(lambda: len(stored(database)) > 0)
            events.lose_answers = False
            await eventually(lambda: not outbox.behind)
    assert stored(database) == calls(200)


async def test_rejected_usage_is_kept_in_a_file_and_does_not_block_the_rest(
    tmp_path: Path, meter: Running, database: Database, token: Path
) -> None:
    log = Log(tmp_path / "usage.log")
    acknowledged: list[str] = []

    def acknowledge(ids: Sequence[str], leases: Sequence[CreditLease], sequence: int) -> None:
        acknowledged.extend(ids)
        assert sequence > 0

    async with publishing(meter, token) as events:
        log.write(labels=json.dumps({"service": "no name"}))
        log.write(at="4000000000.0")
        log.write(3)
        sent, rejected = accepted(), Metric("farebox_gateway_usage_events_total", result="rejected")
        async with shipping(log, events, on_acknowledged=acknowledge):
            await eventually(lambda: (sent(), rejected()) == (3, 2))
    aside = [json.loads(text) for text in (tmp_path / "usage.rejected").read_text().splitlines()]
    assert [(item["reason"], item["event"]["data"]["requestId"]) for item in aside] == [
        ("InvalidEvent", "call-0"),
        ("TimeInFuture", "call-1"),
    ]
    assert stored(database) == ["call-2", "call-3", "call-4"]
    assert acknowledged == [f"call-{number}" for number in range(5)]


async def test_lines_of_free_calls_and_invalid_lines_are_skipped(
    tmp_path: Path, meter: Running, database: Database, token: Path
) -> None:
    log = Log(tmp_path / "usage.log")
    received: list[str] = []
    async with publishing(meter, token) as events:
        log.write(status=502, flags="UF")
        log.raw(b"\n{broken}\n" + log.line(7)[:50])
        log.write()
        with capture_logs() as logs:
            async with shipping(
                log, events, on_usage=lambda line, _: received.append(line.request_id)
            ) as outbox:
                await eventually(lambda: not outbox.behind and len(received) == 2)
    assert [entry["event"] for entry in logs] == ["usage.line_unreadable"]
    assert received == ["call-0", "call-1"]
    assert stored(database) == ["call-1"]


async def test_a_stop_sends_the_rest_of_the_log_first(
    tmp_path: Path, meter: Running, database: Database, token: Path
) -> None:
    log = Log(tmp_path / "usage.log")
    log.write(2500)
    stop = asyncio.Event()
    stop.set()
    async with publishing(meter, token) as events:
        await Outbox(log.path, "gateway-0", events, log.reopen).run(stop, 20)
    assert stored(database) == calls(2500)


async def test_a_listener_that_fails_does_not_stop_the_rest(
    tmp_path: Path, meter: Running, database: Database, token: Path
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    log = Log(tmp_path / "usage.log")
    async with publishing(meter, token) as events:
        log.write(3)
        sent = accepted()
        async with shipping(log, events, on_usage=fail, on_acknowledged=fail):
            await eventually(lambda: sent() == 3)


async def test_a_refused_token_is_retried_with_its_replacement(
    tmp_path: Path, meter: Running, database: Database, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farebox.gateway.metering.outbox._RETRY_SECONDS", (0.01, 0.02))
    replace(token, "wrong")
    log = Log(tmp_path / "usage.log")
    log.write(3)
    sent, retries = accepted(), Metric("farebox_gateway_usage_retries_total")
    async with publishing(meter, token) as events, shipping(log, events):
        await eventually(lambda: retries() > 2)
        replace(token, GATEWAY)
        await eventually(lambda: sent() == 3)


async def test_an_answer_about_events_that_were_not_sent_is_no_result() -> None:
    """Otherwise a faulty meter would end the gateway, and usage would stay in the log."""

    async def answer(request: web.Request) -> web.Response:
        rejected = [{"index": 1, "id": "", "reason": "InvalidEvent", "message": "?"}]
        return web.json_response({"accepted": 0, "duplicate": 0, "pending": 0, "rejected": rejected})

    app = web.Application()
    app.router.add_post("/v1/events", answer)
    async with TestServer(app) as server, MeterClient(str(server.make_url("/"))) as client:
        with pytest.raises(LedgerUnavailable):
            await UsagePublisher(client).post([{"id": "0"}])


def test_a_checkpoint_is_complete_or_the_previous_one(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "done")
    assert checkpoint.load() is None
    checkpoint.save(Position(3, 17))
    (tmp_path / "done.new").write_text("{cut")
    assert checkpoint.load() == (3, 17)


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_bytes(b""), lambda path: path.unlink()], ids=["emptied", "deleted"]
)
def test_a_truncated_log_is_read_from_its_beginning(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    path = tmp_path / "usage.log"
    path.write_bytes(b"a\nb\n")
    segments = LogSegments(path, None)
    chunk = segments.read(segments.start)
    assert chunk.lines == (b"a", b"b")
    damage(path)
    with path.open("ab") as file:
        file.write(b"c\n")
    again = segments.read(chunk.end)
    assert segments.read(again.end).lines == (b"c",)
    segments.close()


def test_a_line_is_read_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "usage.log"
    segments = LogSegments(path, None)
    assert segments.read(segments.start).end == segments.start
    path.write_bytes(b"whole\nhalf")
    chunk = segments.read(segments.start)
    assert chunk.lines == (b"whole",)
    assert segments.read(chunk.end).end == chunk.end
    with path.open("ab") as file:
        file.write(b" and half\n")
    assert segments.read(chunk.end).lines == (b"half and half",)
    segments.close()


def test_a_partial_line_at_the_end_of_a_finished_file_does_not_block_the_next_file(tmp_path: Path) -> None:
    path = tmp_path / "usage.log"
    path.write_bytes(b"whole\nhalf")
    segments = LogSegments(path, None)
    first = segments.read(segments.start)
    assert segments.rotate_if_over(3)
    assert segments.awaits_envoy
    assert segments.read(first.end).end == first.end, "Envoy may still write to the old file"
    path.write_bytes(b"new\n")
    half = segments.read(first.end)
    assert half.lines == (b"half",)
    following = segments.read(half.end)
    assert segments.read(following.end).lines == (b"new",)
    segments.close()


def test_files_keep_their_order_over_a_restart_in_the_middle_of_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "usage.log"
    path.write_bytes(b"1\n")
    segments = LogSegments(path, None)
    segments.rotate_if_over(0)
    segments.close()
    again = LogSegments(path, None)
    assert again.awaits_envoy
    assert again.read(again.start).lines == (b"1",)
    path.write_bytes(b"2\n")
    assert again.rotate_if_over(0)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["usage.log.00000001", "usage.log.00000002"]
    again.close()
    last = LogSegments(path, Position(2, 0))
    assert not (tmp_path / "usage.log.00000001").exists(), "done"
    assert last.read(last.start).lines == (b"2",)
    last.close()


async def test_the_backlog_is_the_unacknowledged_usage(
    tmp_path: Path, meter: Running, database: Database, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It includes rotated files, and survives a restart."""
    monkeypatch.setattr("farebox.gateway.metering.outbox._RETRY_SECONDS", (0.01, 0.02))
    log = Log(tmp_path / "usage.log")
    before = datetime.now(UTC)
    async with publishing(meter, token) as events:
        sink = UnreliableSink(events)
        async with shipping(log, sink) as outbox:
            log.write(1)
            await eventually(lambda: stored(database) == calls(1) and outbox.backlog() == (0, None))
            sink.unreachable = True
            log.write(20)
            await eventually(lambda: log.rotated() == 1 and outbox.backlog()[0] >= 20 * len(log.line(1)))
            _, first = outbox.backlog()
            assert first is not None
            assert before <= first <= datetime.now(UTC)
        async with shipping(log, sink) as outbox:
            await eventually(lambda: outbox.backlog()[0] >= 20 * len(log.line(1)))
            assert outbox.backlog()[1] == first
            sink.unreachable = False
            await eventually(lambda: outbox.backlog() == (0, None))
