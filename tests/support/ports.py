"""Ports for the processes of tests. Several test runs and workers can take them side by side."""

import random
import socket
from typing import Final

_RANGE: Final = range(15_000, 31_000)
"""Below those that Linux gives to outgoing connections: what is free stays free between the end of a process
and its next start."""

_ours: list[socket.socket] = []


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on, and that no other test gets before this process ends."""
    for port in random.sample(_RANGE, len(_RANGE)):
        # An abstract name is a lock between processes that leaves no file behind.
        lock = socket.socket(socket.AF_UNIX)
        try:
            lock.bind(f"\0farebox-test-port-{port}")
            with socket.create_server(("127.0.0.1", port)):
                _ours.append(lock)
                return port
        except OSError:
            lock.close()
    raise AssertionError(f"none of the ports {_RANGE.start} to {_RANGE.stop - 1} is free")
