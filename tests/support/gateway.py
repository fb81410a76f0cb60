"""A gateway as a test runs it: the decision process and its Envoy, two processes as in the manifests' pod."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.processes import Process
from tests.support.waiting import wait_for


class Gateway:
    """One replica. `start` it; `stop` drains it as the end of its pod does.

    Args:
        port: where Envoy takes calls; the decision process has `health_port`.
        directory: shared with Envoy; `stop` removes it.
        logs: a directory for what both print.
        env: the settings of both.
    """

    def __init__(
        self, name: str, directory: Path, logs: Path, port: int, health_port: int, env: Mapping[str, str]
    ) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.directory = directory
        self._logs = logs
        self._port = port
        self._health_port = health_port
        self._env = env
        self.envoy: Process | None = None
        self.decisions: Process | None = None

    def start(self) -> None:
        """Envoy's configuration, Envoy, the decision process; returns when calls can be made.

        With FAREBOX_RUN_ENVOY the decision process starts Envoy itself, as on a laptop.
        """
        if "FAREBOX_RUN_ENVOY" in self._env:
            self.start_decisions()
            return
        write = [sys.executable, "-m", "farebox", "gateway", "--write-envoy-config"]
        subprocess.run(write, env={**os.environ, **self._env}, check=True, stdout=subprocess.DEVNULL)
        self.start_envoy()
        self.start_decisions()

    def start_envoy(self) -> Process:
        """Envoy alone."""
        envoy = Process(f"{self.name}-envoy", "envoy", self._logs, self._env, self._port)
        self.envoy = envoy
        wait_for(f"{envoy.name} answers", lambda: envoy.http("/healthz")[0] == 200, 60)
        return envoy

    def start_decisions(self) -> Process:
        """The decision process alone."""
        process = Process(self.name, "gateway", self._logs, self._env, self._health_port)
        self.decisions = process
        process.wait_ready()
        return process

    def processes(self) -> list[Process]:
        """Both, as far as they were started."""
        return [process for process in (self.decisions, self.envoy) if process is not None]

    def stop(self) -> None:
        """Drain, end both, and remove their directory."""
        if self.decisions is not None and self.decisions.running():
            self.decisions.stop(60)
        if self.envoy is not None and self.envoy.running():
            self.envoy.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
