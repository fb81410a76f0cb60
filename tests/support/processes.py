"""Farebox's processes as a test runs them: started, awaited, killed; their logs kept for the error."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.support.waiting import wait_for


class Endpoint:
    """A `farebox` command that runs somewhere on this machine: its HTTP port and its log."""

    def __init__(self, name: str, port: int, log: Path) -> None:
        self.name = name
        self.port = port
        self.log = log

    @property
    def url(self) -> str:
        """Where it answers HTTP."""
        return f"http://127.0.0.1:{self.port}"

    def http(self, path: str, seconds: float = 20.0) -> tuple[int, str]:
        """GET a path: status and body. Raises OSError when nothing answers in time."""
        return get(f"{self.url}{path}", seconds)

    def tail(self, lines: int = 40) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace").splitlines()[-lines:]
        return f"--- the end of {self.log} ---\n" + "\n".join(text)


class Process(Endpoint):
    """One `farebox` command that was started here. Its log is `<directory>/<name>.log`."""

    def __init__(self, name: str, command: str, directory: Path, env: Mapping[str, str], port: int) -> None:
        super().__init__(name, port, directory / f"{name}.log")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "farebox", *command.split()],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Wait until /readyz answers 200. Raises AssertionError with the log when it ends or takes longer."""
        try:
            wait_for(f"{self.name} is ready", self._is_ready, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL: it gets no chance to finish anything."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: it is there, and does nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self, seconds: float = 60.0) -> int:
        """SIGTERM; returns its exit code. Kills it if it does not end in time."""
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def wait_end(self, seconds: float = 60.0) -> int:
        """Wait for it to end by itself; returns its exit code."""
        return self._process.wait(seconds)

    def _is_ready(self) -> bool:
        if not self.running():
            raise RuntimeError(f"{self.name} ended with {self._process.returncode}\n{self.tail()}")
        return self.http("/readyz")[0] == 200


def get(url: str, seconds: float = 20.0) -> tuple[int, str]:
    """GET: status and body. Raises OSError when nothing answers in time."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def runs(pid: int) -> bool:
    """Whether a process is there; one that ended and that nobody has waited for is not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False
