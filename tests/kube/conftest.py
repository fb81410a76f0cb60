"""Fixtures: a small server and a client of it."""

from collections.abc import AsyncIterator

import pytest_asyncio

from farebox.kube.client import KubeClient
from tests.kube.server import Server, client_of, serving


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    """A server with scripted answers."""
    async with serving() as running:
        yield running


@pytest_asyncio.fixture
async def client(server: Server) -> AsyncIterator[KubeClient]:
    """A client of the server."""
    async with client_of(server) as made:
        yield made
