"""The gateway of `farebox up`: `farebox gateway` and its Envoy as a child process, if Envoy is installed.

It is a process of its own, as in a cluster: at the end it finishes running calls and ships their usage while
the meter still runs. If this process is killed, the gateway notices and ends; unsent usage is sent at the
next start. It authenticates to the meter with a token that is created for it and stays in its directory.
"""

import asyncio
import hmac
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from farebox.errors import ConfigurationError
from farebox.gateway.envoy.process import find
from farebox.meter.auth import Authenticator, Decision, Permission, Review
from farebox.ports import check_free
from farebox.up.settings import UpSettings

TOKEN_FILE: Final = "meter-token"
_DRAIN_SECONDS: Final = 10
"""The default of FAREBOX_DRAIN_SECONDS: the time that running calls have at the end."""

log = structlog.get_logger(__name__)


class GatewayToken:
    """An Authenticator that accepts the token of this process's gateway, and delegates other tokens.

    In a cluster the gateway has a ServiceAccount. On a laptop it may not run in the cluster at all.
    """

    def __init__(self, others: Authenticator) -> None:
        self.token = secrets.token_urlsafe(32)
        self._others = others

    async def review(self, token: str, permission: Permission) -> Review:
        """See Authenticator."""
        if hmac.compare_digest(token.encode(errors="surrogateescape"), self.token.encode()):
            return Review(Decision.ALLOWED)
        return await self._others.review(token, permission)


@asynccontextmanager
async def gateway(settings: UpSettings, token: str) -> AsyncIterator[asyncio.Task[None]]:
    """Run the gateway inside the `async with`, if Envoy is installed and `settings.gateway` is set.

    Yields:
        A task that fails with ConfigurationError if the gateway exits by itself.

    Raises:
        ConfigurationError: a port is in use.
    """
    if not _enabled(settings):
        never = asyncio.create_task(_never())
        try:
            yield never
        finally:
            never.cancel()
        return
    check_free(settings.listen_host, settings.gateway_port, "FAREBOX_GATEWAY_PORT")
    check_free(settings.listen_host, settings.gateway_health_port, "FAREBOX_GATEWAY_HEALTH_PORT")
    environment = await asyncio.to_thread(_environment, settings, token)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "farebox", "gateway", "--parent", str(os.getpid())),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches only this process, which stops the gateway in order
    )
    ended = asyncio.create_task(_ended(process))
    log.info("farebox.gateway", calls=settings.endpoint)
    try:
        yield ended
    finally:
        ended.cancel()
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


def _enabled(settings: UpSettings) -> bool:
    if not settings.gateway:
        return False
    try:
        find()
    except ConfigurationError as error:
        log.warning("farebox.gateway.disabled", reason=str(error))
        return False
    return True


def _environment(settings: UpSettings, token: str) -> dict[str, str]:
    """The environment of the gateway. Other FAREBOX_ variables are passed on unchanged."""
    directory = settings.gateway_directory
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    token_file = _write_token(directory, token)
    return {
        "FAREBOX_DRAIN_SECONDS": str(_DRAIN_SECONDS),
        "FAREBOX_LINGER_SECONDS": "0",
        **os.environ,
        "FAREBOX_METER_URL": f"http://{settings.listen_host}:{settings.meter_port}",
        "FAREBOX_METER_TOKEN_FILE": str(token_file),
        "FAREBOX_GATEWAY_DIRECTORY": str(directory),
        "FAREBOX_BACKEND_NAMESPACE": settings.backend_namespace,
        "FAREBOX_LISTEN_HOST": settings.listen_host,
        "FAREBOX_LISTEN_PORT": str(settings.gateway_port),
        "FAREBOX_HEALTH_PORT": str(settings.gateway_health_port),
        "FAREBOX_LOG_FORMAT": settings.log_format,
        "FAREBOX_RUN_ENVOY": "true",
    }


def _write_token(directory: Path, token: str) -> Path:
    """Write the token into a file that only the owner of this process can ever read."""
    path = directory / TOKEN_FILE
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(token)
    return path


async def _ended(process: asyncio.subprocess.Process) -> None:
    code = await process.wait()
    raise ConfigurationError(f"the gateway has exited with code {code}; see its last log lines above")


async def _never() -> None:
    await asyncio.Event().wait()
