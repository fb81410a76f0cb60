"""Kopf reads every change, except versions that the cache has already."""

import asyncio
import json
from typing import Any

import aiohttp
from aiohttp import web

from farebox.controller.sources.kopf_filter import ListTracker, drop_known_events
from farebox.kube.client import KubeClient
from farebox.kube.reflector import Reflector
from farebox.kube.store import Change, Store
from tests.kube.server import Server, client_of, serving

KNOWN = (("x", 10), ("cheat", 30))


def tracker(client: KubeClient, gone: list[str] | None = None) -> ListTracker:
    """A tracker over a store that has `KNOWN`; `gone` collects what it removes."""

    def report(change: Change[Any]) -> None:
        assert gone is not None, "nothing is removed"
        gone.append(change.key.name)

    store = Store("InferenceService", lambda raw: raw)
    for name, version in KNOWN:
        store.put(item(name, str(version)))
    return ListTracker(Reflector(client, "/services", store, report))


def line(type_: str, name: str, version: str, **metadata: Any) -> bytes:
    body = {"metadata": metadata | {"name": name, "namespace": "a", "resourceVersion": version}}
    return json.dumps({"type": type_, "object": body | {"status": {"text": "ü" * 90}}}).encode()


async def as_kopf_reads_it(server: Server, client: KubeClient, lines: list[bytes], cut: int) -> list[bytes]:
    """Return what Kopf reads of lines that arrive in pieces of `cut` bytes."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        text = b"".join(each + b"\n" for each in lines)
        for at in range(0, len(text), cut):
            await response.write(text[at : at + cut])
            await asyncio.sleep(0)
        return response

    server.trouble = answer
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/watch") as response:
        drop_known_events(response, tracker(client))
        left = b"".join([chunk async for chunk in response.content.iter_chunked(1024)])
    return left.splitlines()


async def test_kopf_reads_every_event_that_the_cache_does_not_have() -> None:
    unknown = [
        line("MODIFIED", "x", "11"),
        line("ADDED", "y", "3"),
        line("DELETED", "x", "10"),
        line("BOOKMARK", "", "99"),
        b'{"type":"ERROR","object":{"kind":"Status","code":410}}',
        b"what is this",
        # An annotation that looks like a version hides no change.
        line("MODIFIED", "cheat", "31", annotations={"resourceVersion": "1", "a": '"resourceVersion":"1"'}),
    ]
    known = [line("MODIFIED", "x", "10"), line("ADDED", "x", "9"), line("MODIFIED", "cheat", "30")]
    lines = [unknown[0], known[0], *unknown[1:4], known[1], *unknown[4:6], known[2], unknown[6]]
    async with serving() as server, client_of(server) as client:
        for cut in (7, 300, 100_000):
            assert await as_kopf_reads_it(server, client, lines, cut) == unknown


async def list_as_kopf_reads_it(server: Server, text: str, lists: ListTracker, asked: str = "") -> bytes:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type="application/json")

    server.trouble = answer
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/list{asked}") as response:
        drop_known_events(response, lists)
        return await response.read()


def item(name: str, version: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "a", "resourceVersion": version}, "spec": {"n": 1.50}}


async def test_kopf_reads_every_listed_object_that_the_cache_does_not_have() -> None:
    head = {"kind": "InferenceServiceList", "metadata": {"resourceVersion": "99", "continue": "token"}}
    there = [item("x", "10"), item("x", "11"), item("y", "1"), item("cheat", "29")]
    async with serving() as server, client_of(server) as client:
        lists = tracker(client)
        left = await list_as_kopf_reads_it(server, json.dumps(head | {"items": there}), lists)
        assert json.loads(left) == head | {"items": there[1:3]}
        for odd in ('{"items": null}', "[]", "<html>", '{"items": [{"metadata": {}}]}', '{"kind": "Status"}'):
            assert await list_as_kopf_reads_it(server, odd, lists) == odd.encode()


async def test_a_complete_list_removes_what_it_lacks() -> None:
    gone: list[str] = []

    def page(following: str, *names: str) -> str:
        metadata = {"resourceVersion": "99", "continue": following}
        return json.dumps({"metadata": metadata, "items": [item(name, "10") for name in names]})

    async with serving() as server, client_of(server) as client:
        lists = tracker(client, gone)
        for asked, text, removed in (
            # One that breaks off, and one with a page that cannot be read: neither is complete.
            ("", page("lost", "other"), []),
            ("", page("first", "other"), []),
            ("?limit=500&continue=first", "<html>", []),
            ("?limit=500&continue=second", page("", "y"), []),
            ("", page("first", "x", "y"), []),
            ("?limit=500&continue=first", page("", "cheat"), []),
            ("", page("first", "y"), []),
            ("?limit=500&continue=first", page("", "cheat"), ["x"]),
            ("", page(""), ["x", "cheat"]),
        ):
            await list_as_kopf_reads_it(server, text, lists, asked)
            assert gone == removed
