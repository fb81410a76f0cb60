"""What the gateway's benchmark loads: plain Envoy, Farebox, and other gateways, all before one upstream."""

import json
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

_TYPES = "type.googleapis.com/envoy.extensions."
WORKERS = 2
"""Threads of each Envoy."""


@dataclass
class Target:
    """A gateway under load: where it listens, its processes by what they run, and how it is called."""

    name: str
    port: int
    processes: dict[str, int]
    token: str = TOKEN
    headers: dict[str, str] = field(default_factory=dict)

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far, by process."""
        return {name: cpu_seconds(pid) for name, pid in self.processes.items()}


@dataclass
class Targets:
    """Those that run, before an upstream at a port. `stack` ends what is added to them."""

    stack: AsyncExitStack
    directory: Path
    upstream: int
    found: list[Target] = field(default_factory=list)


@asynccontextmanager
async def targets(directory: Path, program: Path) -> AsyncIterator[Targets]:
    """Plain Envoy and Farebox, ready."""
    async with AsyncExitStack() as stack:
        upstream = free_port()
        made = Targets(stack, directory, upstream)
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
        processes = {"Envoy": envoy.pid, "Python": decides}
        made.found.append(Target("Farebox", settings.listen_port, processes))
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
    return Target("plain Envoy", port, {"Envoy": start(stack, arguments, directory / "plain.log", port)})


def _listens(process: "subprocess.Popen[bytes]", port: int, log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"{process.args} ended: {log.read_text()[-2000:]}")
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
