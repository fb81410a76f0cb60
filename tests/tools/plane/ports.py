"""Ports that stay ours from choosing them to the end of the plane."""

import contextlib
import socket
from collections.abc import Iterator


def reserve() -> socket.socket:
    """A free port of 127.0.0.1, held by a socket that is bound and never listens.

    etcd and the API server bind the same port beside it (SO_REUSEPORT); nobody else gets it meanwhile, not
    even while the API server is dead between `kill_apiserver` and `restart_apiserver`. Connections are
    refused then, as they should be.
    """
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", 0))
    return held


@contextlib.contextmanager
def reserved(count: int) -> Iterator[list[socket.socket]]:
    """Several at once; closed here at the end, when the supervisor holds its own copies."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(reserve()) for _ in range(count)]


def number(held: socket.socket) -> int:
    port: int = held.getsockname()[1]
    return port
