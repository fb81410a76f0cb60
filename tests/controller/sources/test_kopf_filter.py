"""Kopf sees every change but those that the operator made itself and knows already."""

import asyncio
import json
from collections.abc import Set
from typing import Any

import aiohttp
from aiohttp import web

from farebox.controller.sources.kopf_filter import ListTracker, drop_known_events
from farebox.domain.keys import ObjectKey
from tests.kube.server import Server, serving

KNOWN = {ObjectKey("a", "x"): 10, ObjectKey("a", "cheat"): 30}


def cached(key: ObjectKey) -> int:
    return KNOWN.get(key, 0)


def no_list(keys: Set[ObjectKey], version: int) -> None:
    raise AssertionError("that was a watch")


def line(type_: str, name: str, version: str, **metadata: Any) -> bytes:
    body = {"metadata": metadata | {"name": name, "namespace": "a", "resourceVersion": version}}
    return json.dumps({"type": type_, "object": body | {"status": {"text": "ü" * 90}}}).encode()


async def through_kopfs_eyes(server: Server, lines: list[bytes], cut: int) -> list[bytes]:
    """What is left of lines that arrive in pieces of `cut` bytes."""

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
        drop_known_events(response, cached, ListTracker(no_list))
        left = b"".join([chunk async for chunk in response.content.iter_chunked(1024)])
    return left.splitlines()


async def test_only_what_the_cache_has_is_left_out() -> None:
    news = [
        line("MODIFIED", "x", "11"),
        line("ADDED", "y", "3"),
        line("DELETED", "x", "10"),
        line("BOOKMARK", "", "99"),
        b'{"type":"ERROR","object":{"kind":"Status","code":410}}',
        b"what is this",
        # Nobody hides a change behind an annotation that looks like a version.
        line("MODIFIED", "cheat", "31", annotations={"resourceVersion": "1", "a": '"resourceVersion":"1"'}),
    ]
    echoes = [line("MODIFIED", "x", "10"), line("ADDED", "x", "9"), line("MODIFIED", "cheat", "30")]
    lines = [news[0], echoes[0], *news[1:4], echoes[1], *news[4:6], echoes[2], news[6]]
    async with serving() as server:
        for cut in (7, 300, 100_000):
            assert await through_kopfs_eyes(server, lines, cut) == news


async def list_through_kopfs_eyes(server: Server, text: str, pages: ListTracker, asked: str = "") -> bytes:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type="application/json")

    server.trouble = answer
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/list{asked}") as response:
        drop_known_events(response, cached, pages)
        return await response.read()


def item(name: str, version: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "a", "resourceVersion": version}, "spec": {"n": 1.50}}


async def test_a_list_keeps_what_the_cache_has_not() -> None:
    head = {"kind": "InferenceServiceList", "metadata": {"resourceVersion": "99", "continue": "token"}}
    there = [item("x", "10"), item("x", "11"), item("y", "1"), item("cheat", "29")]
    pages = ListTracker(no_list)
    async with serving() as server:
        left = await list_through_kopfs_eyes(server, json.dumps(head | {"items": there}), pages)
        assert json.loads(left) == head | {"items": there[1:3]}
        for odd in ('{"items": null}', "[]", "<html>", '{"items": [{"metadata": {}}]}', '{"kind": "Status"}'):
            assert await list_through_kopfs_eyes(server, odd, pages) == odd.encode()


async def test_a_list_that_is_read_to_its_end_says_what_is_there() -> None:
    whole: list[tuple[set[str], int]] = []
    pages = ListTracker(lambda keys, version: whole.append(({key.name for key in keys}, version)))

    def page(following: str, *names: str) -> str:
        metadata = {"resourceVersion": "99", "continue": following}
        return json.dumps({"metadata": metadata, "items": [item(name, "10") for name in names]})

    async with serving() as server:
        for asked, text in (
            # One that breaks off, and one whose second page nobody could read: they say nothing.
            ("", page("lost", "gone")),
            ("", page("first", "gone")),
            ("?limit=500&continue=first", "<html>"),
            ("?limit=500&continue=second", page("", "y")),
            ("", page("first", "x", "y")),
            ("?limit=500&continue=first", page("", "cheat")),
            ("", page("")),
        ):
            await list_through_kopfs_eyes(server, text, pages, asked)
    assert whole == [({"x", "y", "cheat"}, 99), (set(), 99)]
