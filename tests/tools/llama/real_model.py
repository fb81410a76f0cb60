"""A real model server, llama.cpp, behind the gateway: metered to the token. `make test-llama` runs it.

Not among the tests that always run (the file is not named like one): it needs 100 MB of packages more.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import pytest
import xllamacpp

from farebox.gateway.metering.usage import billed_tokens
from tests.gateway.harness import ACCOUNT, TOKEN, UNIT
from tests.gateway.hostile_target import Stack, stacked
from tests.tools.llama import tiny

CHAT: list[Any] = [{"role": "user", "content": "How many tokens are in this question?"}]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The host and port of llama.cpp's own server, with a model that was written a moment ago."""
    path = tmp_path_factory.mktemp("llama") / "tiny.gguf"
    tiny.write(path)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = 1024, 2, False
    params.hostnames, params.port = ["127.0.0.1"], 0
    server = xllamacpp.Server(params)
    yield server.listening_address.removeprefix("http://")
    del server


@dataclass
class Place(Stack):
    """The rules, an Envoy and llama.cpp behind them."""

    calls: int = 0
    spent: int = 0

    async def check(self, prompt: int, cached: int, output: int) -> None:
        """One call more is metered, with these tokens, and costs what they cost."""
        self.calls += 1
        line = await self.settle(self.calls)
        assert (line.input_tokens, line.cached_tokens or 0, line.output_tokens) == (prompt, cached, output)
        self.spent += (prompt - cached) * 500 + cached * 50 + output * 1500
        assert self.harness.spend.available(ACCOUNT) == 5 * UNIT - self.spent


@asynccontextmanager
async def placed(directory: Path, llama: str) -> AsyncIterator[Place]:
    async with stacked(directory, llama, "tiny") as stack:
        yield Place(stack.harness, stack.envoy)


async def test_openais_client_is_served_by_a_real_model_and_metered(tmp_path: Path, llama: str) -> None:
    async with (
        placed(tmp_path, llama) as place,
        place.client as client,
    ):
        cached = []
        for _ in range(2):
            answer = await client.chat.completions.create(model="chat", messages=CHAT, max_tokens=7)
            usage = answer.usage
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            cached.append(usage.prompt_tokens_details.cached_tokens or 0)
            await place.check(usage.prompt_tokens, cached[-1], usage.completion_tokens)
        assert cached[1] > cached[0], "it remembers the question, and that is paid as cached"

        stream = await client.chat.completions.create(
            model="chat", messages=CHAT, max_tokens=9, stream=True, stream_options={"include_usage": True}
        )
        *others, last = [chunk async for chunk in stream]
        assert {chunk.usage for chunk in others} == {None}
        assert last.usage is not None
        details = last.usage.prompt_tokens_details
        await place.check(
            last.usage.prompt_tokens,
            (details.cached_tokens or 0) if details else 0,
            last.usage.completion_tokens,
        )

        text = await client.completions.create(model="chat", prompt="Once upon a time", max_tokens=5)
        assert text.usage is not None
        details = text.usage.prompt_tokens_details
        await place.check(
            text.usage.prompt_tokens,
            (details.cached_tokens or 0) if details else 0,
            text.usage.completion_tokens,
        )


async def test_anthropics_client_is_served_by_a_real_model_and_metered(tmp_path: Path, llama: str) -> None:
    async with (
        placed(tmp_path, llama) as place,
        anthropic.AsyncAnthropic(base_url=place.envoy.url, api_key=TOKEN, max_retries=0) as client,
    ):
        answer = await client.messages.create(model="chat", messages=CHAT, max_tokens=7)
        cached = answer.usage.cache_read_input_tokens or 0
        await place.check(answer.usage.input_tokens + cached, cached, answer.usage.output_tokens)


async def test_a_client_that_leaves_midway_is_metered(tmp_path: Path, llama: str) -> None:
    async with (
        placed(tmp_path, llama) as place,
        place.client as client,
    ):
        stream = await client.chat.completions.create(
            model="chat", messages=CHAT, max_tokens=300, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        await stream.close()
        line = await place.envoy.line(1)
        place.harness.settling.on_usage(line, billed_tokens(line))
        await asyncio.sleep(0)
        left = place.harness.spend.available(ACCOUNT)
        assert isinstance(left, int)
        assert left < 5 * UNIT, "it costs something, though the model did not come to say how much"
