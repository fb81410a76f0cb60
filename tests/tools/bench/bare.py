"""A bare client for the API server: as many requests as 64 connections carry, and nothing around them.

It is the limit that the operator is compared with. It also fills a plane quickly and carries the watches of
observer.py. It never retries and keeps no state.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from kubernetes.aio.client import Configuration

from farebox.kube.client import MERGE_PATCH, load_configuration, tls_context

JSONObject = dict[str, Any]

CONNECTIONS = 64
_PAGE = 1000
_ERROR = b'{"type":"ERROR"'
_VERSION = re.compile(rb'"resourceVersion":"(\d+)"')


class Call(NamedTuple):
    """One request."""

    method: str
    path: str
    body: JSONObject
    content_type: str = "application/json"


class CallFailed(RuntimeError):
    """The API server answered with an error: a benchmark that goes on would measure errors."""


class Bare:
    """One session to one API server. Make it with `connect`; use it as an async context manager."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._session = aiohttp.ClientSession(
            base_url=configuration.host,
            connector=aiohttp.TCPConnector(ssl=tls_context(configuration), limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        )

    @classmethod
    async def connect(cls, kubeconfig: Path) -> "Bare":
        """A client with the credentials of a kubeconfig."""
        bare = cls(await load_configuration(kubeconfig))
        if token := await bare._configuration.get_api_key_with_prefix("BearerToken"):
            bare._session.headers["Authorization"] = token
        return bare

    async def call(self, call: Call) -> JSONObject:
        """One request; the answer. Raises CallFailed for any status from 400 on."""
        data = json.dumps(call.body, separators=(",", ":")).encode() if call.body else None
        headers = {"Content-Type": call.content_type}
        async with self._session.request(call.method, call.path, data=data, headers=headers) as response:
            payload = await response.read()
            if response.status >= 400:
                raise CallFailed(f"{call.method} {call.path}: HTTP {response.status} {payload[:300]!r}")
            answer: JSONObject = json.loads(payload)
            return answer

    async def create(self, path: str, body: JSONObject) -> JSONObject:
        """Create an object in the collection at `path`."""
        return await self.call(Call("POST", path, body))

    async def send(self, work: Iterable[Sequence[Call]]) -> float:
        """Make all calls, those of one sequence one after another; returns the seconds it took."""
        left = iter(work)

        async def worker() -> None:
            for calls in left:
                for call in calls:
                    await self.call(call)

        started = time.monotonic()
        await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
        return time.monotonic() - started

    async def each(self, path: str, into: Callable[[JSONObject], None]) -> str:
        """Hand every object of a collection to `into`, page by page; returns the resourceVersion."""
        token = ""
        while True:
            query = f"?limit={_PAGE}" + (f"&continue={token}" if token else "")
            page = await self.call(Call("GET", path + query, {}))
            for item in page["items"]:
                into(item)
            token = page["metadata"].get("continue", "")
            if not token:
                return str(page["metadata"]["resourceVersion"])

    async def all(self, path: str) -> list[JSONObject]:
        """Every object of a collection."""
        items: list[JSONObject] = []
        await self.each(path, items.append)
        return items

    @asynccontextmanager
    async def watching(self, path: str, see: Callable[[bytes, float], None]) -> AsyncIterator[None]:
        """While inside, `see` gets the line of each change of a collection and the monotonic time.

        A watch that can go on no more ends what is inside: what it waits for may have gone by unseen.
        """
        at = (await self.call(Call("GET", f"{path}?limit=1", {})))["metadata"]["resourceVersion"]
        response = await self._watch(path, at)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._follow(path, at, response, see))
            yield
            task.cancel()

    async def _watch(self, path: str, at: str) -> aiohttp.ClientResponse:
        response = await self._session.get(f"{path}?watch=1&resourceVersion={at}&timeoutSeconds=3600")
        if response.status != 200:
            raise CallFailed(f"watch of {path}: HTTP {response.status} {await response.text()}")
        return response

    async def _follow(
        self, path: str, at: str, response: aiohttp.ClientResponse, see: Callable[[bytes, float], None]
    ) -> None:
        """Read a watch without end. A busy API server closes slow ones; the next resumes there."""
        while True:
            async with response:
                rest = b""
                async for chunk in response.content.iter_any():
                    now = time.monotonic()
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if line.startswith(_ERROR):
                            raise CallFailed(f"watch of {path}: {line!r}")
                        see(line, now)
                    if lines:
                        at = _version(lines[-1])
            response = await self._watch(path, at)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def __aenter__(self) -> "Bare":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


def _version(line: bytes) -> str:
    found = _VERSION.search(line)
    assert found is not None, line[:200]
    return found[1].decode()


def patch(path: str, body: JSONObject) -> Call:
    """A merge patch."""
    return Call("PATCH", path, body, MERGE_PATCH)
