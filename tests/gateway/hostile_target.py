"""A gateway that receives hostile requests, and an upstream that records what reached it.

One target serves all tests: after each hostile request a good one follows, and its log line must be the next.
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
from tests.gateway.harness import TOKEN, UNIT, Harness, RealTime, model
from tests.gateway.hostile import request


@dataclass
class Answer:
    """An answer over HTTP/1.1, without its headers' values."""

    status: int
    body: bytes

    @property
    def summary(self) -> str:
        """ "200", or status and code of an error, as in the table. Fails if the error is malformed."""
        if self.status == 200:
            return "200"
        error = json.loads(self.body)["error"]
        assert set(error) == {"type", "code", "message", "source", "request_id"}, error
        assert error["message"]
        assert error["source"] == "client"
        return f"{self.status} {error['code']}"


async def answer(reader: asyncio.StreamReader) -> Answer:
    """Read the next final answer of a connection; skips 1xx answers."""
    status, length = 100, 0
    while status == 100:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        status = int(head[0].split()[1])
        lengths = [line.partition(":")[2] for line in head if line.startswith("content-length:")]
        length = int(lengths[0]) if lengths else 0
    return Answer(status, await reader.readexactly(length))


@dataclass
class Stack:
    """Envoy, and the handler behind it."""

    harness: Harness
    envoy: Gateway

    @property
    def client(self) -> openai.AsyncOpenAI:
        """The official client, which repeats nothing here."""
        return openai.AsyncOpenAI(base_url=f"{self.envoy.url}/v1", api_key=TOKEN, max_retries=0)

    async def settle(self, lines: int) -> UsageLine:
        """Wait until the log has exactly `lines` lines, and settle the last one."""
        line = await self.envoy.line(lines)
        self.harness.settlement.on_usage(line, billed_tokens(line))
        await self.harness.settlement.correct()
        return line


@asynccontextmanager
async def stacked(
    directory: Path, upstream: str, served_name: str = "simulated", **settings: Any
) -> AsyncIterator[Stack]:
    """A stack with a service `chat` and a key, whose upstream is at host:port."""
    harness = Harness(clock=RealTime())
    harness.put(model(servedName=served_name))
    harness.handler.backend_address = lambda name, port: upstream
    async with gateway(directory, harness.handler.handle, **settings) as envoy:
        yield Stack(harness, envoy)


@dataclass
class Target(Stack):
    """A stack whose upstream records requests. `served`: the calls that must have reached it so far."""

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
        """Send a request on a new connection."""
        async with self.connected() as (reader, writer):
            writer.write(sent)
            return await answer(reader)

    async def check(self, served: int) -> None:
        """Since the last check, `served` calls reached the upstream once each and were metered."""
        self.harness.report_balance(5 * UNIT)
        assert (await self.send(request())).status == 200, "the next call is served"
        self.served += served + 1
        await self.envoy.line(self.served)
        for line in self.envoy.lines()[-1 - served :]:
            assert (line.labels["api_key"], line.reported.output) == ("ci", 2)
        assert len(self.upstream.requests) == self.served
        assert {path for path, _, _ in self.upstream.requests} == {"/v1/chat/completions"}


@asynccontextmanager
async def running(directory: Path, **settings: Any) -> AsyncIterator[Target]:
    """Run a target; `settings` are fields of EnvoySettings."""
    async with Mirror() as upstream, stacked(directory, upstream.address, **settings) as stack:
        yield Target(stack.harness, stack.envoy, upstream)
