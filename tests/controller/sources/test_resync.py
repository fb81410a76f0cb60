"""The sweep finds what watches missed, believes no single list about deletions, and knows a deaf watch."""

from typing import Any

from aiohttp import web

from farebox.controller.queue import Kind
from farebox.controller.sources.resync import Resync
from farebox.controller.state.cache import Cache, Change
from farebox.domain.keys import ObjectKey
from farebox.kube.client import KubeClient
from farebox.kube.names import core_path, deployment_path, resource_path
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
    """What the API server lists, a cache, and the sweep between them."""

    def __init__(self, server: Server, client: KubeClient) -> None:
        self.server = server
        self.cache = Cache()
        self.found: list[Change[Any]] = []
        self.sweep = Resync(client, self.cache, BACKENDS, self.found.append, grace_seconds=0.0)
        for kind in Kind:
            self.lists(kind)

    def lists(self, kind: Kind, *items: JSONObject) -> None:
        """These objects, and no others, are there now."""
        path = PLACES.get(kind) or resource_path(kind)
        self.server.objects[path] = {"metadata": {"resourceVersion": "100"}, "items": list(items)}
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
            await self.sweep._compare(kind)
        return [change.key for change in self.found]


async def test_priming_fills_the_cache_with_farebox_own(server: Server, client: KubeClient) -> None:
    world = World(server, client)
    foreign = objects.dedicated("x") | {"spec": {"selector": {"matchLabels": {"app": "x"}}, "template": {}}}
    world.lists(Kind.SERVICE, objects.service("chat"))
    world.lists(Kind.NAMESPACE, objects.namespace(TEAM))
    world.lists(Kind.DEPLOYMENT, objects.dedicated("chat"), foreign)
    await world.sweep.initial_list()
    assert [len(world.cache.store(kind)) for kind in (Kind.SERVICE, Kind.NAMESPACE, Kind.DEPLOYMENT)] == [
        1,
        1,
        1,
    ]
    assert world.found == [], "who starts looks at everything anyway"
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


async def test_a_list_alone_takes_nothing_away(server: Server, client: KubeClient) -> None:
    """It may be older than the object that the watch told of meanwhile."""
    world = World(server, client)
    world.lists(Kind.SERVICE, objects.service("chat", 5))
    await world.compare()
    world.lists(Kind.SERVICE)
    assert await world.compare() == []
    assert CHAT in world.cache.services


async def test_a_list_that_is_older_than_the_watch_changes_nothing(
    server: Server, client: KubeClient
) -> None:
    world = World(server, client)
    world.cache.services.put(objects.service("chat", 9))
    world.lists(Kind.SERVICE, objects.service("chat", 5))
    assert await world.compare() == []
    assert world.cache.services.version(CHAT) == 9


async def test_a_watch_that_misses_changes_again_and_again_is_deaf(
    server: Server, client: KubeClient
) -> None:
    world = World(server, client)
    world.lists(Kind.SERVICE, objects.service("chat", 5))
    await world.compare()
    assert world.sweep.stale_watches == [], "once can be an accident"
    world.lists(Kind.SERVICE, objects.service("chat", 6))
    await world.compare()
    assert world.sweep.stale_watches == [Kind.SERVICE]
    world.cache.services.put(objects.service("chat", 7))
    world.lists(Kind.SERVICE, objects.service("chat", 7))
    await world.compare()
    assert world.sweep.stale_watches == [], "it hears again"


async def test_missed_deletions_do_not_make_a_watch_deaf(server: Server, client: KubeClient) -> None:
    """They are a known hole of every watch that starts anew."""
    world = World(server, client)
    for version in (5, 7):
        world.cache.services.put(objects.service("chat", version))
        world.lists(Kind.SERVICE, objects.service("chat", version))
        world.gone(CHAT)
        assert await world.compare() == [CHAT]
    assert world.sweep.stale_watches == []


async def test_a_kind_that_is_refused_holds_up_no_other(server: Server, client: KubeClient) -> None:
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
    assert await world.sweep.once()
    assert {change.kind for change in world.found} == {Kind.NAMESPACE, Kind.ENDPOINT}
    server.trouble = reset
    assert not await world.sweep.once()


async def test_an_api_server_that_is_away_takes_nothing_away(server: Server, client: KubeClient) -> None:
    world = World(server, client)
    world.lists(Kind.SERVICE, objects.service("chat", 5))
    await world.compare()
    world.gone(CHAT)
    lists = iter((True,))

    async def answer(request: web.Request) -> web.StreamResponse:
        """The list is answered, the question about the one object is not."""
        if next(lists, False):
            return web.json_response({"metadata": {"resourceVersion": "100"}, "items": []})
        return await refuse(request)

    server.trouble = answer
    failed = False
    try:
        await world.sweep._compare(Kind.SERVICE)
    except Exception as error:
        failed = "not now" in str(error)
    assert failed
    assert CHAT in world.cache.services


async def test_a_watch_that_lost_its_place_gets_everything_and_the_version_to_go_on_from(
    server: Server, client: KubeClient
) -> None:
    world = World(server, client)
    world.lists(Kind.SERVICE, objects.service("chat", 5), objects.service("other", 6))
    await world.sweep.initial_list()
    assert world.sweep.initial_versions[Kind.SERVICE] == "100"
    world.lists(Kind.SERVICE, objects.service("other", 7), objects.service("new", 8))
    assert await world.sweep.relist(Kind.SERVICE) == "100"
    assert {key.name for key in world.cache.services} == {"other", "new"}
    assert {(change.key.name, change.new is None) for change in world.found} == {
        ("other", False),
        ("new", False),
        ("chat", True),
    }


async def test_what_is_gone_when_a_list_begins_anew_is_gone(server: Server, client: KubeClient) -> None:
    """The first page of a list that expired says nothing about what is there now."""
    world = World(server, client)
    world.lists(Kind.SERVICE, objects.service("chat", 5))
    await world.sweep.initial_list()
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
    assert await world.sweep.relist(Kind.SERVICE) == "120"
    assert {key.name for key in world.cache.services} == {"other"}
