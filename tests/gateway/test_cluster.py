"""The gateway's snapshot follows a real API server: whatever happens to the connection, nothing is missed."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from farebox.domain.facts import UNKNOWN
from farebox.domain.keys import ObjectKey
from farebox.errors import KubeError, KubeUnreachable
from farebox.gateway.cluster import ClusterWatch
from farebox.gateway.convert import SecretRef
from farebox.gateway.credentials import Credentials, CredentialsUnavailable
from farebox.gateway.snapshot import GatewaySnapshot
from farebox.gateway.spend.tracker import SpendTracker
from farebox.kube import client as client_module
from farebox.kube.client import KubeClient
from farebox.kube.names import core_path, resource_path
from farebox.kube.reflector import Reflector
from farebox.kube.store import Change, Store
from tests.gateway.harness import JSONObject, api_key, model, service, serving
from tests.tools.plane import Plane

NAMESPACE = "team-a"


@pytest.fixture(scope="module")
def own_plane() -> Iterator[Plane]:
    """A plane of these tests' own: they kill its API server."""
    with Plane.start(nodes=0) as plane:
        plane.kubectl("apply", "--server-side", "-k", "crds")
        kinds = ("apikeys", "inferenceservices", "models", "billingaccounts")
        names = [f"crd/{kind}.farebox.dev" for kind in kinds]
        plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)
        for namespace in (NAMESPACE, "farebox-models"):
            plane.kubectl("create", "namespace", namespace)
        yield plane


@pytest.fixture
async def client(own_plane: Plane) -> AsyncIterator[KubeClient]:
    async with await KubeClient.connect(own_plane.kubeconfig) as made:
        yield made
        for kind in ("APIKey", "InferenceService"):
            await made.request("DELETE", resource_path(kind, NAMESPACE))
        await made.request("DELETE", resource_path("Model"))


class Objects(Store[JSONObject]):
    """A store of the objects as they are, and what was removed from it."""

    def __init__(self) -> None:
        super().__init__("APIKey", lambda raw: raw, self._note)
        self.removed: list[ObjectKey] = []

    def _note(self, change: Change[JSONObject]) -> None:
        if change.new is None:
            self.removed.append(change.key)

    @property
    def now(self) -> dict[ObjectKey, JSONObject]:
        return dict(self.items())

    @property
    def names(self) -> set[str]:
        return {key.name for key in self}


async def until(what: str, condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for a condition; the loop goes on meanwhile."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.01)


async def create(client: KubeClient, *objects: JSONObject) -> None:
    """Create objects, and write their status as the operator does."""
    for each in objects:
        namespace, name = each["metadata"].get("namespace", ""), each["metadata"]["name"]
        body = each | {"metadata": {"name": name, "namespace": namespace}}
        await client.create(resource_path(each["kind"], namespace), body)
        if each.get("status"):
            path = resource_path(each["kind"], namespace, name, "status")
            await client.merge_patch(path, {"status": each["status"]})


async def patch(client: KubeClient, kind: str, name: str, spec: JSONObject) -> None:
    await client.merge_patch(resource_path(kind, NAMESPACE, name), {"spec": spec})


@pytest.fixture
async def followed(client: KubeClient) -> AsyncIterator[tuple[Reflector, Objects]]:
    """A running reflector of keys, which compares as good as never."""
    objects = Objects()
    reflector = Reflector(client, resource_path("APIKey"), objects)
    await create(client, api_key("before"))
    task = asyncio.create_task(reflector.run(3600))
    await reflector.synced.wait()
    yield reflector, objects
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_existing_objects_and_every_later_change_arrive(
    client: KubeClient, followed: tuple[Reflector, Objects]
) -> None:
    _, objects = followed
    assert objects.names == {"before"}
    await create(client, api_key("after"))
    await until("the new key arrives", lambda: objects.names == {"before", "after"})
    await patch(client, "APIKey", "before", {"disabled": True})
    key = ObjectKey(NAMESPACE, "before")
    await until("the change arrives", lambda: objects.now[key]["spec"].get("disabled"))
    await client.request("DELETE", resource_path("APIKey", NAMESPACE, "before"))
    await until("the deletion arrives", lambda: objects.names == {"after"})
    assert objects.removed == [key]


async def test_a_line_may_be_longer_than_any_buffer(
    client: KubeClient, followed: tuple[Reflector, Objects]
) -> None:
    _, objects = followed
    await create(client, api_key("long"))
    path = resource_path("APIKey", NAMESPACE, "long")
    note = {"metadata": {"annotations": {"note": "x" * 250_000}}}
    await client.merge_patch(path, note)
    key = ObjectKey(NAMESPACE, "long")
    await until("it arrives", lambda: key in objects.now and "annotations" in objects.now[key]["metadata"])
    await create(client, api_key("next"))
    await until("so is the next", lambda: "next" in objects.names)


async def test_after_an_outage_of_the_api_server_changes_arrive_again(
    client: KubeClient, own_plane: Plane, followed: tuple[Reflector, Objects]
) -> None:
    reflector, objects = followed
    await create(client, api_key("one"))
    await until("it arrives", lambda: "one" in objects.names)
    await asyncio.to_thread(own_plane.kill_apiserver)
    await asyncio.to_thread(own_plane.restart_apiserver)
    assert objects.names == {"before", "one"}, "an unreachable API server changes nothing"
    await client.request("DELETE", resource_path("APIKey", NAMESPACE, "before"))
    await create(client, api_key("two"))
    await until("what changed since arrives", lambda: objects.names == {"one", "two"})
    assert reflector.age < 3600


async def test_a_version_that_is_too_old_leads_to_a_new_list(client: KubeClient, own_plane: Plane) -> None:
    await create(client, api_key("a"))
    await asyncio.to_thread(own_plane.kill_apiserver)
    await asyncio.to_thread(own_plane.restart_apiserver)
    await create(client, api_key("b"))

    async def watch_from(version: str) -> int:
        with pytest.raises(KubeError) as caught:
            async for _ in client.watch(resource_path("APIKey"), version, 5):
                pass
        return caught.value.status

    assert await watch_from("1") == 410
    objects = Objects()
    reflector = Reflector(client, resource_path("APIKey"), objects, version="1")
    task = asyncio.create_task(reflector.run(3600))
    await until("it was listed", lambda: objects.names == {"a", "b"})
    assert int(reflector.version) > 1
    await create(client, api_key("c"))
    await until("and is watched again", lambda: objects.names == {"a", "b", "c"})
    task.cancel()


async def test_a_hung_api_server_is_waited_for(
    client: KubeClient, own_plane: Plane, followed: tuple[Reflector, Objects]
) -> None:
    _, objects = followed
    await asyncio.to_thread(own_plane.pause_apiserver)
    try:
        with pytest.raises(KubeUnreachable):
            await client.request("GET", resource_path("APIKey"), timeout=0.2)
        assert objects.names == {"before"}
    finally:
        await asyncio.to_thread(own_plane.resume_apiserver)
    await create(client, api_key("later"))
    await until("it arrives", lambda: "later" in objects.names)


async def test_a_comparison_finds_what_no_watch_reported(client: KubeClient) -> None:
    objects = Objects()
    reflector = Reflector(client, resource_path("APIKey"), objects)
    await create(client, api_key("stays"), api_key("goes"))
    await reflector.compare()
    await client.request("DELETE", resource_path("APIKey", NAMESPACE, "goes"))
    await patch(client, "APIKey", "stays", {"disabled": True})
    await reflector.compare()
    assert objects.names == {"stays"}
    assert objects.now[ObjectKey(NAMESPACE, "stays")]["spec"]["disabled"]


async def test_a_list_that_is_older_than_a_watch_undoes_nothing(client: KubeClient) -> None:
    objects = Objects()
    reflector = Reflector(client, resource_path("APIKey"), objects)
    await create(client, api_key("old"), api_key("gone"))
    page = await client.request("GET", resource_path("APIKey"))
    old, gone = sorted(page["items"], key=lambda raw: raw["metadata"]["name"], reverse=True)
    newest = str(int(page["metadata"]["resourceVersion"]) + 10)

    def at_newest(raw: JSONObject) -> JSONObject:
        return raw | {"metadata": raw["metadata"] | {"resourceVersion": newest}}

    reflector.on_event("MODIFIED", at_newest(old))
    reflector.on_event("DELETED", at_newest(gone))
    await reflector.compare()
    assert objects.names == {"old"}
    assert objects.now[ObjectKey(NAMESPACE, "old")]["metadata"]["resourceVersion"] == newest


async def test_a_list_of_many_pages_is_whole(client: KubeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_PAGE", 2)
    names = {f"key-{number}" for number in range(5)}
    await create(client, *(api_key(name) for name in names))
    objects = Objects()
    await Reflector(client, resource_path("APIKey"), objects).compare()
    assert objects.names == names


async def test_a_kind_that_is_not_there_yet_is_waited_for(client: KubeClient) -> None:
    reflector = Reflector(client, "/apis/farebox.dev/v1alpha1/nothings", Objects())
    task = asyncio.create_task(reflector.run(3600))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reflector.synced.wait(), 0.3)
    assert not task.done()
    task.cancel()


async def test_disabling_a_key_or_a_service_is_known_at_once(client: KubeClient) -> None:
    snapshot = GatewaySnapshot(SpendTracker(max_age=300))
    watch = ClusterWatch(client, snapshot)
    synced = asyncio.Event()
    task = asyncio.create_task(watch.run(synced.set))
    await create(client, model(), service(), api_key())
    await asyncio.wait_for(synced.wait(), 30)
    key_hash = api_key()["status"]["keyHash"]
    chat = (NAMESPACE, "chat")
    await until(
        "all is known",
        lambda: snapshot.key(key_hash) and snapshot.service(*chat) and snapshot.model("qwen3-8b"),
    )
    await until("it serves", lambda: snapshot.service(*chat).inactive == "")  # type: ignore[union-attr]
    assert snapshot.funds(snapshot.service(*chat).account).available is UNKNOWN  # type: ignore[union-attr]

    await patch(client, "APIKey", "ci", {"disabled": True})
    await until("the key is disabled", lambda: snapshot.key(key_hash).disabled)  # type: ignore[union-attr]
    await patch(client, "InferenceService", "chat", {"postpaid": False})
    await until("the service is switched off", lambda: not snapshot.service(*chat).postpaid)  # type: ignore[union-attr]
    status = {"phase": "Stopped", "stopReasons": ["Overdue"], "conditions": serving("False", "Overdue")}
    await client.merge_patch(
        resource_path("InferenceService", NAMESPACE, "chat", "status"), {"status": status}
    )
    await until("its status is known", lambda: snapshot.service(*chat).inactive == "Overdue")  # type: ignore[union-attr]
    await client.request("DELETE", resource_path("APIKey", NAMESPACE, "ci"))
    await until("the key is gone", lambda: snapshot.key(key_hash) is None)
    assert watch.age < 3600
    task.cancel()


# Credentials.


def secret(name: str, **data: str) -> JSONObject:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": encoded}


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_providers_token_is_read_when_needed_and_again_after_a_while(client: KubeClient) -> None:
    time = Time()
    credentials = Credentials(client, "farebox-models", time)
    path = core_path("secrets", "farebox-models")
    await client.create(path, secret("provider", token="sk-one\n"))
    ref = SecretRef("provider", "token")
    assert await credentials.token(ref) == "sk-one"
    await client.merge_patch(f"{path}/provider", {"data": secret("provider", token="sk-two")["data"]})
    assert await credentials.token(ref) == "sk-one"
    time.now += 31
    assert await credentials.token(ref) == "sk-two"
    assert "sk-" not in repr(credentials)


@pytest.mark.parametrize(
    ("name", "data"),
    [("missing", None), ("other-key", {"x": "sk"}), ("empty", {"token": ""}), ("odd", {"token": "a b"}),
     ("lines", {"token": "sk\r\nx-evil: 1"}), ("unicode", {"token": "sk-é"})],
)  # fmt: skip
async def test_the_error_of_a_secret_without_a_token_names_the_secret_and_shows_no_value(
    client: KubeClient, name: str, data: dict[str, str] | None
) -> None:
    if data is not None:
        await client.create(core_path("secrets", "farebox-models"), secret(name, **data))
    with pytest.raises(CredentialsUnavailable, match=f"Secret farebox-models/{name}") as caught:
        await Credentials(client, "farebox-models").token(SecretRef(name, "token"))
    assert "sk" not in str(caught.value)


async def test_the_token_stays_while_the_api_server_is_down(client: KubeClient, own_plane: Plane) -> None:
    time = Time()
    credentials = Credentials(client, "farebox-models", time)
    await client.create(core_path("secrets", "farebox-models"), secret("kept", token="sk-kept"))
    ref = SecretRef("kept", "token")
    assert await credentials.token(ref) == "sk-kept"
    time.now += 31
    await asyncio.to_thread(own_plane.kill_apiserver)
    try:
        assert await credentials.token(ref) == "sk-kept"
    finally:
        await asyncio.to_thread(own_plane.restart_apiserver)
