"""/healthz, /readyz and /metrics of operator and gateway."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from farebox.errors import ConfigurationError
from farebox.ports import listen

Problems = Callable[[], list[str]]
"""Returns a sentence for each current problem."""


async def serve_health(
    host: str, port: int, setting: str, unhealthy: Problems, unready: Problems
) -> web.AppRunner:
    """Start the server; the caller must clean up the runner.

    Args:
        setting: the name of the setting for the port.
        unhealthy: the problems that only a restart repairs; /healthz answers 503 with them.
        unready: the problems that keep the replica from taking over; /readyz answers 503 with both.

    Raises:
        ConfigurationError: the port cannot be used.
    """

    def answer(problems: list[str]) -> web.Response:
        return web.Response(text="\n".join(problems) or "ok", status=503 if problems else 200)

    async def healthz(_: web.Request) -> web.Response:
        return answer(unhealthy())

    async def readyz(_: web.Request) -> web.Response:
        return answer(unhealthy() + unready())

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await listen(runner, host, port, setting)
    except ConfigurationError:
        await runner.cleanup()
        raise
    return runner
