"""The rules behind a real Envoy, called by the official client and by hostile hands (B13-B17)."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from farebox.gateway import settlement
from farebox.gateway.ext_proc.server import listening
from farebox.gateway.interface import Route
from farebox.gateway.metering.usage import billed_tokens
from tests.gateway.envoy_gateway import envoy_only, simulator
from tests.gateway.h2_client import eventually
from tests.gateway.harness import (
    ACCOUNT,
    TOKEN,
    UNIT,
    Harness,
    RealTime,
    account,
    api_key,
    model,
    service,
)
from tests.gateway.hostile import GOOD, request
from tests.gateway.hostile_target import Stack, stacked


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with simulator() as running:
        yield running.upstream


@pytest.fixture
async def stack(tmp_path: Path, upstream: str) -> AsyncIterator[Stack]:
    async with stacked(tmp_path, upstream) as running:
        yield running


CHAT: list[Any] = [{"role": "user", "content": "hello there"}]


async def test_b31_the_official_client_reads_its_limits_from_every_answer(stack: Stack) -> None:
    stack.harness.put(service(limits={"rpm": 2, "tpm": 10_000}))
    async with stack.client as client:
        create = client.with_options(max_retries=0).chat.completions.with_raw_response.create
        left = []
        for stream in (False, True):
            answer = await create(model="chat", messages=CHAT, max_tokens=7, stream=stream)
            left.append(answer.headers["x-ratelimit-remaining-requests"])
            assert answer.headers["x-ratelimit-limit-tokens"] == "10000"
        assert left == ["1", "0"]
        with pytest.raises(openai.RateLimitError) as refused:
            await create(model="chat", messages=CHAT, max_tokens=7)
        assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"


async def test_the_official_client_is_served_and_metered(stack: Stack) -> None:
    async with stack.client as client:
        answer = await client.chat.completions.create(model="chat", messages=CHAT, max_tokens=7)
        assert answer.usage is not None
        await stack.settle(1)
        cost = answer.usage.prompt_tokens * 500 + 7 * 1500
        assert stack.harness.spend.available(ACCOUNT) == 5 * UNIT - cost

        stream = await client.chat.completions.create(model="chat", messages=CHAT, max_tokens=7, stream=True)
        chunks = [chunk async for chunk in stream]
        assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) == 7
        assert {chunk.usage for chunk in chunks} == {None}, "nobody asked"
        await stack.settle(2)
        assert stack.harness.spend.available(ACCOUNT) == 5 * UNIT - 2 * cost

        embedding = await client.embeddings.create(model="chat", input="hello")
        assert embedding.data
        assert [each.id async for each in client.models.list()] == ["chat"]
        assert (await client.models.retrieve("chat")).id == "chat"


async def test_the_official_client_reads_errors(stack: Stack) -> None:
    async with stack.client as client:

        async def call(**given: Any) -> Any:
            return await client.chat.completions.create(
                **({"model": "chat", "messages": CHAT, "max_tokens": 7} | given)
            )

        with pytest.raises(openai.NotFoundError) as not_found:
            await call(model="other")
        assert not_found.value.code == "model_not_found"

        stack.harness.put(service(limits={"rpm": 1}))
        await call()
        with pytest.raises(openai.RateLimitError) as limited:
            await call()
        assert limited.value.body["message"] == "rate limit exceeded on dimension: rpm"  # type: ignore[index]
        assert int(limited.value.response.headers["retry-after"]) > 0
        assert limited.value.response.headers["x-ratelimit-remaining-requests"] == "0"

        stack.harness.put(service())
        stack.harness.report_balance(0, 2)
        with pytest.raises(openai.APIStatusError) as overdue:
            await call()
        assert overdue.value.status_code == 402
        assert overdue.value.body["message"] == "endpoint is inactive: OVERDUE"  # type: ignore[index]

        stack.harness.put(api_key(disabled=True))
        with pytest.raises(openai.AuthenticationError):
            await call()
        stack.harness.put(api_key(services={"names": ["other"]}))
        with pytest.raises(openai.PermissionDeniedError):
            await call()


async def test_anthropics_client_is_served_metered_and_refused(stack: Stack) -> None:
    async with anthropic.AsyncAnthropic(base_url=stack.envoy.url, api_key=TOKEN, max_retries=0) as client:
        answer = await client.messages.create(model="chat", messages=CHAT, max_tokens=7)
        assert answer.usage.output_tokens == 7
        await stack.settle(1)
        cost = answer.usage.input_tokens * 500 + 7 * 1500
        assert stack.harness.spend.available(ACCOUNT) == 5 * UNIT - cost
        async with client.messages.stream(model="chat", messages=CHAT, max_tokens=7) as stream:
            text = await stream.get_final_text()
        assert len(text.split()) == 7
        await stack.settle(2)
        assert stack.harness.spend.available(ACCOUNT) == 5 * UNIT - 2 * cost
        with pytest.raises(anthropic.NotFoundError, match="Model 'other' does not exist"):
            await client.messages.create(model="other", messages=CHAT, max_tokens=7)
        stack.harness.report_balance(0, 2)
        with pytest.raises(anthropic.APIStatusError, match="endpoint is inactive: OVERDUE") as overdue:
            await client.messages.create(model="chat", messages=CHAT, max_tokens=7)
        assert overdue.value.status_code == 402


async def test_responses_are_served_and_metered(stack: Stack) -> None:
    async with stack.client as client:
        answer = await client.responses.create(model="chat", input="hello there", max_output_tokens=7)
        assert answer.usage is not None
        await stack.settle(1)
        cost = answer.usage.input_tokens * 500 + answer.usage.output_tokens * 1500
        assert stack.harness.spend.available(ACCOUNT) == 5 * UNIT - cost
        kinds = [
            event.type
            async for event in await client.responses.create(
                model="chat", input="hello there", max_output_tokens=7, stream=True
            )
        ]
        # An answer that is cut at its bound is incomplete, and says what it used all the same.
        assert kinds[-1] in ("response.completed", "response.incomplete")
        await stack.settle(2)
        assert stack.harness.spend.available(ACCOUNT) == 5 * UNIT - 2 * cost
        with pytest.raises(openai.BadRequestError, match="previous_response_id is not supported"):
            await client.responses.create(model="chat", input="and then?", previous_response_id=answer.id)


async def test_a_hard_account_is_held_and_charged_what_was_used(stack: Stack) -> None:
    stack.harness.put(account("Hard"))
    async with stack.client as client:
        answer = await client.chat.completions.create(model="chat", messages=CHAT, max_tokens=7)
    assert answer.usage is not None
    line = await stack.envoy.line(1)
    cost = answer.usage.prompt_tokens * 500 + answer.usage.completion_tokens * 1500
    assert cost <= stack.harness.leases.amounts[line.request_id]
    assert stack.harness.leases.holds(line.request_id)
    stack.harness.settlement.on_usage(line, billed_tokens(line))
    stack.harness.settlement.acknowledged([line.request_id])
    assert not stack.harness.leases.holds(line.request_id)


async def test_clients_that_leave_at_any_moment_leave_no_holds(
    tmp_path: Path, upstream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether Envoy has sent them on by then, and writes a line of its log, or not."""
    monkeypatch.setattr(settlement, "ABANDONED_SECONDS", 1.0)
    moments = random.Random(20261127)
    body = json.dumps({"model": "chat", "messages": CHAT, "max_tokens": 5}).encode()
    lines = ("POST /v1/chat/completions HTTP/1.1", "Host: g", f"Authorization: Bearer {TOKEN}")
    sent = "\r\n".join((*lines, f"Content-Length: {len(body)}", "", "")).encode() + body
    harness = Harness(clock=RealTime())
    harness.put(model(servedName="simulated"), account("Hard"))
    harness.handler.backend_address = lambda name, port: upstream

    async def leave(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        await asyncio.sleep(moments.uniform(0, 0.006))
        writer.transport.abort()

    async with (
        envoy_only(tmp_path) as envoy,
        listening(
            envoy.settings.decision_socket,
            harness.handler.handle,
            envoy.settings.max_body_bytes,
            harness.settlement.abandoned,
        ),
    ):
        for _ in range(15):
            await asyncio.gather(*(leave(envoy.settings.listen_port) for _ in range(20)))

        def nothing_is_held() -> bool:
            for line in envoy.lines():
                harness.settlement.on_usage(line, billed_tokens(line))
                harness.settlement.acknowledged([line.request_id])
            return harness.leases.open_holds == 0

        await eventually(nothing_is_held)
        assert envoy.lines(), "some have gone on their way"


async def test_private_headers_of_a_client_have_no_effect(stack: Stack) -> None:
    injected = ("x-gw-upstream: 127.0.0.1:1", "x-gw-cluster: evil", "x-envoy-original-dst-host: 127.0.0.1:1",
                "x-request-id: mine", "x-gw-labels: {}", "x-envoy-upstream-rq-timeout-ms: 1")  # fmt: skip
    assert (await stack.envoy.raw(request(GOOD, *injected))).startswith(b"HTTP/1.1 200 ")
    line = await stack.envoy.line(1)
    assert line.labels["service"] == "team-a/chat"
    assert line.request_id != "mine"


async def test_64_clients_race_through_envoy_for_ten_calls_a_minute(stack: Stack) -> None:
    stack.harness.put(service(limits={"rpm": 10}))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    body = json.loads(GOOD)
    replies = await asyncio.gather(*(stack.envoy.call(body=body, headers=headers) for _ in range(64)))
    assert sorted({reply.status for reply in replies}) == [200, 429]
    assert sum(reply.status == 200 for reply in replies) == 10


async def test_a_forwarded_call_is_what_the_handler_says(stack: Stack) -> None:
    answer = await stack.harness.call()
    assert isinstance(answer, Route)
    assert answer.set_headers["accept-encoding"] == "identity"
