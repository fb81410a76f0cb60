"""What the gateway's benchmark loads: plain Envoy, Farebox, LiteLLM's proxy, all before one upstream."""

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from farebox.gateway.envoy import process as envoy_process
from farebox.gateway.envoy.bootstrap import EnvoySettings, command
from farebox.gateway.envoy.clusters import decision_cluster
from tests.gateway.harness import TOKEN
from tests.support.ports import free_port
from tests.support.stack import REPOSITORY
from tests.support.waiting import wait_for
from tests.tools.bench.process import cpu_seconds
from tests.tools.bench.world import progress

_TYPES = "type.googleapis.com/envoy.extensions."
_LITELLM = REPOSITORY / "build/litellm"
WORKERS = 2
"""Threads of each Envoy."""


@dataclass
class Target:
    """A gateway under load: where it listens, its processes, and the key of who calls."""

    name: str
    port: int
    envoy: int | None
    python: int | None
    token: str = TOKEN

    def cpu(self) -> tuple[float, float]:
        """CPU seconds so far: Envoy's, and Python's."""
        envoy, python = (cpu_seconds(pid) if pid else 0.0 for pid in (self.envoy, self.python))
        return envoy, python


@dataclass
class Targets:
    """Those that run. `missing` says why one does not."""

    found: list[Target] = field(default_factory=list)
    missing: str = ""


@asynccontextmanager
async def targets(directory: Path, program: Path) -> AsyncIterator[Targets]:
    """All of them, ready."""
    made = Targets()
    async with AsyncExitStack() as stack:
        upstream = free_port()
        start(stack, [str(program), "upstream", str(upstream)], directory / "upstream.log", upstream)
        made.found.append(_plain(stack, directory, upstream))
        settings = EnvoySettings(directory / "f", listen_host="127.0.0.1", listen_port=free_port())
        envoy = await stack.enter_async_context(envoy_process.running(settings, concurrency=WORKERS))
        decides = start(
            stack,
            _decide(settings.directory, f"127.0.0.1:{upstream}"),
            directory / "decide.log",
        )
        wait_for("the decision process listens", settings.decision_socket.exists, 60)
        made.found.append(Target("Farebox", settings.listen_port, envoy.pid, decides))
        try:
            executable = await asyncio.to_thread(_litellm_program)
            made.found.append(_litellm(stack, directory, upstream, executable))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            made.missing = f"LiteLLM was not measured: {' '.join(str(error).split())[-300:]}"
        yield made


def start(
    stack: AsyncExitStack, arguments: Sequence[str], log: Path, port: int | None = None, seconds: float = 60
) -> int:
    """Start a process, wait for its port, end it with the stack; its process id."""
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=output, cwd=REPOSITORY)

    def end() -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()

    stack.callback(end)
    if port is not None:
        wait_for(f"port {port} listens", lambda: _listens(process, port, log), seconds)
    return process.pid


def _decide(directory: Path, upstream: str) -> list[str]:
    return [sys.executable, "-m", "tests.tools.bench.gateway_parts", str(directory), upstream]


def _plain(stack: AsyncExitStack, directory: Path, upstream: int) -> Target:
    """Envoy with a route to the upstream and nothing else."""
    port = free_port()
    cluster = decision_cluster(Path("/unused")) | {"name": "upstream"}
    del cluster["typed_extension_protocol_options"]
    address = {"socket_address": {"address": "127.0.0.1", "port_value": upstream}}
    cluster["load_assignment"] = {
        "cluster_name": "upstream",
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
    }
    route = {"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}
    hosts = [{"name": "all", "domains": ["*"], "routes": [route]}]
    router = {"@type": f"{_TYPES}filters.http.router.v3.Router"}
    manager = {
        "@type": f"{_TYPES}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "plain",
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [chain],
    }
    config = directory / "plain.json"
    config.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
    arguments = command(envoy_process.find(), config, WORKERS)
    return Target("plain Envoy", port, start(stack, arguments, directory / "plain.log", port), None)


def _litellm_program() -> Path:
    """LiteLLM's proxy: BENCH_LITELLM, or in a virtual environment of its own that is made here.

    Raises:
        RuntimeError: it cannot be had, or BENCH_LITELLM=no says that it is not wanted.
    """
    given = os.environ.get("BENCH_LITELLM", "")
    if given == "no":
        raise RuntimeError("BENCH_LITELLM=no")
    if given:
        return Path(given)
    program = _LITELLM / "bin/litellm"
    if not program.exists():
        progress("installing LiteLLM into build/litellm")
        subprocess.run([sys.executable, "-m", "venv", str(_LITELLM)], check=True)
        pip = [str(_LITELLM / "bin/python"), "-m", "pip", "install", "--quiet", "litellm[proxy]"]
        installed = subprocess.run(pip, capture_output=True, text=True, check=False)
        if installed.returncode != 0:
            raise RuntimeError(f"pip could not install it: {installed.stderr.strip()[-300:]}")
    return program


def _litellm(stack: AsyncExitStack, directory: Path, upstream: int, executable: Path) -> Target:
    """LiteLLM's proxy, one worker, no database."""
    port = free_port()
    parameters = {
        "model": "openai/m",
        "api_base": f"http://127.0.0.1:{upstream}/v1",
        "api_key": "x",
    }
    config = directory / "litellm.yaml"
    token = f"sk-{secrets.token_hex(32)}"
    models = [{"model_name": "chat", "litellm_params": parameters}]
    config.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": token}}))
    arguments = [str(executable), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    pid = start(stack, [*arguments, "--num_workers", "1"], directory / "litellm.log", port, 180)
    return Target("LiteLLM", port, None, pid, token)


def _listens(process: "subprocess.Popen[bytes]", port: int, log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"{process.args} ended: {log.read_text()[-2000:]}")
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
