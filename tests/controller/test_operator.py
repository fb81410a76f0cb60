"""The operator and its workers: no key is lost, however its reconcile ends, and none delays another."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import uvloop
from aiohttp import web

from farebox.controller.operator import Operator, ignore_open_generators
from farebox.controller.queue import Key, Kind, Priority, WorkQueue, account_key, service_key
from farebox.controller.reconcile.services import reconcile_service
from farebox.domain.keys import ObjectKey
from farebox.errors import Invalid, KubeError
from farebox.meterapi.client import MeterClient
from farebox.meterapi.types import AccountBalance, QuotaBalance
from farebox.settings import OperatorSettings
from tests.controller import objects
from tests.kube.server import JSONObject, Server, client_of, serving, status
from tests.support.api import manifest

ACCOUNT = ObjectKey("team-a", "acme")


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


async def test_b21_a_key_is_retried_once_a_late_lease_is_renewed(server: Server) -> None:
    """B21 forbids the write. No other replica makes it, because the Lease was never lost."""
    patched = asyncio.Event()

    async def patch(request: web.Request) -> web.StreamResponse:
        patched.set()
        body = manifest("BillingAccount", ACCOUNT.name, {"currency": "USD"}, ACCOUNT.namespace)
        body["metadata"] |= {"resourceVersion": "2", "uid": "u-1"}
        return web.json_response(body | await request.json())

    server.trouble = patch
    async with client_of(server) as client, MeterClient("http://127.0.0.1:9") as ledger:
        operator = Operator(OperatorSettings(), client, ledger)
        account = manifest("BillingAccount", ACCOUNT.name, {"currency": "USD"}, ACCOUNT.namespace)
        account["metadata"] |= {"resourceVersion": "1", "uid": "u-1", "generation": 1}
        operator.cache.accounts.put(account)
        refused = asyncio.Event()
        now = 1000.0

        def clock() -> float:
            refused.set()
            return now

        operator.elector.clock = clock
        operator.elector.leading.set()
        worker = asyncio.create_task(operator.workers.work(Priority.LOW))
        try:
            async with asyncio.timeout(20):
                operator.queue.add(account_key(ACCOUNT))
                await refused.wait()
                assert not patched.is_set()
                now = 1.0
                await patched.wait()
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)


async def test_a_top_up_brings_back_what_a_lower_credit_limit_stopped(server: Server) -> None:
    """B3: the account's state turned by an edit, between two balances that leave it as it was."""

    def account(version: int, limit: str) -> JSONObject:
        spec = {"currency": "USD", "creditLimit": limit}
        body = manifest("BillingAccount", ACCOUNT.name, spec, ACCOUNT.namespace)
        identity = {"uid": "u-1", "resourceVersion": str(version), "generation": version}
        return body | {"metadata": body["metadata"] | identity}

    async with client_of(server) as client, MeterClient("http://127.0.0.1:9") as ledger:
        operator = Operator(OperatorSettings(), client, ledger)
        service = service_key(ObjectKey(objects.TEAM, "chat"))
        operator.cache.services.put(objects.service("chat"))

        def is_queued_after(balance: int, sequence: int) -> bool:
            update = [AccountBalance(ACCOUNT, "USD", balance, 0, sequence)]
            for changed in operator.balances.update(update, complete=True):
                operator.dispatcher.on_balance(changed)
            return service in taken()

        def taken() -> set[Key]:
            keys = set()
            while (found := operator.queue._next(Priority.LOW)) is not None:
                keys.add(found[0])
                operator.queue.done(found[0])
            return keys

        operator.resync.reflectors[Kind.ACCOUNT].on_event("ADDED", account(1, "100"))
        assert is_queued_after(-50, 1)
        assert not is_queued_after(-60, 2), "a figure alone"
        operator.resync.reflectors[Kind.ACCOUNT].on_event("MODIFIED", account(2, "0"))
        assert service in taken()
        assert is_queued_after(+40, 3)


@pytest.mark.parametrize("kind", ["Deployment", "Service"])
async def test_b23_a_namespace_of_backends_that_is_missing_is_named(server: Server, kind: str) -> None:
    """As on a laptop, where it was never applied."""

    async def missing(request: web.Request) -> web.StreamResponse:
        return status(404, "NotFound", 'namespaces "farebox-models" not found')

    server.trouble = missing
    async with client_of(server) as client, MeterClient("http://127.0.0.1:9") as ledger:
        writer = Operator(OperatorSettings(), client, ledger).context.writer
        writer.may_write = lambda: True
        body = {"metadata": {"namespace": "farebox-models", "name": "m-llm"}}
        create = writer.create_deployment if kind == "Deployment" else writer.create_endpoint
        with pytest.raises(Invalid, match=r"Namespace farebox-models does not exist. Create it"):
            await create(body, Priority.HIGH)


async def test_b23_a_refused_backend_is_reported_until_it_is_created(server: Server) -> None:
    """A webhook is down: the Deployment was deleted, and the service must not say that it serves (B23)."""
    serving = {
        "type": "Serving",
        "status": "True",
        "reason": "Serving",
        "lastTransitionTime": "2026-03-01T12:00:00Z",
    }
    running = {"phase": "Running", "firstRunningAt": "2026-03-01T12:00:00Z", "conditions": [serving]}
    stored = objects.service("own", spec={"dedicated": True, "postpaid": True}, status=running)

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/deployments"):
            return status(500, "InternalError", "failed calling webhook")
        stored["status"] |= (await request.json())["status"]
        stored["metadata"]["resourceVersion"] = "2"
        return web.json_response(stored)

    server.trouble = answer
    key = service_key(ObjectKey(objects.TEAM, "own"))
    async with client_of(server) as client, MeterClient("http://127.0.0.1:9") as ledger:
        operator = Operator(OperatorSettings(), client, ledger)
        operator.context.writer.may_write = lambda: True
        operator.cache.models.put(objects.model())
        operator.cache.accounts.put(objects.account())
        operator.cache.services.put(stored)
        operator.balances.update([AccountBalance(ACCOUNT, "USD", 5, 0, 1)], complete=True)
        with pytest.raises(KubeError, match="failed calling webhook"):
            await reconcile_service(operator.context, key, Priority.LOW)
    said = {each["type"]: (each["status"], each["reason"]) for each in stored["status"]["conditions"]}
    assert stored["status"]["phase"] == "Running"
    assert (said["Serving"], said["Ready"]) == (("False", "NoReplicaReady"), ("False", "Progressing"))


class Clock:
    """The event loop's seconds, and the time of day, which only a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def utc_now(self) -> datetime:
        return datetime(2027, 1, 15, tzinfo=UTC) + timedelta(seconds=int(self.seconds))


async def test_b6_a_trial_stops_when_its_quota_ends_though_nothing_else_happens(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = objects.service("chat", spec={"trial": True})
    stored["status"] = {}

    async def patch(request: web.Request) -> web.StreamResponse:
        stored["status"] |= (await request.json())["status"]
        version = int(stored["metadata"]["resourceVersion"]) + 1
        stored["metadata"]["resourceVersion"] = str(version)
        return web.json_response(stored)

    server.trouble = patch
    clock, key = Clock(), service_key(ObjectKey(objects.TEAM, "chat"))
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
    async with client_of(server) as client, MeterClient("http://127.0.0.1:9") as ledger:
        operator = Operator(OperatorSettings(), client, ledger)
        operator.context.now = clock.utc_now
        operator.context.writer.may_write = lambda: True
        operator.cache.models.put(objects.model())
        operator.cache.accounts.put(objects.account())
        operator.cache.services.put(stored)
        ends = clock.utc_now() + timedelta(hours=1, seconds=20, microseconds=5)
        operator.balances.update([AccountBalance(ACCOUNT, "USD", 0, 0, 1)], complete=True)
        list(operator.entitlements.update_quotas([QuotaBalance(ACCOUNT, "qwen3-8b", 100, 0, ends, 1)]))
        looks = []

        async def look() -> None:
            for _ in range(3):
                await asyncio.sleep(0)
            while (found := operator.queue._next(Priority.LOW)) is not None:
                if found[0] == key:
                    looks.append(clock.utc_now())
                    await reconcile_service(operator.context, key, Priority.LOW)
                operator.queue.done(found[0])

        operator.queue.add(key)
        await look()
        assert stored["status"]["phase"] == "Creating"
        while (now := clock.utc_now()) < ends:
            assert stored["status"]["stopReasons"] == [], now
            clock.seconds += 1
            await look()
        assert stored["status"]["stopReasons"] == ["FreeQuotaExpired"]
        # Once an hour, and at the end; nothing is due any more.
        assert [at - looks[0] for at in looks[1:]] == [timedelta(hours=1), timedelta(hours=1, seconds=21)]
        clock.seconds += 7 * 86400
        await look()
        assert len(looks) == 3


async def test_workers_take_turns_so_that_reconciles_without_a_wait_delay_no_other_task() -> None:
    queue, passes = WorkQueue(), list[Key]()
    keys = [service_key(ObjectKey("team-a", f"s{number}")) for number in range(40)]
    for each in keys:
        queue.add(each, Priority.LOW)

    async def work() -> None:
        while True:
            key, _ = await queue.get()
            passes.append(key)
            queue.done(key)

    workers = [asyncio.create_task(work()) for _ in range(8)]
    try:
        while len(passes) < len(keys):
            before = len(passes)
            await asyncio.sleep(0)
            assert len(passes) - before <= 1
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    assert passes == keys


def test_a_generator_that_is_left_open_at_the_end_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """As Kopf's are when the Lease is lost while one tells something."""
    left: list[AsyncIterator[None]] = []

    async def watch() -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("generator didn't stop after athrow()")

    async def lose_the_lease() -> None:
        asyncio.get_running_loop().set_exception_handler(ignore_open_generators)
        left.append(watch())
        await anext(left[0])
        asyncio.get_running_loop().call_exception_handler({"message": "what else goes wrong"})

    uvloop.run(lose_the_lease())
    assert [record.getMessage() for record in caplog.records] == ["what else goes wrong"]
