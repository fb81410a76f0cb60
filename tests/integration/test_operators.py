"""Operators killed, paused, doubled, gone or deaf, on a plane of their own (B20, B21, B24)."""

import random
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from farebox.kube.names import core_path, deployment_path, shared_backend_name
from tests.integration.dedicated_stack import (
    ENV,
    LEASE,
    backends,
    dedicated_tenant,
    holder,
    leads,
    metrics,
    mixed_services,
    operators,
    start,
    wait_all,
    wait_rest,
    writes,
    written,
)
from tests.integration.tenants import SECONDS, Tenant
from tests.support.api import path_of
from tests.support.processes import Process
from tests.support.proxy import Proxy, proxied
from tests.support.stack import BACKENDS, SYSTEM, Stack
from tests.support.waiting import wait_for

pytestmark = pytest.mark.plane
tenant = dedicated_tenant


# -- B20: killed at any moment --------------------------------------------------------------------------


def test_b20_the_next_operator_after_a_kill_finishes_the_job(tenant: Tenant, dedicated_stack: Stack) -> None:
    chance = random.Random(20)
    with operators(dedicated_stack, 1) as (operator,):
        model, names = mixed_services(tenant)
        wait_all(tenant, model, names, running=True)
        for running in (False, True, False, True):
            before = writes(operator)
            if running:
                tenant.topup("10")
            else:
                tenant.charge("one", model, 10)
            # Between any two of the writes that the change takes, or before the first.
            wait_writes(tenant, operator, before, count=chance.randrange(0, 9), running=running)
            operator.kill()
            operator = start(dedicated_stack)
            wait_all(tenant, model, names, running=running)
        wait_rest(dedicated_stack, operator)


def wait_writes(tenant: Tenant, operator: Process, before: float, count: int, running: bool) -> None:
    """Wait until an operator has written `count` times since `before`, or has finished with fewer writes.

    Finished means that every service that pays as it goes has reached its new phase, by writes of this
    operator: at rest before the change, it would satisfy neither.
    """
    phase = "Running" if running else "Stopped"

    def look() -> bool:
        done = writes(operator) - before
        phases = {tenant.status(name).get("phase") for name in ("one", "two", "three", "shared")}
        return done >= count or (done > 0 and phases == {phase})

    wait_for(f"{count} writes, or all services are {phase}", look, SECONDS)


def test_b20_a_cluster_at_rest_sees_no_writes_from_a_new_operator_either(
    tenant: Tenant, dedicated_stack: Stack
) -> None:
    assert dedicated_stack.meter is not None
    with operators(dedicated_stack, 1) as (operator,):
        model, names = mixed_services(tenant)
        # What stands still is looked at as well: an overdue account, and a shared backend at zero.
        idle = tenant.model("idle")
        tenant.account("poor")
        tenant.service("waiting", model, account="poor")
        tenant.service("idle", idle, account="poor", dedicated=False)
        wait_all(tenant, model, names, running=True)
        tenant.wait_stopped("waiting", "Overdue")
        tenant.wait_state("idle", "Stopped", "Overdue")
        tenant.wait_account(services={"notEnabled": 0, "creating": 0, "running": 4, "stopped": 1})
        rested = wait_rest(dedicated_stack, operator)
        operator.stop()
        # Balances come a moment after the lists: that they are not there yet is not worth a write.
        dedicated_stack.meter.pause()
        try:
            operator = dedicated_stack.start_operator(**ENV, FAREBOX_SWEEP_SECONDS="0.5")
            wait_for("it leads", lambda: leads(operator), SECONDS)
        finally:
            dedicated_stack.meter.resume()
        # The same plan again, of the same operator: sweeps look at every object.
        passes = 'workqueue_work_duration_seconds_count{kind="InferenceService"}'
        services = 7
        wait_for("every service had four passes", lambda: metrics(operator)[passes] >= 4 * services, SECONDS)
        now = written(dedicated_stack)
        changed = [path for path in rested.keys() | now.keys() if rested.get(path) != now.get(path)]
        assert (writes(operator), changed) == (0, [])


# -- B21: two operators, one acts -----------------------------------------------------------------------


def leader_and_standby(both: list[Process]) -> tuple[Process, Process]:
    wait_for("one leads", lambda: sum(leads(process) for process in both) == 1, SECONDS)
    first, second = both
    return (first, second) if leads(first) else (second, first)


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_b21_the_other_takes_over(tenant: Tenant, dedicated_stack: Stack, end: str) -> None:
    with operators(dedicated_stack, 2) as both:
        leader, standby = leader_and_standby(both)
        model = tenant.model()
        tenant.account(balance="10")
        tenant.service("own", model)
        tenant.wait_running("own", 1)
        assert standby.http("/readyz")[0] == 200
        assert writes(standby) == 0
        transitions = dedicated_stack.api.get(LEASE)["spec"]["leaseTransitions"]
        was = holder(dedicated_stack)
        if end == "SIGKILL":
            leader.kill()
        else:
            assert leader.stop() == 0
        tenant.charge("own", model, 10)
        wait_for("the other leads", lambda: leads(standby), SECONDS)
        tenant.wait_stopped("own", "Overdue")
        assert holder(dedicated_stack) != was
        assert dedicated_stack.api.get(LEASE)["spec"]["leaseTransitions"] > transitions


def test_b21_a_paused_leader_that_wakes_up_writes_nothing(tenant: Tenant, dedicated_stack: Stack) -> None:
    with operators(dedicated_stack, 2) as both, ThreadPoolExecutor(1) as asking:
        leader, standby = leader_and_standby(both)
        model = tenant.model()
        tenant.account(balance="10")
        tenant.service("own", model)
        tenant.wait_running("own", 1)
        wait_rest(dedicated_stack, leader)
        leader.pause()
        try:
            # Work, and a question, that the paused one finds in its sockets when it wakes up.
            health = asking.submit(leader.http, "/healthz", SECONDS)
            tenant.charge("own", model, 10)
            wait_for("the other leads", lambda: leads(standby), SECONDS)
            new = holder(dedicated_stack)
            tenant.wait_stopped("own", "Overdue")
            tenant.edit("own", replicas=3)
            tenant.topup("5")
            tenant.wait_running("own", 3)
            rested = wait_rest(dedicated_stack, standby)
        finally:
            leader.resume()
        # It finds its lease lost, says so, and ends rather than act on what it knew.
        assert leader.wait_end(SECONDS) == 1
        assert "lease.lost" in leader.log.read_text()
        with suppress(OSError):
            assert health.result(SECONDS)[0] == 503
        assert written(dedicated_stack) == rested
        assert holder(dedicated_stack) == new
        assert leads(standby)


# -- B24: no operator -----------------------------------------------------------------------------------


def test_b24_without_an_operator_workloads_stay_and_deletes_do_not_hang(
    tenant: Tenant, dedicated_stack: Stack
) -> None:
    with operators(dedicated_stack, 1) as (operator,):
        model, names = mixed_services(tenant)
        wait_all(tenant, model, names, running=True)
        wait_rest(dedicated_stack, operator)
    before = {
        item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in backends(dedicated_stack)
    }
    tenant.charge("one", model, 20)
    # Deletes return when the objects are gone, so nothing but the API server had to agree.
    tenant.delete("InferenceService", "one")
    for topup in dedicated_stack.api.get(path_of("TopUp", tenant.namespace))["items"]:
        tenant.delete("TopUp", topup["metadata"]["name"])
    tenant.delete("BillingAccount", "acme")
    tenant.delete("Model", model)
    after = {
        item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in backends(dedicated_stack)
    }
    assert after == before, "nobody stopped what ran"
    with operators(dedicated_stack, 1):
        tenant.wait_stopped("two", "AccountNotFound", "ModelNotFound")
        tenant.wait_gone(deployment_path(BACKENDS, tenant.backend_name("one")))


def test_a_service_or_model_recreated_as_another_kind_keeps_no_backend_of_the_first(
    tenant: Tenant, dedicated_stack: Stack
) -> None:
    """Another service, or model, of the same name needs no backend: nobody pays for what ran before."""
    with operators(dedicated_stack, 1) as (operator,):
        model, names = mixed_services(tenant)
        wait_all(tenant, model, names, running=True)
        wait_rest(dedicated_stack, operator)
    own = [deployment_path(BACKENDS, tenant.backend_name(name)) for name in names]
    endpoint = core_path("services", BACKENDS, tenant.backend_name("one"))
    shared = deployment_path(BACKENDS, shared_backend_name(model))
    tenant.delete("InferenceService", "one")
    tenant.service("one", model, dedicated=False)
    with operators(dedicated_stack, 1):
        tenant.wait_gone(own[0])
        tenant.wait_gone(endpoint)
        tenant.wait_state("one", "Running")
        tenant.wait_shared(model, 1)
        tenant.wait_running("two", 2)
    tenant.delete("Model", model)
    tenant.model(serving={"external": {"baseURL": "https://api.example.com/v1"}})
    with operators(dedicated_stack, 1):
        for path in (shared, *own):
            tenant.wait_gone(path)
        for name in ("one", "two", "three", "shared"):
            tenant.wait_condition(name, "Ready", "True", "External")


@contextmanager
def behind_proxy(dedicated_stack: Stack, sweep_seconds: str) -> Iterator[tuple[Proxy, Process]]:
    """One operator that leads, and what stands between it and the API server."""
    through = dedicated_stack.cluster.service_account_kubeconfig(SYSTEM, "farebox-operator")
    with proxied(through) as (proxy, kubeconfig), operators(dedicated_stack, 0):
        env = ENV | {"FAREBOX_SWEEP_SECONDS": sweep_seconds, "FAREBOX_KUBECONFIG": str(kubeconfig)}
        operator = dedicated_stack.start_operator(**env)
        wait_for("it leads", lambda: leads(operator), SECONDS)
        yield proxy, operator


# -- watches --------------------------------------------------------------------------------------------


def test_an_object_deleted_before_a_watch_restarts_is_removed_without_a_resync(
    tenant: Tenant, dedicated_stack: Stack
) -> None:
    with behind_proxy(dedicated_stack, sweep_seconds="3600") as (proxy, operator):
        model, names = mixed_services(tenant)
        wait_all(tenant, model, names, running=True)
        wait_rest(dedicated_stack, operator)
        proxy.forgetful = frozenset({"inferenceservices"})
        tenant.delete("InferenceService", "one")
        tenant.wait_gone(deployment_path(BACKENDS, tenant.backend_name("one")))
        assert proxy.forgetful == frozenset(), "no watch reported the deletion"
        proxy.forgetful = frozenset({"billingaccounts"})
        tenant.delete("BillingAccount", "acme")
        tenant.wait_stopped("two", "AccountNotFound")


# -- health: a deaf watch, a Lease that cannot be renewed ------------------------------------------------


def test_a_stale_watch_is_unhealthy_and_an_operator_that_cannot_renew_its_lease_ends(
    tenant: Tenant, dedicated_stack: Stack
) -> None:
    with behind_proxy(dedicated_stack, sweep_seconds="0.2") as (proxy, operator):
        assert operator.http("/healthz")[0] == 200
        proxy.deaf = frozenset({"namespaces"})
        home = core_path("namespaces", name=tenant.namespace)

        def unhealthy() -> str:
            # There is always something new that the watch should tell.
            dedicated_stack.api.patch(home, {"metadata": {"labels": {"now": uuid.uuid4().hex}}})
            code, text = operator.http("/healthz")
            return text if code == 503 else ""

        said = wait_for("it is unhealthy", unhealthy, SECONDS, poll_seconds=0.2)
        assert said == "the watch of Namespace misses changes"
        assert operator.http("/readyz")[0] == 503
        proxy.refused = frozenset({"leases"})
        assert operator.wait_end(SECONDS) == 1
        assert "lease.lost" in operator.log.read_text()
