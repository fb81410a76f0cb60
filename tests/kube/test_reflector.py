"""The reflector: its watch continues where it was, lists when it must, and survives whatever ends it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from farebox.kube.client import KubeClient
from farebox.kube.reflector import Reflector
from farebox.kube.store import Change, Store
from tests.kube.server import JSONObject, Server, hang, status

PATH = "/apis/apps/v1/namespaces/a/deployments"


def event(type_: str, name: str, version: str) -> JSONObject:
    return {"type": type_, "object": {"metadata": {"name": name, "resourceVersion": version}}}


@dataclass
class Script:
    """What the server answers to one watch after the other; then it keeps the next one open.

    Lists are empty, and as of resourceVersion 50.
    """

    watches: list[list[JSONObject | str] | int]
    asked: list[str] = field(default_factory=list)
    lists: int = 0
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            self.lists += 1
            return web.json_response({"metadata": {"resourceVersion": "50"}, "items": []})
        self.asked.append(request.query["resourceVersion"])
        if not self.watches:
            self.finished.set()
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


@asynccontextmanager
async def watching(
    server: Server, client: KubeClient, script: Script, version: str = "7"
) -> AsyncIterator[list[tuple[str, str]]]:
    """Watch from a version on until the script is finished; yields what was reported, by verb and name."""
    server.trouble = script.answer
    reported: list[tuple[str, str]] = []

    def report(change: Change[JSONObject]) -> None:
        reported.append(("gone" if change.new is None else "there", change.key.name))

    reflector = Reflector(client, PATH, Store("Deployment", lambda raw: raw), report, version=version)
    task = asyncio.create_task(reflector.watch())
    try:
        async with asyncio.timeout(20):
            await script.finished.wait()
        yield reported
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_watch_that_ends_continues_where_it_was(server: Server, client: KubeClient) -> None:
    script = Script([[event("ADDED", "x", "8"), event("BOOKMARK", "", "12")], [event("DELETED", "x", "13")]])
    async with watching(server, client, script) as reported:
        assert reported == [("there", "x"), ("gone", "x")], "a bookmark is no change"
    assert script.asked == ["7", "12", "13"]
    assert script.lists == 0


async def test_a_version_that_is_too_old_leads_to_a_list(server: Server, client: KubeClient) -> None:
    gone = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "old"}}
    script = Script([[event("ADDED", "x", "8"), gone], 410])
    async with watching(server, client, script) as reported:
        assert script.lists == 2, "an error within the stream, and one instead of it"
        assert reported == [("there", "x"), ("gone", "x")], "the list lacks it"
    assert script.asked == ["7", "50", "50"]


async def test_it_retries_after_errors_of_the_api_server(server: Server, client: KubeClient) -> None:
    script = Script([503, 429, [event("MODIFIED", "x", "9")]])
    async with watching(server, client, script) as reported:
        assert reported == [("there", "x")]
    assert script.asked == ["7", "7", "7", "9"]
    assert script.lists == 0


async def test_a_line_that_is_no_event_only_ends_the_watch(server: Server, client: KubeClient) -> None:
    script = Script([[event("ADDED", "x", "8"), "<html>502</html>"], [event("MODIFIED", "x", "9")]])
    async with watching(server, client, script) as reported:
        assert reported == [("there", "x"), ("there", "x")]
    assert script.asked == ["7", "8", "9"]


async def test_without_a_version_it_begins_with_a_list(server: Server, client: KubeClient) -> None:
    script = Script([[]])
    async with watching(server, client, script, version=""):
        assert script.lists == 1
    assert script.asked == ["50", "50"]


async def test_an_object_that_is_not_selected_any_more_is_removed(server: Server, client: KubeClient) -> None:
    store = Store("Deployment", lambda raw: raw)
    reported: list[str] = []
    reflector = Reflector(
        client, PATH, store, lambda change: reported.append(change.key.name), lambda raw: "spec" in raw
    )
    foreign, own = (event("ADDED", "x", version)["object"] for version in ("8", "9"))
    reflector.on_event("ADDED", foreign)
    assert reported == [], "it was never selected"
    reflector.on_event("MODIFIED", own | {"spec": {}})
    reflector.on_event("MODIFIED", event("MODIFIED", "x", "10")["object"])
    assert reported == ["x", "x"]
    assert len(store) == 0
