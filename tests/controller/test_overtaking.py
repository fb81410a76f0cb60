"""Every service ends in its state, whatever the order of answers and events, without a resync or a restart.

A small cluster with a Deployment controller of its own takes its time over everything. Requests are carried
out some time after they arrive and answered later still, and some answers are lost. Each watch reports
changes with a delay of its own, and loses its place at times. Meanwhile users edit services, and scale and
delete Deployments. Kopf's kinds are filtered when they are read (controller/sources/kopf_filter.py), and
reach the operator a while after that.
"""

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from farebox.controller.operator import Operator
from farebox.controller.queue import Kind, Priority
from farebox.domain.keys import ObjectKey
from farebox.errors import KubeError, KubeUnreachable
from farebox.kube.names import dedicated_backend_name, key_of, shared_backend_name
from farebox.meterapi.client import MeterClient
from farebox.meterapi.types import AccountBalance
from farebox.settings import OperatorSettings
from tests.api.samples import changed
from tests.controller import objects
from tests.controller.objects import BACKENDS, TEAM, JSONObject
from tests.kube.server import client_of, refuse, reset, serving, status

ACCOUNT, OWN, SHARED = (ObjectKey(TEAM, name) for name in ("acme", "own", "shared"))
MODEL = ObjectKey("", "qwen3-8b")
OWN_BACKEND = ObjectKey(BACKENDS, dedicated_backend_name(OWN))
SHARED_BACKEND = ObjectKey(BACKENDS, shared_backend_name(MODEL.name))
KINDS = {
    "inferenceservices": Kind.SERVICE,
    "billingaccounts": Kind.ACCOUNT,
    "models": Kind.MODEL,
    "deployments": Kind.DEPLOYMENT,
    "services": Kind.ENDPOINT,
    "topups": Kind.TOPUP,
    "apikeys": Kind.APIKEY,
    "namespaces": Kind.NAMESPACE,
}
BACKEND_KINDS = (Kind.DEPLOYMENT, Kind.ENDPOINT)
"""Kinds that a reflector watches; Kopf watches the others."""
SECONDS = 30.0


@dataclass
class Cluster:
    """Objects by kind and key, as the API server has them, and what its watches have not reported yet."""

    chance: random.Random
    objects: dict[tuple[Kind, ObjectKey], JSONObject] = field(default_factory=dict)
    unreported: dict[Kind, asyncio.Queue[tuple[str, JSONObject]]] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    version: int = 100

    def __post_init__(self) -> None:
        self.unreported = {kind: asyncio.Queue() for kind in KINDS.values()}

    async def while_passes(self) -> None:
        """Nothing, a few turns of the loop, or some milliseconds."""
        for _ in range(self.chance.randrange(4)):
            await asyncio.sleep(self.chance.choice((0, 0, 0.001, 0.004)))

    def soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # -- the API server ---------------------------------------------------------------------------------

    def commit(self, kind: Kind, raw: JSONObject, spec_changed: bool) -> JSONObject:
        """Store an object, and let its watch report it."""
        self.version += 1
        key, known = key_of(raw), self.objects.get((kind, key_of(raw)))
        generation = known["metadata"]["generation"] + spec_changed if known else 1
        identity = {"resourceVersion": str(self.version), "generation": generation}
        if known is None:
            identity |= {"uid": f"uid-{self.version}", "creationTimestamp": "2026-03-01T12:00:00Z"}
        stored = changed(raw, {"metadata": identity})
        self.objects[kind, key] = stored
        self.unreported[kind].put_nowait(("MODIFIED" if known else "ADDED", stored))
        if kind is Kind.DEPLOYMENT and (spec_changed or known is None):
            self.soon(self._roll_out(key, stored["metadata"]["uid"]))
        return stored

    def delete(self, kind: Kind, key: ObjectKey) -> None:
        gone = self.objects.pop((kind, key), None)
        if gone is not None:
            self.version += 1
            self.unreported[kind].put_nowait(
                ("DELETED", changed(gone, {"metadata": {"resourceVersion": str(self.version)}}))
            )

    def edit(self, kind: Kind, key: ObjectKey, spec: JSONObject) -> None:
        if (found := self.objects.get((kind, key))) is not None:
            self.commit(kind, changed(found, {"spec": spec}), spec_changed=True)

    async def _roll_out(self, key: ObjectKey, uid: str) -> None:
        """The Deployment controller: it sees the new spec, then pods come or go, then they are ready."""
        for step in range(3):
            await self.while_passes()
            found = self.objects.get((Kind.DEPLOYMENT, key))
            if found is None or found["metadata"]["uid"] != uid:
                return
            wanted, before = found["spec"]["replicas"], found.get("status") or {}
            said = {"observedGeneration": found["metadata"]["generation"]}
            if step > 0:
                said |= {"replicas": wanted, "updatedReplicas": wanted}
                said["readyReplicas"] = wanted if step > 1 else min(wanted, before.get("readyReplicas", 0))
            self.commit(Kind.DEPLOYMENT, changed(found, {"status": said}), spec_changed=False)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self.chance.random() < 0.05:
            return await refuse(request)
        body = {} if request.method == "GET" else await request.json()
        await self.while_passes()
        path = request.path.split("/")
        answer = self._read_path(path) if not body else self._write(request.method, path, body)
        await self.while_passes()
        return await reset(request) if self.chance.random() < 0.05 else answer

    def _read_path(self, path: list[str]) -> web.Response:
        kind = KINDS.get(path[-1])
        if kind is None:
            found = self.objects.get((KINDS[path[-2]], ObjectKey(path[-3], path[-1])))
            return web.json_response(found) if found else status(404, "NotFound", "it is gone")
        items = [raw for (of, _), raw in self.objects.items() if of is kind]
        return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": items})

    def _write(self, method: str, path: list[str], body: JSONObject) -> web.Response:
        subresource = path.pop() if path[-1] in ("status", "scale") else ""
        if method == "POST":
            kind = KINDS[path[-1]]
            if (kind, key_of(body)) in self.objects:
                return status(409, "AlreadyExists", "it is there")
            return web.json_response(self.commit(kind, body, spec_changed=True))
        kind, name = KINDS[path[-2]], path[-1]
        key = ObjectKey(path[path.index("namespaces") + 1] if "namespaces" in path else "", name)
        found = self.objects.get((kind, key))
        if found is None:
            return status(404, "NotFound", "it is gone")
        version = found["metadata"]["resourceVersion"]
        if method == "DELETE":
            if body["preconditions"]["uid"] == found["metadata"]["uid"]:
                self.delete(kind, key)
            return web.json_response({})
        if body["metadata"]["resourceVersion"] != version:
            return status(409, "Conflict", "the object has been modified")
        if subresource == "scale":
            stored = self.commit(kind, changed(found, {"spec": body["spec"]}), spec_changed=True)
            return web.json_response({"metadata": {"resourceVersion": stored["metadata"]["resourceVersion"]}})
        if subresource == "status":
            return web.json_response(
                self.commit(kind, changed(found, {"status": body["status"]}), spec_changed=False)
            )
        return web.json_response(
            self.commit(kind, changed(found, {"metadata": body["metadata"], "spec": body["spec"]}), True)
        )

    # -- the watches ------------------------------------------------------------------------------------

    async def report(self, kind: Kind, operator: Operator) -> None:
        """Report changes as a watch does: in their order, with random delays."""
        reading: asyncio.Queue[tuple[str, JSONObject]] = asyncio.Queue()
        self.soon(self._deliver(kind, operator, reading))
        if kind in BACKEND_KINDS:
            since = int(operator.resync.reflectors[kind].version)
        else:
            await self.while_passes()
            since = self.version
            for (of, _), raw in list(self.objects.items()):
                if of is kind:
                    self._read(kind, operator, "ADDED", raw, reading)
        while True:
            type_, raw = await self.unreported[kind].get()
            await self.while_passes()
            if kind in BACKEND_KINDS and self.chance.random() < 0.05:
                since = await relisted(kind, operator)
            if int(raw["metadata"]["resourceVersion"]) > since:
                self._read(kind, operator, type_, raw, reading)

    @staticmethod
    def _read(
        kind: Kind,
        operator: Operator,
        type_: str,
        raw: JSONObject,
        reading: asyncio.Queue[tuple[str, JSONObject]],
    ) -> None:
        known = operator.cache.store(kind).version(key_of(raw))
        if kind in BACKEND_KINDS or type_ == "DELETED" or known < int(raw["metadata"]["resourceVersion"]):
            reading.put_nowait((type_, raw))

    async def _deliver(
        self, kind: Kind, operator: Operator, reading: asyncio.Queue[tuple[str, JSONObject]]
    ) -> None:
        while True:
            type_, raw = await reading.get()
            if kind not in BACKEND_KINDS:
                await self.while_passes()
            operator.resync.reflectors[kind].on_event(type_, raw)


async def relisted(kind: Kind, operator: Operator) -> int:
    """List again, as a watch that lost its place does; see Reflector."""
    while True:
        try:
            await operator.resync.reflectors[kind].relist(operator.dispatcher.on_change)
            return int(operator.resync.reflectors[kind].version)
        except (KubeError, KubeUnreachable):
            await asyncio.sleep(0.001)


async def initial_list(operator: Operator) -> None:
    """Make the initial list. A process that cannot list would restart."""
    while True:
        try:
            return await operator.resync.initial_list()
        except (KubeError, KubeUnreachable):
            await asyncio.sleep(0.001)


def amiss(cluster: Cluster) -> str:
    """What is not as it should be in the end; "" if all is."""
    own, shared = (cluster.objects[Kind.SERVICE, key] for key in (OWN, SHARED))
    of_model = cluster.objects[Kind.MODEL, MODEL]["spec"]["serving"]["deployment"]["replicas"]
    for backend, replicas in ((OWN_BACKEND, own["spec"]["replicas"]), (SHARED_BACKEND, of_model)):
        found = cluster.objects.get((Kind.DEPLOYMENT, backend), {"spec": {}})
        has = (found["spec"].get("replicas"), (found.get("status") or {}).get("readyReplicas"))
        if has != (replicas, replicas):
            return f"{backend} has {has}, not {replicas}"
    for service, replicas in ((own, own["spec"]["replicas"]), (shared, of_model)):
        reported = service.get("status") or {}
        ready = {each["type"]: each["status"] for each in reported.get("conditions", ())}.get("Ready")
        if (reported.get("phase"), ready, reported.get("readyReplicas")) != ("Running", "True", replicas):
            return f"{service['metadata']['name']}: {reported}"
    return ""


def edit_something(cluster: Cluster) -> None:
    """An owner edits, or a hand meddles with a Deployment."""
    chance = cluster.chance
    match chance.randrange(6):
        case 0:
            cluster.edit(Kind.SERVICE, OWN, {"replicas": chance.randint(1, 3)})
        case 1:
            cluster.edit(Kind.SERVICE, OWN, {"limits": {"rpm": chance.randint(1, 9)}})
        case 2:
            cluster.edit(Kind.SERVICE, chance.choice((OWN, SHARED)), {"postpaid": chance.random() < 0.5})
        case 3:
            backend = chance.choice((OWN_BACKEND, SHARED_BACKEND))
            cluster.edit(Kind.DEPLOYMENT, backend, {"replicas": chance.randint(0, 4)})
        case 4:
            cluster.delete(Kind.DEPLOYMENT, chance.choice((OWN_BACKEND, SHARED_BACKEND)))
        case 5:
            cluster.delete(Kind.ENDPOINT, chance.choice((OWN_BACKEND, SHARED_BACKEND)))


async def people(cluster: Cluster) -> None:
    """They create services, change their mind, and want them all to run in the end."""
    own = {"type": "Custom", "postpaid": True, "dedicated": True, "replicas": 1}
    for name, spec in (("shared", {"postpaid": True}), ("own", own)):
        cluster.commit(Kind.SERVICE, objects.service(name, spec=spec), spec_changed=True)
        await cluster.while_passes()
    for _ in range(cluster.chance.randrange(10)):
        await cluster.while_passes()
        edit_something(cluster)
    for key in (OWN, SHARED):
        await cluster.while_passes()
        cluster.edit(Kind.SERVICE, key, {"postpaid": True})


@pytest.mark.parametrize("seed", range(25))
async def test_every_service_ends_in_its_state_whatever_the_order_of_answers_and_events(seed: int) -> None:
    cluster = Cluster(random.Random(seed))
    cluster.commit(Kind.MODEL, objects.model(), spec_changed=True)
    cluster.commit(Kind.ACCOUNT, objects.account(), spec_changed=True)
    async with serving() as server, client_of(server) as client, MeterClient("http://127.0.0.1:9") as ledger:
        server.trouble = cluster.answer
        operator = Operator(OperatorSettings(), client, ledger)
        operator.context.writer.may_write = lambda: True
        operator.balances.update([AccountBalance(ACCOUNT, "USD", 5, 0, 1)], complete=True)
        at_work = asyncio.ensure_future(people(cluster))
        await initial_list(operator)
        workers = [
            asyncio.create_task(operator.workers.work(priority))
            for priority in (Priority.HIGH, Priority.LOW, Priority.LOW, Priority.LOW)
        ]
        for kind in KINDS.values():
            cluster.soon(cluster.report(kind, operator))
        try:
            operator.dispatcher.enqueue_all()
            await at_work
            deadline = asyncio.get_running_loop().time() + SECONDS
            while wrong := amiss(cluster):
                assert asyncio.get_running_loop().time() < deadline, wrong
                await asyncio.sleep(0.005)
        finally:
            tasks = (*workers, *cluster.tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
