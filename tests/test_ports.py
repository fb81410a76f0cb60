"""A process whose port is taken ends with one sentence, which names the port and the setting (B23)."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from farebox.errors import ConfigurationError
from farebox.ports import check_free
from tests.support.ports import free_port

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: nowhere
contexts: [{name: nowhere, context: {cluster: nowhere, user: nobody}}]
clusters: [{name: nowhere, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: nobody, user: {}}]
"""


@pytest.fixture
def taken() -> Iterator[str]:
    """A port at which somebody listens as Envoy does: who asks for the like may share it."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield str(other.getsockname()[1])


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        ("operator", "FAREBOX_LISTEN_PORT"),
        ("meter", "FAREBOX_LISTEN_PORT"),
        ("gateway", "FAREBOX_HEALTH_PORT"),
        ("gateway", "FAREBOX_LISTEN_PORT"),
        ("gateway", "FAREBOX_ENVOY_HEALTH_PORT"),
    ],
)
def test_b23_a_port_that_is_taken_is_named_with_its_setting(
    tmp_path: Path, taken: str, command: str, setting: str
) -> None:
    config = tmp_path / "kubeconfig"
    config.write_text(KUBECONFIG)
    ours = {
        "KUBECONFIG": str(config),
        "FAREBOX_LISTEN_HOST": "127.0.0.1",
        "FAREBOX_LEDGER_URL": f"sqlite:///{tmp_path}/ledger.db",
        "FAREBOX_METER_TOKEN_FILE": str(config),
        "FAREBOX_GATEWAY_DIRECTORY": str(tmp_path),
        "FAREBOX_RUN_ENVOY": "true",
        "FAREBOX_HEALTH_PORT": str(free_port()),
        "FAREBOX_LISTEN_PORT": str(free_port()),
    }
    run = subprocess.run(
        [sys.executable, "-m", "farebox", command],
        env=os.environ | ours | {setting: taken}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    sentence = f"port {taken} on 127.0.0.1 cannot be used: address already in use; it is set by {setting}"
    assert (run.returncode, run.stderr.splitlines()[-1]) == (1, f"farebox: {sentence}")
    assert "Traceback" not in run.stderr


def test_b23_the_simulator_names_its_option(taken: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "farebox", "simulator", "--host", "127.0.0.1", "--port", taken],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].endswith("it is set by --port")


def test_an_unknown_host_is_named_in_the_error() -> None:
    with pytest.raises(ConfigurationError, match="port 1234 on no host cannot be used"):
        check_free("no host", 1234, "FAREBOX_LISTEN_PORT")


def test_a_port_of_an_ipv6_address_is_looked_at_too() -> None:
    try:
        other = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} on ::1"):
            check_free("::1", port, "FAREBOX_LISTEN_PORT")
    check_free("::1", port, "FAREBOX_LISTEN_PORT")
