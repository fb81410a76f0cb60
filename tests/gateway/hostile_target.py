"""A gateway that is sent hostile requests, and an upstream that remembers what reached it.

One is enough for all: after each request a good one is sent, whose line in the log must be the next.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from farebox.gateway.metering.usage import UsageLine, billed_tokens
from tests.gateway.envoy_gateway import Gateway, Mirror, gateway
from tests.gateway.hostile import request
from tests.gateway.world import TOKEN, UNIT, RealTime, World, model


@dataclass
class Answer:
    """An answer over HTTP/1.1, without its headers' values."""

    status: int
    body: bytes

    @property
    def summary(self) -> str:
        """As in the table; fails where an error has not its form."""
        if self.status == 200:
            return "200"
        error = json.loads(self.body)["error"]
        assert set(error) == {"type", "code", "message", "source", "request_id"}, error
        assert error["message"]
        assert error["source"] == "client"
        return f"{self.status} {error['code']}"


async def answer(reader: asyncio.StreamReader) -> Answer:
    """The next answer of a connection that is no intermediate one."""
    status, length = 100, 0
    while status == 100:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        status = int(head[0].split()[1])
        lengths = [line.partition(":")[2] for line in head if line.startswith("content-length:")]
        length = int(lengths[0]) if lengths else 0
    return Answer(status, await reader.readexactly(length))


@dataclass
class Stack:
    """Envoy, the rules behind it, and an upstream."""

    world: World
    envoy: Gateway

    @property
    def client(self) -> openai.AsyncOpenAI:
        """The official client, which repeats nothing here."""
        return openai.AsyncOpenAI(base_url=f"{self.envoy.url}/v1", api_key=TOKEN, max_retries=0)

    async def settle(self, lines: int) -> UsageLine:
        """Wait until the log has exactly `lines` lines, and settle the last one."""
        line = await self.envoy.line(lines)
        self.world.settlement.on_usage(line, billed_tokens(line))
        await self.world.settlement.correct()
        return line


@asynccontextmanager
async def stacked(
    directory: Path, upstream: str, served_name: str = "simulated", **settings: Any
) -> AsyncIterator[Stack]:
    """A stack with a service `chat` and a key, whose upstream is at host:port; settings of Envoy."""
    world = World(clock=RealTime())
    world.put(model(servedName=served_name))
    world.handler.backend_address = lambda name, port: upstream
    async with gateway(directory, world.handler.handle, **settings) as envoy:
        yield Stack(world, envoy)


@dataclass
class Place(Stack):
    """A stack whose upstream remembers, and how many calls should have been served so far."""

    upstream: Mirror
    served: int = 0

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection to Envoy."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.envoy.settings.listen_port)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def send(self, sent: bytes) -> Answer:
        """A request on a connection of its own."""
        async with self.connected() as (reader, writer):
            writer.write(sent)
            return await answer(reader)

    async def check(self, served: int) -> None:
        """Since the last check, `served` calls reached the upstream once each and were metered."""
        self.world.report_balance(5 * UNIT)
        assert (await self.send(request())).status == 200, "the next call is served"
        self.served += served + 1
        await self.envoy.line(self.served)
        for line in self.envoy.lines()[-1 - served :]:
            assert (line.labels["api_key"], line.output_tokens) == ("ci", 2)
        assert len(self.upstream.requests) == self.served
        assert {path for path, _, _ in self.upstream.requests} == {"/v1/chat/completions"}


@asynccontextmanager
async def running(directory: Path, **settings: Any) -> AsyncIterator[Place]:
    """A place, inside the `async with`; settings of Envoy."""
    async with Mirror() as upstream, stacked(directory, upstream.address, **settings) as stack:
        yield Place(stack.world, stack.envoy, upstream)
