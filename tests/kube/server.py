"""A small real API server for what a real one cannot be asked to do: hang, reset, refuse, answer nonsense.

It keeps objects by path with resourceVersions, as Kubernetes does, so that leases can be fought over on it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from kubernetes.aio.client import Configuration

from farebox.kube.client import KubeClient

JSONObject = dict[str, Any]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Server:
    """Objects by path, and how requests are answered.

    Attributes:
        trouble: answers every request instead, while it is set.
        requests: method, path and headers of what came, oldest first.
    """

    objects: dict[str, JSONObject] = field(default_factory=dict)
    trouble: Answer | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    bodies: list[JSONObject | None] = field(default_factory=list)
    port: int = 0
    _version: int = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer as Kubernetes does, or as `trouble` says."""
        self.requests.append((request.method, request.path_qs, dict(request.headers)))
        body = await request.json() if request.can_read_body else None
        self.bodies.append(body)
        if self.trouble is not None:
            return await self.trouble(request)
        match request.method:
            case "GET":
                return self._found(request.path)
            case "POST":
                return self._store(f"{request.path}/{body['metadata']['name']}", body, new=True)
            case "PUT":
                return self._store(request.path, body, new=False)
        return status(405, "MethodNotAllowed", request.method)

    def _found(self, path: str) -> web.Response:
        found = self.objects.get(path)
        return web.json_response(found) if found else status(404, "NotFound", f"{path} not found")

    def _store(self, path: str, body: JSONObject, new: bool) -> web.Response:
        known = self.objects.get(path)
        if new and known is not None:
            return status(409, "AlreadyExists", f"{path} already exists")
        if not new:
            if known is None:
                return status(404, "NotFound", f"{path} not found")
            if body["metadata"].get("resourceVersion") != known["metadata"]["resourceVersion"]:
                return status(409, "Conflict", "the object has been modified")
        self._version += 1
        stored = body | {"metadata": body["metadata"] | {"resourceVersion": str(self._version)}}
        self.objects[path] = stored
        return web.json_response(stored)


def status(code: int, reason: str, message: str) -> web.Response:
    """An error as Kubernetes words it."""
    return web.json_response({"kind": "Status", "reason": reason, "message": message}, status=code)


async def hang(request: web.Request) -> web.StreamResponse:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError


async def reset(request: web.Request) -> web.StreamResponse:
    """Cut the connection."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def refuse(request: web.Request) -> web.StreamResponse:
    """Be overloaded."""
    return status(503, "ServiceUnavailable", "not now")


async def nonsense(request: web.Request) -> web.StreamResponse:
    """Something between that is no API server."""
    return web.Response(text="<html>the proxy is down</html>", status=502)


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    """A running server."""
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[KubeClient]:
    """A client of it."""
    configuration = Configuration()
    configuration.host = server.url
    async with KubeClient(configuration) as client:
        yield client
