"""Sockets that never close a file descriptor that is not theirs.

uvloop takes over the file descriptor of a socket and closes it. If the peer resets the connection in the same
iteration of the event loop in which it was opened, as when an API server is killed, the socket object does
not learn that (uvloop 0.23; issues 645 and 738 are similar). Minutes later the garbage collector closes the
number again, which by then may be another connection, a file or the ledger.
"""

import os
import socket
from typing import Any

import aiohttp
from aiohttp.connector import AddrInfoType


class OwnSocket(socket.socket):
    """A socket that closes its file descriptor only if the number still refers to the same socket."""

    def __init__(self, family: int, type: int, proto: int) -> None:
        super().__init__(family, type, proto)
        self._identity = _identity(self.fileno())

    def close(self) -> None:
        """Close the socket, if it still exists."""
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
            # It is closed already, or was never opened.
            return False


def connector(**options: Any) -> aiohttp.TCPConnector:
    """Return an aiohttp connector that opens such sockets; the options are those of TCPConnector."""
    return aiohttp.TCPConnector(socket_factory=_own_socket, **options)


def _own_socket(address: AddrInfoType) -> socket.socket:
    family, type_, proto, *_ = address
    return OwnSocket(family, type_, proto)


def _identity(number: int) -> tuple[int, int]:
    """Return the device and inode behind a file descriptor, unique for each socket."""
    found = os.fstat(number)
    return found.st_dev, found.st_ino
