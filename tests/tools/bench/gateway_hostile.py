"""The hostile row of the gateway's benchmark: one key does its worst while another tenant calls.

Two connections of the hostile key send bodies of almost 16 MiB, one after another, that cost most to read and
are refused. What counts is the p99 of the other tenant beside its p99 when all is quiet, in turns.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.gateway.harness import OTHER_TOKEN, TOKEN
from tests.tools.bench.gateway_targets import Target
from tests.tools.bench.loading import load, request
from tests.tools.bench.report import Report, percentile

CONNECTIONS: Final = 2
RATE: Final = 200.0
RATE_CONNECTIONS: Final = 32
ROUNDS: Final = 3
_SIZE: Final = 16 * 2**20 - 1024
_CHAT: Final = b'{"model":"nothing","messages":[{"role":"user","content":'


def bodies() -> Mapping[str, bytes]:
    """The worst bodies by name; each is refused."""
    picture = b'[{"type":"image_url","image_url":{"url":"data:image/png;base64,'
    return {
        "numbers": b'{"model":"nothing","input":[' + b"1," * (_SIZE // 2) + b"1]}",
        "lists": _CHAT + b"[" + b"[]," * (_SIZE // 3) + b"1]}]}",
        "escapes": _CHAT + b'"' + b"\\n" * (_SIZE // 2) + b'"}]}',
        "a picture": _CHAT + picture + b"A" * _SIZE + b'"}}]}]}',
        "small junk": b"{",
    }


async def measure(report: Report, target: Target, program: Path, seconds: float) -> None:
    """Add a row for each kind of body."""
    text = request(TOKEN, "chat", "json")
    for name, body in bodies().items():
        quiet: list[float] = []
        hostile: list[float] = []
        refused = 0
        for _ in range(ROUNDS):
            quiet += await _calls(program, target, text, seconds)
            async with contextlib.AsyncExitStack() as stack:
                counts = [0] * CONNECTIONS
                for number in range(CONNECTIONS):
                    task = asyncio.create_task(_attack(target.port, body, counts, number))
                    stack.push_async_callback(_end, task)
                hostile += await _calls(program, target, text, seconds)
                refused += sum(counts)
        base, p99 = percentile(quiet, 99), percentile(hostile, 99)
        report.add(
            f"another tenant's p99, one key sends {name}", p99, "ms", base, "at most 3x", p99 <= 3 * base
        )
        report.add(f"refused while one key sends {name}", refused / (ROUNDS * seconds), "calls/s")


async def _calls(program: Path, target: Target, text: str, seconds: float) -> list[float]:
    """The latencies of the other tenant's calls in milliseconds; all must succeed."""
    result = await load(program, "open", target.port, text, RATE_CONNECTIONS, seconds, RATE)
    assert set(result.statuses) == {200}, result.statuses
    return [latency * 1000 for latency in result.latencies]


async def _attack(port: int, body: bytes, counts: list[int], number: int) -> None:
    """Send the body again and again; connect again when Envoy closes the connection."""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {OTHER_TOKEN}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    sent = head.encode() + body
    while True:
        writer = None
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while True:
                writer.write(sent)
                answer = await reader.readuntil(b"\r\n\r\n")
                assert answer[9:12] in (b"400", b"404", b"429"), answer
                length = next(line for line in answer.split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.split(b":")[1]))
                counts[number] += 1
        if writer is not None:
            writer.close()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
