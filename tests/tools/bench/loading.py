"""Builds and runs load.go: the load on a gateway and the upstream behind it. It measures nothing itself."""

import asyncio
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tools.plane import golang
from tests.tools.plane.binaries import MODULE, cache_root

_SOURCE = Path(__file__).with_name("load.go")


@dataclass(frozen=True)
class Result:
    """What a load measured; see load.go."""

    calls: int
    statuses: dict[int, int]
    events: int
    seconds: float
    latencies: list[float]


def build(directory: Path) -> Path:
    """The program, built with the toolchain that builds the control plane."""
    target = directory / "load"
    go = golang.find_go(MODULE, cache_root(), print)
    subprocess.run(
        [str(go), "build", "-o", str(target), str(_SOURCE)],
        env=golang.environment(),
        cwd=directory,
        check=True,
    )
    return target


def request(
    token: str, model: str, kind: str, max_tokens: int = 100, headers: Mapping[str, str] | None = None
) -> str:
    """A call as a client writes it. Kinds: json, sse, slow."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "word " * 10}]}
    body["max_tokens"] = max_tokens
    if kind != "json":
        body["stream"] = True
    if kind == "slow":
        body["user"] = "slow"
    payload = json.dumps(body)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
        f"authorization: Bearer {token}\r\ncontent-type: application/json\r\n"
    ) + "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return f"{head}content-length: {len(payload)}\r\n\r\n{payload}"


async def load(
    program: Path, mode: str, port: int, text: str, connections: int, seconds: float = 0, rate: float = 0
) -> Result:
    """Run a load in a process of its own. Raises RuntimeError if it fails."""
    asked = {
        "Mode": mode,
        "Port": port,
        "Connections": connections,
        "Seconds": seconds,
        "Rate": rate,
        "Request": text,
    }
    process = await asyncio.create_subprocess_exec(
        str(program), "call", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = await process.communicate(json.dumps(asked).encode())
    if process.returncode != 0:
        raise RuntimeError(f"the load {mode} failed: {errors.decode()}")
    answer: dict[str, Any] = json.loads(output)
    answer["statuses"] = {int(status): count for status, count in answer["statuses"].items()}
    return Result(**answer)
