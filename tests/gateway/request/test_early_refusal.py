"""A call that its head refuses is answered before its body comes: clients read why (B14)."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import anthropic
import httpx
import openai
import pytest
import pytest_asyncio

from tests.gateway.harness import OTHER_TOKEN, TOKEN
from tests.gateway.hostile import CHUNKED, LINE
from tests.gateway.hostile_target import Target, answer, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNKNOWN = f"Authorization: Bearer {OTHER_TOKEN}"
LARGE: list[Any] = [{"role": "user", "content": "word " * 2_000_000}]
"""Ten megabytes, far more than sockets hold."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with running(tmp_path_factory.mktemp("early"), body_seconds=3600) as made:
        yield made


@pytest.mark.parametrize("length", ["Content-Length: 10000000", "Content-Length: 1000000000", CHUNKED])
async def test_an_unknown_key_is_refused_though_its_body_never_comes(target: Target, length: str) -> None:
    async with target.connected() as (reader, writer):
        writer.write(f"{LINE}\r\nHost: gateway\r\n{UNKNOWN}\r\n{length}\r\n\r\n".encode())
        assert (await answer(reader)).summary == "401 invalid_api_key"
        assert await reader.read() == b"", "nothing may follow a body that was not read"
    await target.check(0)


def openais(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=OTHER_TOKEN, max_retries=0) as client:
        client.chat.completions.create(model="chat", messages=LARGE)


def anthropics(url: str) -> None:
    with anthropic.Anthropic(base_url=url, api_key=OTHER_TOKEN, max_retries=0) as client:
        client.messages.create(model="chat", messages=LARGE, max_tokens=7)


@pytest.mark.parametrize(
    ("call", "error"),
    [(openais, openai.AuthenticationError), (anthropics, anthropic.AuthenticationError)],
    ids=["openai", "anthropic"],
)
async def test_clients_that_send_a_large_body_read_why(
    target: Target, call: Callable[[str], None], error: type[Exception]
) -> None:
    with pytest.raises(error, match="Unknown API key"):
        await asyncio.to_thread(call, target.envoy.url)
    await target.check(0)


@pytest.mark.parametrize("http2", [False, True])
async def test_a_body_that_is_longer_than_is_read_is_refused_the_same(target: Target, http2: bool) -> None:
    """Also of a good key."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(http1=not http2, http2=http2, base_url=target.envoy.url) as client:
        reply = await client.post("/v1/chat/completions", content=bytes(20_000_000), headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
    await target.check(0)


async def test_who_floods_is_refused_as_well(target: Target) -> None:
    """More at a time than bodies of refused calls are read."""
    request = f"{LINE}\r\nHost: gateway\r\n{UNKNOWN}\r\nContent-Length: 10000000\r\n\r\n".encode()

    async def one() -> str:
        async with target.connected() as (reader, writer):
            writer.write(request)
            return (await answer(reader)).summary

    assert set(await asyncio.gather(*(one() for _ in range(100)))) == {"401 invalid_api_key"}
    await target.check(0)


async def test_asynchronous_clients_do_too(target: Target) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{target.envoy.url}/v1", api_key=OTHER_TOKEN, max_retries=0
    ) as client:
        with pytest.raises(openai.AuthenticationError, match="Unknown API key"):
            await client.chat.completions.create(model="chat", messages=LARGE)
    await target.check(0)


async def test_a_connection_whose_small_body_has_come_is_kept(target: Target) -> None:
    """The usual refusal costs no new connection."""
    request = f"{LINE}\r\nHost: gateway\r\n{UNKNOWN}\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    async with target.connected() as (reader, writer):
        for _ in range(3):
            writer.write(request)
            assert (await answer(reader)).summary == "401 invalid_api_key"


@pytest.mark.parametrize("size", [250_000, 270_000, 12_000_000])
async def test_a_long_body_of_a_good_key_arrives_as_it_was_sent(target: Target, size: int) -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'Ab1+' * (size // 4)}"}}
    messages: list[Any] = [{"role": "user", "content": [picture]}]
    async with target.client as client:
        await client.chat.completions.create(model="chat", messages=messages, max_tokens=5)
    assert json.loads(target.upstream.requests[-1][2])["messages"] == messages
    await target.check(1)
