"""A socket closes nothing but itself, whatever its event loop has closed behind its back."""

import asyncio
import gc
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import pytest
import uvloop

from farebox.sockets import OwnSocket, connector

ROUNDS, AT_ONCE = 15, 20


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Garbage stays until a test collects it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@contextmanager
def files(count: int) -> Iterator[list[int]]:
    """Open files, which get the lowest free numbers."""
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
    try:
        yield opened
    finally:
        for number in opened:
            os.close(number)


@pytest.mark.parametrize("end", ["close", "garbage"])
def test_a_number_that_is_anothers_by_now_is_let_alone(end: str) -> None:
    made = OwnSocket(socket.AF_INET, socket.SOCK_STREAM, 0)
    number = made.fileno()
    os.close(number)
    with files(number + 1) as opened:
        assert number in opened
        if end == "close":
            made.close()
        del made
        assert [os.fstat(each).st_mode for each in opened], "all are open"


def test_one_that_is_its_own_is_closed_with_it() -> None:
    for end in ("close", "garbage"):
        made = OwnSocket(socket.AF_INET, socket.SOCK_STREAM, 0)
        number = made.fileno()
        if end == "close":
            made.close()
        del made
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)


def test_a_server_that_resets_connections_costs_no_others(no_collector: None) -> None:
    """As an API server does that is killed: uvloop closes the sockets and leaves them their numbers."""
    uvloop.run(connect_in_vain())
    with files(4 * AT_ONCE) as opened:
        gc.collect()
        assert [os.fstat(each).st_mode for each in opened], "all are open"


async def connect_in_vain() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        threading.Thread(target=reset_all, args=(server,), daemon=True).start()
        url = f"https://127.0.0.1:{server.getsockname()[1]}/"
        async with aiohttp.ClientSession(connector=connector(ssl=False)) as session:

            async def connect() -> None:
                with pytest.raises(aiohttp.ClientError):
                    await session.get(url)

            for _ in range(ROUNDS):
                await asyncio.gather(*(connect() for _ in range(AT_ONCE)))
        server.shutdown(socket.SHUT_RDWR)


def reset_all(server: socket.socket) -> None:
    """Take connections and reset them, until the server is shut down."""
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
