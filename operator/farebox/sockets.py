"""Connections to other processes, whose sockets close nothing but themselves.

uvloop takes over a socket's file descriptor, closes it, and forgets to tell the socket if the other side
reset the connection in the same turn of the loop in which it was made, as happens when an API server is
killed (0.23; its issues 645 and 738 are about the like of it). The garbage collector closes the socket once
more, minutes later, by a number that by then is another connection, a file or the ledger.
"""

import os
import socket
from typing import Any

import aiohttp
from aiohttp.connector import AddrInfoType


class OwnSocket(socket.socket):
    """A socket that lets its file descriptor alone when that is another one's by now."""

    def __init__(self, family: int, type: int, proto: int) -> None:
        super().__init__(family, type, proto)
        self._identity = _identity(self.fileno())

    def close(self) -> None:
        """Close it, if it is there still."""
        if self._is_own():
            super().close()
        else:
            self.detach()

    def __del__(self) -> None:
        own = self._is_own()
        number = self.detach()
        if own:
            os.close(number)

    def _is_own(self) -> bool:
        try:
            return self.fileno() >= 0 and _identity(self.fileno()) == self._identity
        except (OSError, AttributeError):
            # It is closed already, or was never made.
            return False


def connector(**options: Any) -> aiohttp.TCPConnector:
    """aiohttp's connections over such sockets; options as TCPConnector takes them."""
    return aiohttp.TCPConnector(socket_factory=_own_socket, **options)


def _own_socket(address: AddrInfoType) -> socket.socket:
    family, type_, proto, *_ = address
    return OwnSocket(family, type_, proto)


def _identity(number: int) -> tuple[int, int]:
    """What a file descriptor stands for: the kernel gives no two sockets the same."""
    found = os.fstat(number)
    return found.st_dev, found.st_ino
