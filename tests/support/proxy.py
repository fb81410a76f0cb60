"""A proxy before the API server that can swallow what watches tell, or refuse requests of a kind.

It runs in a thread of its own and forwards everything else as it is, with the caller's credentials.
"""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web

_TOO_OLD = b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}\n'
_HEADERS = ("Authorization", "Content-Type", "Accept")


class Proxy:
    """What it does now; set from any thread.

    Attributes:
        deaf: plural names of kinds whose watches tell nothing.
        refused: plural names of kinds of which every request is answered with 503.
        forgetful: plural names of kinds whose watch once reports, instead of the next change, that it is
            too old, as after a compaction.
    """

    def __init__(self, upstream: str) -> None:
        self.deaf: frozenset[str] = frozenset()
        self.refused: frozenset[str] = frozenset()
        self.forgetful: frozenset[str] = frozenset()
        self.port = 0
        self._upstream = upstream

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        """Serve until `stop`."""
        # It trusts any certificate: both ends are this test's.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connector = aiohttp.TCPConnector(limit=0, ssl=context)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            app = web.Application(client_max_size=64 << 20)

            async def handle(request: web.Request) -> web.StreamResponse:
                return await self._forward(session, request)

            app.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.port = runner.addresses[0][1]
            started.set()
            await stop.wait()
            await runner.cleanup()

    async def _forward(self, session: aiohttp.ClientSession, request: web.Request) -> web.StreamResponse:
        if self.refused.intersection(request.path.split("/")):
            return web.json_response({"kind": "Status", "message": "refused by the test"}, status=503)
        headers = {name: request.headers[name] for name in _HEADERS if name in request.headers}
        body = await request.read()
        url = f"{self._upstream}{request.path_qs}"
        async with session.request(request.method, url, headers=headers, data=body or None) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            await response.prepare(request)
            watch = request.query.get("watch") == "true"
            plural = request.path.rpartition("/")[2]
            async for chunk in answer.content.iter_any():
                if watch and plural in self.forgetful:
                    self.forgetful -= {plural}
                    await response.write(_TOO_OLD)
                    break
                if not (watch and plural in self.deaf):
                    await response.write(chunk)
            await response.write_eof()
            return response


@contextmanager
def proxied(kubeconfig: Path) -> Iterator[tuple[Proxy, Path]]:
    """A proxy before the API server of a kubeconfig, and a kubeconfig that goes through it."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    proxy = Proxy(cluster["server"])
    loop, stop, started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(proxy.serve(started, stop),), daemon=True)
    thread.start()
    try:
        assert started.wait(60), "the proxy listens"
        config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{proxy.port}"}
        path = kubeconfig.with_name(f"{kubeconfig.name}-proxied")
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config))
        yield proxy, path
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
