"""Ports that processes listen at. One that cannot be had is a sentence for who started the process."""

import os
import socket

from aiohttp import web

from farebox.errors import ConfigurationError


async def listen(runner: web.AppRunner, host: str, port: int, setting: str) -> None:
    """Serve at this address.

    Args:
        setting: what sets the port, as its user writes it.

    Raises:
        ConfigurationError: it cannot be had.
    """
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise _refusal(error, host, port, setting) from error


def check_free(host: str, port: int, setting: str) -> None:
    """For an Envoy that is about to listen there: it would share a port with another without a word.

    Raises:
        ConfigurationError: it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise _refusal(error, host, port, setting) from error


def _refusal(error: OSError, host: str, port: int, setting: str) -> ConfigurationError:
    """The system's own words: what asyncio says repeats the address."""
    known = error.errno is not None and error.errno > 0
    reason = os.strerror(error.errno).lower() if known else str(error)  # type: ignore[arg-type]
    return ConfigurationError(f"port {port} on {host} cannot be had: {reason}; it is set by {setting}")
