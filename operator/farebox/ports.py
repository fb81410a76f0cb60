"""Ports that processes listen on. A port that cannot be used is a ConfigurationError, not a traceback."""

import os
import socket

from aiohttp import web

from farebox.errors import ConfigurationError


async def listen(runner: web.AppRunner, host: str, port: int, setting: str) -> None:
    """Serve at this address.

    Args:
        setting: the name of the setting for the port.

    Raises:
        ConfigurationError: the port cannot be used.
    """
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise _refusal(error, host, port, setting) from error


def check_free(host: str, port: int, setting: str) -> None:
    """Check a port before an Envoy listens on it: Envoy would silently share it with another process.

    Raises:
        ConfigurationError: the port cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise _refusal(error, host, port, setting) from error


def _refusal(error: OSError, host: str, port: int, setting: str) -> ConfigurationError:
    """Build the error with the text of the operating system; that of asyncio repeats the address."""
    known = error.errno is not None and error.errno > 0
    reason = os.strerror(error.errno).lower() if known else str(error)  # type: ignore[arg-type]
    return ConfigurationError(f"port {port} on {host} cannot be used: {reason}; it is set by {setting}")
