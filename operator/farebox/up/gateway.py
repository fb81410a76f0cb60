"""The gateway of a laptop: `farebox gateway` with its Envoy, as a child process, where there is an Envoy.

A process of its own, as in a cluster: when all is ended it finishes running calls and ships their usage, and
the meter is still there. Should this process be killed, the gateway finds out and ends by itself; usage that
no meter took is sent at the next start. It reports to the meter with a token that is made for it alone and
never leaves its directory.
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
"""Running calls get so long at the end, where nobody set FAREBOX_DRAIN_SECONDS."""

log = structlog.get_logger(__name__)


class GatewayToken:
    """An Authenticator that knows this process's own gateway, and asks another about everybody else.

    Kubernetes would vouch for a ServiceAccount, but a laptop's cluster need not have one.
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
    """Take calls inside the `async with`, if there is an Envoy and `settings.gateway` says so.

    Yields:
        A task that ends, with ConfigurationError, when the gateway does so by itself.

    Raises:
        ConfigurationError: one of its ports is taken.
    """
    if not _wanted(settings):
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
        start_new_session=True,  # Ctrl-C is for this process, which tells the gateway when it is its turn
    )
    ended = asyncio.create_task(_ended(process))
    log.info("farebox.gateway", calls=f"http://{settings.listen_host}:{settings.gateway_port}/v1")
    try:
        yield ended
    finally:
        ended.cancel()
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


def _wanted(settings: UpSettings) -> bool:
    if not settings.gateway:
        return False
    try:
        find()
    except ConfigurationError as error:
        log.warning("farebox.gateway.off", because=str(error))
        return False
    return True


def _environment(settings: UpSettings, token: str) -> dict[str, str]:
    """What the gateway is told; whatever else begins with FAREBOX_ is its own to read."""
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
    """For the owner of this process alone, from its first byte on."""
    path = directory / TOKEN_FILE
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(token)
    return path


async def _ended(process: asyncio.subprocess.Process) -> None:
    code = await process.wait()
    raise ConfigurationError(f"the gateway has ended with code {code}: its last lines are above")


async def _never() -> None:
    await asyncio.Event().wait()
