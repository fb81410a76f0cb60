"""GET /v1/usage and /v1/calls with an API key, from a real meter (B31, B32)."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from farebox.errors import LedgerUnavailable
from farebox.gateway.interface import ImmediateResponse
from farebox.gateway.lookups.report_cache import ReportCache
from farebox.meterapi.client import MeterClient
from farebox.meterapi.schema import write_records
from tests.gateway.h2_client import eventually
from tests.gateway.harness import Harness, api_key, service
from tests.ledger.support import FACTS
from tests.meter.support import OPERATOR, TENANT, Running, cloud_event

PERIOD = "from=2026-03-01&to=2026-03-02"


def event(name: str, **data: Any) -> dict[str, Any]:
    """A call of team-a/chat."""
    counts = {"inputTokens": 100, "outputTokens": 20}
    return cloud_event(name, data=counts | {"requestId": f"r-{name}"} | data)


@pytest.fixture
async def client(meter: Running) -> AsyncIterator[MeterClient]:
    """With the right to read the services of team-a, and no other."""
    async with MeterClient(meter.url, TENANT) as made:
        yield made


@pytest.fixture
async def harness(meter: Running, client: MeterClient) -> Harness:
    """A gateway and three charged calls of two keys, the last one of another service."""
    await meter.api.call("POST", "/v1/records", OPERATOR, json.loads(write_records(FACTS)))
    posted = await meter.api.post_events(
        [
            event("1", apiKey="ci", status=200, durationMs=1840, firstByteMs=210),
            event("2", apiKey="app", estimated=True),
            event("3", apiKey="ci") | {"subject": "team-a/elsewhere"},
        ]
    )
    assert posted.status == 200
    made = Harness()
    made.handler.lookups.meter = client
    return made


async def asked(harness: Harness, path: str) -> tuple[int, Any]:
    """GET a path; its status, and the JSON."""
    found = await harness.decide(harness.head(path, "GET"), None)
    assert isinstance(found, ImmediateResponse)
    return found.status, json.loads(found.body)


async def test_usage_is_summed_by_day_key_model_and_service(harness: Harness) -> None:
    status, found = await asked(harness, f"/v1/usage?{PERIOD}&group_by=day,key,model,service")
    assert (status, found["from"], found["to"]) == (200, "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z")
    rows = {row["key"]: row for row in found["data"]}
    assert rows["ci"] == {
        "day": "2026-03-01",
        "model": "qwen3-8b",
        "key": "ci",
        "service": "chat",
        "calls": 1,
        "input_tokens": 100,
        "cached_input_tokens": 0,
        "cache_write_input_tokens": 0,
        "output_tokens": 20,
        "reservation_input_tokens": 0,
        "reservation_output_tokens": 0,
        "free_quota_tokens": 0,
        "charge": "0.00008",
        "currency": "USD",
        "estimated_calls": 0,
        "estimated_tokens": 0,
        "estimated_charge": "0.00",
    }
    assert (rows["app"]["estimated_calls"], rows["app"]["estimated_charge"]) == (1, "0.00008")
    assert (found["pending_calls"], found["next"]) == (1, None)
    (total,) = (await asked(harness, f"/v1/usage?{PERIOD}"))[1]["data"]
    assert (total["calls"], total["charge"]) == (2, "0.00016")
    assert "key" not in total


async def test_a_bound_key_sees_its_own_services_alone(harness: Harness) -> None:
    harness.put(api_key(services={"names": ["other"]}))
    assert (await asked(harness, f"/v1/usage?{PERIOD}"))[1]["data"] == []
    assert (await asked(harness, f"/v1/calls?{PERIOD}"))[1]["data"] == []
    assert (await asked(harness, "/v1/calls/r-1"))[0] == 404
    for path in ("usage", "calls"):
        status, found = await asked(harness, f"/v1/{path}?{PERIOD}&service=chat")
        assert (status, found["error"]["code"]) == (403, "service_not_allowed")
    harness.put(api_key(services={"names": ["chat"]}))
    assert len((await asked(harness, f"/v1/calls?{PERIOD}"))[1]["data"]) == 2
    assert (await asked(harness, "/v1/calls/r-1"))[0] == 200
    assert (await asked(harness, "/v1/calls/r-3"))[0] == 404


async def test_no_name_leads_out_of_the_namespace(harness: Harness) -> None:
    """The client of the meter has the right to team-a alone: another namespace would be 503."""
    harness.put(service("chat", "team-b"))
    for name in ("team-b/chat", "../team-b", "chat,team-b/chat", ""):
        status, _ = await asked(harness, f"/v1/usage?{PERIOD}&service={name}")
        assert status == 400, name
    for name in ("..", ".", "%2e%2e", "a/b", "r-1?namespace=team-b", "r-1%3Fnamespace=team-b"):
        assert (await asked(harness, f"/v1/calls/{name}"))[0] in (400, 404), name


async def test_a_call_is_looked_up_by_its_request_id(harness: Harness) -> None:
    status, found = await asked(harness, "/v1/calls/r-1")
    assert status == 200
    assert found == {
        "id": "r-1",
        "object": "call",
        "time": "2026-03-01T12:00:00Z",
        "service": "chat",
        "model": "qwen3-8b",
        "key": "ci",
        "status": 200,
        "input_tokens": 100,
        "cached_input_tokens": 0,
        "cache_write_input_tokens": 0,
        "output_tokens": 20,
        "estimated": False,
        "reservation_input_tokens": 0,
        "reservation_output_tokens": 0,
        "free_quota_tokens": 0,
        "charge": "0.00008",
        "currency": "USD",
        "price": {
            "version": 1,
            "prompt": "0.0000005",
            "completion": "0.0000015",
            "input_cache_read": "0.00000005",
            "input_cache_write": "0.0000005",
        },
        "pending_reason": None,
        "duration_ms": 1840,
        "first_byte_ms": 210,
    }
    status, found = await asked(harness, "/v1/calls/r-9")
    assert (status, found["error"]["code"]) == (404, "call_not_found")


async def test_calls_are_paged_and_filtered(harness: Harness) -> None:
    seen, more = [], ""
    for _ in range(3):
        _, page = await asked(harness, f"/v1/calls?{PERIOD}&limit=1{more}")
        seen += [call["id"] for call in page["data"]]
        more = f"&cursor={page['next']}"
    assert sorted(seen) == ["r-1", "r-2", "r-3"]
    assert page["next"] is None
    for given, expected in (("key=app", ["r-2"]), ("estimated=true", ["r-2"]), ("status=200", ["r-1"])):
        _, page = await asked(harness, f"/v1/calls?{PERIOD}&{given}")
        assert [call["id"] for call in page["data"]] == expected
    _, page = await asked(harness, f"/v1/usage?{PERIOD}&key=app")
    assert page["data"][0]["calls"] == 1


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("usage?group_by=week", "group_by"),
        ("usage?from=yesterday", "from"),
        ("usage?from=2026-03-02&to=2026-03-01", "to must be after from"),
        ("usage?from=2025-01-01&to=2026-03-01", "90 days"),
        ("usage?form=2026-01-01", "'form' is not a parameter"),
        ("usage?from=2026-01-01&from=2026-01-02", "more than once"),
        ("calls?limit=0", "limit"),
        ("calls?limit=1e3", "limit"),
        ("calls?status=ok", "status"),
        ("calls?cursor=x", "cursor"),
        ("calls/r-1?namespace=team-b", "'namespace' is not a parameter"),
        ("key?verbose=1", "'verbose' is not a parameter"),
        ("usage?" + "&".join(f"a{i}=1" for i in range(100)), "too many"),
    ],
)
async def test_invalid_parameters_are_named(harness: Harness, path: str, what: str) -> None:
    status, found = await asked(harness, f"/v1/{path}")
    assert (status, found["error"]["code"]) == (400, "invalid_parameter")
    assert what in found["error"]["message"]


async def test_an_unreachable_meter_is_503_and_calls_go_on(harness: Harness) -> None:
    async with MeterClient("http://127.0.0.1:9", "token") as nowhere:
        harness.handler.lookups.meter = nowhere
        for path in ("usage", "calls", "calls/r-1"):
            status, found = await asked(harness, f"/v1/{path}")
            assert (status, found["error"]["code"]) == (503, "usage_unknown")
        assert (await asked(harness, "/v1/key"))[0] == 200
        await harness.forwarded()


async def test_without_the_right_to_read_usage_is_unknown(harness: Harness, meter: Running) -> None:
    async with MeterClient(meter.url, "no such token") as stranger:
        harness.handler.lookups.meter = stranger
        assert (await asked(harness, "/v1/usage"))[1]["error"]["code"] == "usage_unknown"


class Held:
    """A reader that answers when a test says so."""

    def __init__(self) -> None:
        self.running = self.most = self.reads = 0
        self.answer = asyncio.Event()

    async def __call__(self) -> int:
        self.reads += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.answer.wait()
        finally:
            self.running -= 1
        return self.reads


async def test_a_polling_key_reads_once_in_a_while_and_few_read_at_a_time() -> None:
    now = 0.0
    cache, read = ReportCache(ttl=5, patience=60, timeout=60, concurrency=2, clock=lambda: now), Held()
    same = [asyncio.create_task(cache.get("a", read)) for _ in range(10)]
    others = [asyncio.create_task(cache.get(number, read)) for number in range(10)]
    await eventually(lambda: read.running == 2)
    same[0].cancel()
    read.answer.set()
    await asyncio.gather(*same[1:], *others)
    assert (read.reads, read.most) == (11, 2), "one for the same question, though its first caller left"
    now = 4.9
    await cache.get("a", read)
    assert read.reads == 11
    now = 5.1
    await cache.get("a", read)
    assert read.reads == 12


async def test_a_caller_does_not_wait_for_a_slow_meter_and_the_next_one_gets_its_answer() -> None:
    cache, read = ReportCache(patience=0.01), Held()
    for _ in range(3):
        with pytest.raises(LedgerUnavailable, match=r"has not answered within 0\.01 s"):
            await cache.get("a", read)
    assert (read.reads, read.running) == (1, 1)
    read.answer.set()
    await eventually(lambda: read.running == 0)
    assert await cache.get("a", read) == 1


async def test_a_read_that_takes_too_long_is_ended() -> None:
    cache, read = ReportCache(patience=60, timeout=0.01), Held()
    for _ in range(3):
        with pytest.raises(LedgerUnavailable, match=r"has not answered within 0\.01 s"):
            await cache.get("a", read)
    assert (read.reads, read.running) == (1, 0), "the error is remembered too"


async def test_waiting_reads_are_bounded() -> None:
    cache, read = ReportCache(patience=0.01), Held()
    for number in range(64):
        with pytest.raises(LedgerUnavailable, match="has not answered"):
            await cache.get(number, read)
    with pytest.raises(LedgerUnavailable, match="Too many"):
        await cache.get(64, read)
    assert read.running == 4
    await cache.close()
    assert read.running == 0


async def test_the_cache_is_bounded() -> None:
    cache, read = ReportCache(), Held()
    read.answer.set()
    for number in range(1000):
        await cache.get(number, read)
    await cache.get(999, read)
    assert read.reads == 1000, "the newest is kept"
    await cache.get(0, read)
    assert read.reads == 1001, "the oldest is not"
    await cache.close()
