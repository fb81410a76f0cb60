"""The resync finds what watches missed, and recognizes a watch that misses changes again and again."""

from typing import Any

import pytest
from aiohttp import web

from farebox.controller.queue import Kind
from farebox.controller.sources.resync import Resync
from farebox.controller.state.cache import Cache
from farebox.domain.keys import ObjectKey
from farebox.errors import KubeError
from farebox.kube.client import KubeClient
from farebox.kube.names import core_path, deployment_path, resource_path
from farebox.kube.store import Change
from tests.controller import objects
from tests.controller.objects import BACKENDS, TEAM, JSONObject
from tests.kube.server import Server, refuse, reset, status

CHAT = ObjectKey(TEAM, "chat")
PLACES = {
    Kind.DEPLOYMENT: deployment_path(BACKENDS),
    Kind.ENDPOINT: core_path("services", BACKENDS),
    Kind.NAMESPACE: core_path("namespaces"),
}


class World:
    """What the API server lists, a cache, and the resync between them."""

    def __init__(self, server: Server, client: KubeClient) -> None:
        self.server = server
        self.cache = Cache()
        self.found: list[Change[Any]] = []
        self.resync = Resync(client, self.cache, BACKENDS, self.found.append, grace_seconds=0.0)
        for kind in Kind:
            self.lists(kind)

    def lists(self, kind: Kind, *items: JSONObject, version: str = "100") -> None:
        """These objects, and no others, are there now."""
        path = PLACES.get(kind) or resource_path(kind)
        self.server.objects[path] = {"metadata": {"resourceVersion": version}, "items": list(items)}
        for item in items:
            name, namespace = item["metadata"]["name"], item["metadata"].get("namespace", "")
            if kind is Kind.SERVICE:
                self.server.objects[resource_path(kind, namespace, name)] = item

    def gone(self, key: ObjectKey) -> None:
        """A service is not there any more, in no list and by no name."""
        del self.server.objects[resource_path(Kind.SERVICE, *key)]
        self.lists(Kind.SERVICE)

    async def compare(self) -> list[ObjectKey]:
        """One sweep; the objects whose changes it found."""
        self.found.clear()
        for kind in Kind:
            await self.resync.compare(kind)
        return [change.key for change in self.found]


async def test_the_initial_list_skips_foreign_deployments(server: Server, client: KubeClient) -> None:
    world = World(server, client)
    foreign = objects.dedicated("x") | {"spec": {"selector": {"matchLabels": {"app": "x"}}, "template": {}}}
    world.lists(Kind.SERVICE, objects.service("chat"))
    world.lists(Kind.NAMESPACE, objects.namespace(TEAM))
    world.lists(Kind.DEPLOYMENT, objects.dedicated("chat"), foreign)
    await world.resync.initial_list()
    assert [len(world.cache.store(kind)) for kind in (Kind.SERVICE, Kind.NAMESPACE, Kind.DEPLOYMENT)] == [
        1,
        1,
        1,
    ]
    assert world.found == [], "everything is queued after the initial list anyway"
    assert await world.compare() == []


async def test_a_change_that_the_watch_missed_is_found(server: Server, client: KubeClient) -> None:
    world = World(server, client)
    world.lists(Kind.SERVICE, objects.service("chat", 5))
    assert await world.compare() == [CHAT]
    world.lists(Kind.SERVICE, objects.service("chat", 6))
    assert await world.compare() == [CHAT]
    assert world.cache.services.version(CHAT) == 6
    assert await world.compare() == []


async def test_a_deletion_that_the_watch_missed_is_found(server: Server, client: KubeClient) -> None:
    world = World(server, client)
    world.lists(Kind.SERVICE, objects.service("chat", 5))
    await world.compare()
    world.gone(CHAT)
    assert await world.compare() == [CHAT]
    assert CHAT not in world.cache.services


async def test_an_object_that_is_newer_than_the_list_stays(server: Server, client: KubeClient) -> None:
    """The watch reported it after the list was made."""
    world = World(server, client)
    world.lists(Kind.SERVICE, objects.service("chat", 101))
    await world.compare()
    world.lists(Kind.SERVICE)
    assert await world.compare() == []
    assert CHAT in world.cache.services
    world.lists(Kind.SERVICE, version="101")
    assert await world.compare() == [CHAT], "a list of its own version that lacks it"


async def test_a_list_that_is_older_than_the_watch_changes_nothing(
    server: Server, client: KubeClient
) -> None:
    world = World(server, client)
    world.cache.services.put(objects.service("chat", 9))
    world.lists(Kind.SERVICE, objects.service("chat", 5))
    assert await world.compare() == []
    assert world.cache.services.version(CHAT) == 9


async def test_a_watch_that_misses_changes_repeatedly_is_stale(server: Server, client: KubeClient) -> None:
    world = World(server, client)
    world.lists(Kind.SERVICE, objects.service("chat", 5))
    await world.compare()
    assert world.resync.stale_watches == [], "once can be an accident"
    world.lists(Kind.SERVICE, objects.service("chat", 6))
    await world.compare()
    assert world.resync.stale_watches == [Kind.SERVICE]
    world.cache.services.put(objects.service("chat", 7))
    world.lists(Kind.SERVICE, objects.service("chat", 7))
    await world.compare()
    assert world.resync.stale_watches == [], "it reports changes again"


async def test_missed_deletions_do_not_make_a_watch_stale(server: Server, client: KubeClient) -> None:
    """Every watch can miss one when it reconnects."""
    world = World(server, client)
    for version in (5, 105):
        world.cache.services.put(objects.service("chat", version))
        world.lists(Kind.SERVICE, version=str(version + 1))
        assert await world.compare() == [CHAT]
    assert world.resync.stale_watches == []


async def test_a_kind_whose_list_is_refused_delays_no_other(server: Server, client: KubeClient) -> None:
    """As when the backends' namespace was deleted, and the operator's Role in it."""
    world = World(server, client)
    world.lists(Kind.NAMESPACE, objects.namespace(TEAM))
    refused = PLACES[Kind.DEPLOYMENT]

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == refused:
            return status(403, "Forbidden", "deployments is forbidden")
        return web.json_response(server.objects[request.path])

    server.trouble = answer
    world.lists(Kind.ENDPOINT, objects.endpoint("m-llm", 5, {}))
    assert await world.resync.compare_all()
    assert {change.kind for change in world.found} == {Kind.NAMESPACE, Kind.ENDPOINT}
    server.trouble = reset
    assert not await world.resync.compare_all()


async def test_an_unreachable_api_server_removes_nothing(server: Server, client: KubeClient) -> None:
    world = World(server, client)
    world.lists(Kind.SERVICE, objects.service("chat", 5))
    await world.compare()
    world.gone(CHAT)
    pages = iter((True,))

    async def answer(request: web.Request) -> web.StreamResponse:
        """The first page of the list arrives, the second does not."""
        if next(pages, False):
            return web.json_response({"metadata": {"resourceVersion": "100", "continue": "x"}, "items": []})
        return await refuse(request)

    server.trouble = answer
    with pytest.raises(KubeError, match="not now"):
        await world.resync.compare(Kind.SERVICE)
    assert CHAT in world.cache.services


async def test_a_list_after_a_lost_place_reports_every_change_and_where_to_continue(
    server: Server, client: KubeClient
) -> None:
    world = World(server, client)
    world.lists(Kind.SERVICE, objects.service("chat", 5), objects.service("other", 6))
    await world.resync.initial_list()
    services = world.resync.reflectors[Kind.SERVICE]
    assert services.version == "100"
    world.lists(Kind.SERVICE, objects.service("other", 7), objects.service("new", 8))
    services.version = ""
    await services.relist(world.found.append)
    assert services.version == "100"
    assert {key.name for key in world.cache.services} == {"other", "new"}
    assert {(change.key.name, change.new is None) for change in world.found} == {
        ("other", False),
        ("new", False),
        ("chat", True),
    }


async def test_an_object_in_an_expired_page_alone_is_removed(server: Server, client: KubeClient) -> None:
    """The first page of a list that expired says nothing about what is there now."""
    world = World(server, client)
    world.lists(Kind.SERVICE, objects.service("chat", 5))
    await world.resync.initial_list()
    answers = iter(
        [
            {"metadata": {"resourceVersion": "100", "continue": "x"}, "items": [objects.service("chat", 5)]},
            None,
            {"metadata": {"resourceVersion": "120"}, "items": [objects.service("other", 6)]},
        ]
    )

    async def answer(request: web.Request) -> web.StreamResponse:
        page = next(answers)
        return status(410, "Expired", "too old") if page is None else web.json_response(page)

    server.trouble = answer
    services = world.resync.reflectors[Kind.SERVICE]
    await services.relist(world.found.append)
    assert services.version == "120"
    assert {key.name for key in world.cache.services} == {"other"}
