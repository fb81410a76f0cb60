"""The elector: one leader at a time, whatever the API server does; who cannot renew stops in time.

Against a small server that keeps resourceVersions as Kubernetes does and can hang, reset or refuse; the
operator's own tests fight over a Lease of a real one (tests/integration/test_operators.py).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from farebox.kube.client import KubeClient
from farebox.kube.lease import Elector
from farebox.kube.names import lease_path
from farebox.settings import OperatorSettings
from tests.kube.server import Answer, Server, hang, nonsense, refuse, reset, status

PATH = lease_path("system", "farebox")
DURATION = 2.0
"""Short, so that a lease runs out within a test; the rules are the same."""


def elector(client: KubeClient, identity: str, duration: float = DURATION) -> Elector:
    return Elector(client, "system", "farebox", identity, duration)


@asynccontextmanager
async def running(*electors: Elector) -> AsyncIterator[list["asyncio.Task[None]"]]:
    """Electors at work; those that still are at the end are cut off, as a killed process is."""
    tasks = [asyncio.create_task(each.run()) for each in electors]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Stalls:
    """How long the machine did not let this process run, in seconds: no elector can act in that time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.01
            await asyncio.sleep(0.01)
            self.seconds += loop.time() - due


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in a server
            await asyncio.sleep(0.005)


def spec(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.objects[PATH]["spec"]
    return found


def foreign(server: Server, holder: str, seconds: int = 1) -> None:
    """The lease in the hands of somebody who is not here."""
    server._version += 1
    server.objects[PATH] = {
        "metadata": {"name": "farebox", "namespace": "system", "resourceVersion": str(server._version)},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": seconds, "leaseTransitions": 3},
    }


async def test_the_first_replica_creates_the_lease(server: Server, client: KubeClient) -> None:
    only = elector(client, "a")
    async with running(only):
        await only.leading.wait()
        assert spec(server)["holderIdentity"] == "a"
        assert spec(server)["leaseTransitions"] == 0
        acquired, renewed = spec(server)["acquireTime"], spec(server)["renewTime"]
        await until(lambda: spec(server)["renewTime"] != renewed)
        assert spec(server)["acquireTime"] == acquired
        assert only.healthy()


async def test_one_of_many_replicas_leads(server: Server, client: KubeClient) -> None:
    many = [elector(client, f"e{number}") for number in range(8)]
    async with running(*many):
        await until(lambda: any(each.leading.is_set() for each in many))
        first = server.objects[PATH]["metadata"]["resourceVersion"]
        await until(lambda: int(server.objects[PATH]["metadata"]["resourceVersion"]) > int(first) + 8)
        (leader,) = [each for each in many if each.leading.is_set()]
        assert spec(server)["holderIdentity"] == leader.identity
        assert all(each.healthy() for each in many), "a standby is healthy"


async def test_another_replica_leads_once_the_lease_of_a_dead_holder_expires(
    server: Server, client: KubeClient
) -> None:
    foreign(server, "gone", seconds=1)
    loop = asyncio.get_running_loop()
    began, next_one = loop.time(), elector(client, "b")
    async with running(next_one):
        await next_one.leading.wait()
    # Not by the times in the record, which another clock wrote, but by its not having changed here.
    assert loop.time() - began >= 1
    assert spec(server)["holderIdentity"] == "b"
    assert spec(server)["leaseTransitions"] == 4


def test_b21_the_lease_settings_allow_a_takeover_within_15_s(client: KubeClient) -> None:
    next_one = elector(client, "b", OperatorSettings.model_fields["lease_seconds"].default)
    # It sees the last renewal up to a period late, and the end of the lease up to another.
    assert next_one.duration + 2 * next_one.period <= 15


async def test_a_renewed_lease_is_not_taken(server: Server, client: KubeClient) -> None:
    holder, standby = elector(client, "a"), elector(client, "b")
    async with running(holder):
        await holder.leading.wait()
        async with running(standby):
            # Long past the duration of any one record.
            first = int(server.objects[PATH]["metadata"]["resourceVersion"])
            await until(lambda: int(server.objects[PATH]["metadata"]["resourceVersion"]) > first + 8)
            assert holder.leading.is_set()
            assert not standby.leading.is_set()


async def test_a_lease_given_back_is_taken_at_once(server: Server, client: KubeClient) -> None:
    holder, standby = elector(client, "a", duration=60), elector(client, "b", duration=3)
    async with running(holder):
        await holder.leading.wait()
        async with running(standby):
            await holder.release()
            assert not holder.leading.is_set()
            await asyncio.wait_for(standby.leading.wait(), 60)
            assert spec(server)["holderIdentity"] == "b"


@pytest.mark.parametrize("trouble", [hang, reset, refuse, nonsense])
async def test_a_leader_that_cannot_renew_stops_before_its_lease_expires(
    server: Server, client: KubeClient, trouble: Answer
) -> None:
    leader = elector(client, "a", duration=3)
    loop, stalls = asyncio.get_running_loop(), Stalls()
    async with running(leader) as (task,):
        await leader.leading.wait()
        await until(lambda: len(server.requests) > 2)
        server.trouble = trouble
        last, watching = loop.time(), asyncio.create_task(stalls.watch())
        await asyncio.wait_for(task, 60)
        assert not leader.leading.is_set()
        # The last renewal that it knows of is older than `last`, and others wait 3 s from it.
        assert loop.time() - last - stalls.seconds < leader.duration
        watching.cancel()
    assert spec(server)["holderIdentity"] == "a", "it was not given back"


async def test_a_short_outage_does_not_cost_the_lease(server: Server, client: KubeClient) -> None:
    leader = elector(client, "a", duration=3)
    async with running(leader) as (task,):
        await leader.leading.wait()
        for trouble in (refuse, reset):
            server.trouble = trouble
            seen = len(server.requests)
            await until(lambda seen=seen: len(server.requests) > seen)  # type: ignore[misc]
            server.trouble = None
            renewed = spec(server)["renewTime"]
            await until(lambda renewed=renewed: spec(server)["renewTime"] != renewed)  # type: ignore[misc]
        assert leader.leading.is_set()
        assert not task.done()


async def test_a_write_whose_answer_was_lost_does_not_lose_the_lease(
    server: Server, client: KubeClient
) -> None:
    leader = elector(client, "a", duration=3)
    lost: list[str] = []

    async def written_but_cut(request: web.Request) -> web.StreamResponse:
        server.trouble = None
        body = await request.json()
        lost.append(request.method)
        server._store(request.path, body, new=False)
        return await reset(request)

    async with running(leader) as (task,):
        await leader.leading.wait()
        server.trouble = written_but_cut
        await until(lambda: bool(lost))
        # Its next write is based on a version that is not the newest any more: it reads, and goes on.
        renewed = spec(server)["renewTime"]
        await until(lambda: spec(server)["renewTime"] != renewed)
        assert leader.leading.is_set()
        assert not task.done()
        assert spec(server)["leaseTransitions"] == 0


async def test_a_lease_that_another_took_meanwhile_is_lost_at_once(
    server: Server, client: KubeClient
) -> None:
    leader = elector(client, "a", duration=3)
    async with running(leader) as (task,):
        await leader.leading.wait()
        foreign(server, "b", seconds=60)
        await asyncio.wait_for(task, 60)
        assert not leader.leading.is_set()
    assert spec(server)["holderIdentity"] == "b"


async def test_a_replica_that_slept_past_its_deadline_is_unhealthy_before_any_request(
    server: Server, client: KubeClient
) -> None:
    time = [0.0]
    leader = Elector(client, "system", "farebox", "a", 10.0, clock=lambda: time[0])
    async with running(leader):
        await leader.leading.wait()
        assert leader.healthy()
        time[0] = leader.renew_deadline - 0.1
        assert leader.healthy()
        time[0] = leader.renew_deadline
        assert not leader.healthy()
        assert leader.leading.is_set(), "the process was asleep, and could not note it"


async def test_the_bookmark_is_left_for_the_next_leader(server: Server, client: KubeClient) -> None:
    notes = {"a": "first"}
    first, second = elector(client, "a", duration=60), elector(client, "b", duration=3)
    first.bookmark, second.bookmark = lambda: notes.get("a"), lambda: notes.get("b")
    assert await second.read_bookmark() == ""
    for moment in ("made", "renewed", "given back"):
        if moment == "given back":
            await first.release()
        else:
            assert await first._attempt()
            first.leading.set()
        assert await second.read_bookmark() == ("" if moment == "made" else "first")
    async with running(second):
        await second.leading.wait()
        # It has nothing to say yet, and takes nothing away.
        assert await second.read_bookmark() == second.inherited_bookmark == "first"
        notes["b"] = "second"
        await until(lambda: "second" in str(server.objects[PATH]["metadata"]))
        assert second.inherited_bookmark == "first", "its own bookmark is not inherited"
    assert await first.read_bookmark() == "second"


async def test_a_late_write_cannot_take_the_lease(server: Server, client: KubeClient) -> None:
    foreign(server, "gone")
    late = elector(client, "late")
    assert not await late._attempt()

    async def after_another(request: web.Request) -> web.StreamResponse:
        if request.method == "PUT":
            server.trouble = None
            foreign(server, "quick", seconds=60)
            return status(409, "Conflict", "the object has been modified")
        return server._found(request.path)

    server.trouble = after_another
    late._observed = (server.objects[PATH]["metadata"]["resourceVersion"], late.clock() - 60)
    assert not await late._attempt()
    assert spec(server)["holderIdentity"] == "quick"
