"""Refused calls count on a limit of their own, and long bodies are read in turns."""

import asyncio
import json
from collections.abc import Generator

import pytest

from farebox.domain.keys import ObjectKey
from farebox.gateway.interface import ImmediateResponse, Route
from farebox.gateway.request.workload import (
    BYTES_PER_UNIT,
    REFUSED_BURST,
    REFUSED_PER_SECOND,
    RefusedWork,
    Turns,
)
from tests.gateway.harness import OTHER_TOKEN, Harness, api_key, model, service

KEY = ObjectKey("team-a", "ci")
OTHER = ObjectKey("team-b", "ci")
LONG = 2**20


def test_refused_calls_add_up_and_decay() -> None:
    refused = RefusedWork()
    for _ in range(int(REFUSED_BURST)):
        refused.add(KEY, 0, 100.0, mistake=True)
    assert refused.retry_after(KEY, 100.0) == 0
    refused.add(KEY, 8 * BYTES_PER_UNIT - 1, 100.0, mistake=True)
    assert refused.retry_after(KEY, 100.0) == pytest.approx(8 / REFUSED_PER_SECOND)
    assert refused.retry_after(OTHER, 100.0) == 0
    assert refused.retry_after(KEY, 100.0 + 8 / REFUSED_PER_SECOND) == 0


def test_what_a_caller_cannot_foresee_counts_only_by_its_bytes() -> None:
    refused = RefusedWork()
    for _ in range(10_000):
        refused.add(KEY, BYTES_PER_UNIT - 1, 0.0, mistake=False)
    assert refused.retry_after(KEY, 0.0) == 0
    for _ in range(500):
        refused.add(KEY, BYTES_PER_UNIT, 0.0, mistake=False)
    assert refused.retry_after(KEY, 0.0) > 0


async def flood(harness: Harness, token: str | None = None) -> list[int]:
    """The statuses of more junk than the limit."""
    statuses = []
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    for _ in range(int(REFUSED_BURST) + 2):
        answer = await harness.call(b"{", headers=headers)
        assert isinstance(answer, ImmediateResponse)
        statuses.append(answer.status)
    return statuses


async def test_a_key_whose_calls_are_refused_again_and_again_is_refused_by_its_head() -> None:
    harness = Harness()
    harness.put(api_key("b", "team-b", OTHER_TOKEN), service("chat", "team-b"))
    statuses = await flood(harness)
    assert statuses[:2] == [400, 400]
    assert statuses[-1] == 429
    answer = harness.handler.handle(harness.head())
    assert isinstance(answer, ImmediateResponse), "the body is not read"
    assert json.loads(answer.body)["error"]["code"] == "too_many_refused_requests"
    assert int(answer.headers["retry-after"]) >= 1
    assert isinstance(await harness.call(headers={"authorization": f"Bearer {OTHER_TOKEN}"}), Route)
    harness.clock.pass_(int(answer.headers["retry-after"]))
    assert isinstance(await harness.call(), Route)


async def test_calls_that_a_rate_limit_refuses_are_no_mistakes() -> None:
    harness = Harness()
    harness.put(service(limits={"rpm": 1}))
    await harness.forwarded()
    for _ in range(int(REFUSED_BURST) + 5):
        status, error, _ = await harness.refused()
        assert (status, error["code"]) == (429, "rate_limit_exceeded")


def steps(name: str, log: list[str], count: int = 3) -> Generator[None, None, str]:
    for number in range(count):
        log.append(f"{name}{number}")
        yield
    return name


async def test_long_bodies_are_read_one_at_a_time_and_a_key_waits_for_itself() -> None:
    turns, log = Turns(), list[str]()
    many = [turns.run(steps(name, log), KEY, LONG) for name in "abc"]
    results = await asyncio.gather(*many, turns.run(steps("x", log), OTHER, LONG))
    assert results == ["a", "b", "c", "x"]
    assert "".join(log) in ("a0a1a2x0x1x2b0b1b2c0c1c2", "a0a1a2b0b1b2x0x1x2c0c1c2")
    assert not turns._keys, "keys are forgotten"


async def test_short_bodies_do_not_wait_for_long_ones() -> None:
    turns, log = Turns(), list[str]()
    long = asyncio.create_task(turns.run(steps("a", log, 50), KEY, LONG))
    await asyncio.sleep(0)
    assert await turns.run(steps("b", log, 0), KEY, 100) == "b"
    assert not long.done()
    await long


async def test_a_long_body_that_is_given_up_frees_its_turn() -> None:
    turns, log = Turns(), list[str]()
    long = asyncio.create_task(turns.run(steps("a", log, 10_000), KEY, LONG))
    await asyncio.sleep(0)
    long.cancel()
    await asyncio.gather(long, return_exceptions=True)
    assert await turns.run(steps("b", log), KEY, LONG) == "b"


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1/messages/count_tokens?beta=true"])
async def test_tokens_are_counted_free_of_charge(path: str) -> None:
    harness = Harness()
    harness.put(model(requests={"imageTokens": 5000}))
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 9000}}
    asked = {"model": "chat", "messages": [{"role": "user", "content": [picture]}]}
    answer = await harness.call(asked, path=path)
    assert isinstance(answer, ImmediateResponse)
    assert answer.status == 200
    assert 5000 < json.loads(answer.body)["input_tokens"] < 5100
    assert not harness.spend.is_authorized("req-1")


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"body": {"model": "nope"}}, 404),
        ({"body": b"{"}, 400),
        ({"method": "GET"}, 405),
        ({"headers": {"authorization": None}}, 401),
    ],
)
async def test_counting_needs_a_key_and_a_service_that_it_may_call(
    given: dict[str, object], status: int
) -> None:
    answer = await Harness().call(**({"path": "/v1/messages/count_tokens"} | given))
    assert isinstance(answer, ImmediateResponse)
    assert answer.status == status
    assert json.loads(answer.body)["type"] == "error"
