"""The watch of one collection: it goes on where it was, lists when it must, and outlives whatever ends it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from farebox.kube.client import KubeClient
from farebox.kube.reflector import Reflector
from tests.kube.server import JSONObject, Server, hang, status

PATH = "/apis/apps/v1/namespaces/a/deployments"


def event(type_: str, name: str, version: str) -> JSONObject:
    return {"type": type_, "object": {"metadata": {"name": name, "resourceVersion": version}}}


@dataclass
class Script:
    """What the server answers to one watch after the other; then it keeps the next one open."""

    watches: list[list[JSONObject | str] | int]
    asked: list[str] = field(default_factory=list)
    through: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.query["resourceVersion"])
        if not self.watches:
            self.through.set()
            return await hang(request)
        events = self.watches.pop(0)
        if isinstance(events, int):
            return status(events, "Trouble", "not now")
        response = web.StreamResponse()
        await response.prepare(request)
        for line in events:
            text = line if isinstance(line, str) else json.dumps(line)
            await response.write(text.encode() + b"\n")
        return response


@dataclass
class Heard:
    """A follower's ears, and its list."""

    events: list[tuple[str, str]] = field(default_factory=list)
    lists: int = 0

    def hear(self, type_: str, raw: JSONObject) -> None:
        self.events.append((type_, raw["metadata"]["name"]))

    async def relist(self) -> str:
        self.lists += 1
        return "50"


@asynccontextmanager
async def following(client: KubeClient, script: Script, version: str = "7") -> AsyncIterator[Heard]:
    heard = Heard()
    follower = Reflector(client, PATH, heard.hear, heard.relist)
    task = asyncio.create_task(follower.run(version))
    try:
        async with asyncio.timeout(20):
            await script.through.wait()
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_watch_that_ends_goes_on_where_it_was(server: Server, client: KubeClient) -> None:
    script = Script([[event("ADDED", "x", "8"), event("BOOKMARK", "", "12")], [event("DELETED", "x", "13")]])
    server.trouble = script.answer
    async with following(client, script) as heard:
        assert heard.events == [("ADDED", "x"), ("DELETED", "x")], "bookmarks are nobody's business"
    assert script.asked == ["7", "12", "13"]
    assert heard.lists == 0


async def test_a_version_that_is_too_old_is_answered_by_a_list(server: Server, client: KubeClient) -> None:
    gone = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "old"}}
    script = Script([[event("ADDED", "x", "8"), gone], 410])
    server.trouble = script.answer
    async with following(client, script) as heard:
        assert heard.lists == 2, "an error within the stream, and one instead of it"
    assert script.asked == ["7", "50", "50"]


async def test_an_api_server_in_trouble_is_asked_again(server: Server, client: KubeClient) -> None:
    script = Script([503, 429, [event("MODIFIED", "x", "9")]])
    server.trouble = script.answer
    async with following(client, script) as heard:
        assert heard.events == [("MODIFIED", "x")]
    assert script.asked == ["7", "7", "7", "9"]
    assert heard.lists == 0


async def test_a_line_that_is_no_event_ends_the_watch_alone(server: Server, client: KubeClient) -> None:
    script = Script([[event("ADDED", "x", "8"), "<html>502</html>"], [event("MODIFIED", "x", "9")]])
    server.trouble = script.answer
    async with following(client, script) as heard:
        assert heard.events == [("ADDED", "x"), ("MODIFIED", "x")]
    assert script.asked == ["7", "8", "9"]


async def test_without_a_version_it_begins_with_a_list(server: Server, client: KubeClient) -> None:
    script = Script([[]])
    server.trouble = script.answer
    async with following(client, script, version="") as heard:
        assert heard.lists == 1
    assert script.asked == ["50", "50"]
