"""Operators cut off from their meter, or given a ledger from an older backup (B20, B10)."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from farebox.kube.names import BOOKMARK_ANNOTATION
from tests.integration.dedicated_stack import (
    BALANCE_MAX_AGE_SECONDS,
    LEASE,
    dedicated_tenant,
    leads,
    metrics,
    mixed_services,
    operators,
    start,
    wait_all,
    wait_rest,
    written,
)
from tests.integration.tenants import SECONDS, Tenant, condition_of
from tests.integration.test_terms import OFFER, PRICE, QUOTA, RESERVED
from tests.ledger.databases import Database
from tests.support.stack import Stack, usage_event
from tests.support.waiting import wait_for

pytestmark = pytest.mark.plane
tenant = dedicated_tenant


# -- the meter is unreachable -------------------------------------------------------------------------------


def account_ready(tenant: Tenant) -> str:
    return str(condition_of(tenant.get("acme", "BillingAccount"), "Ready").get("reason"))


def test_an_unreachable_meter_makes_balances_unknown_and_changes_no_service(
    tenant: Tenant, dedicated_stack: Stack
) -> None:
    assert dedicated_stack.meter is not None
    with operators(dedicated_stack, 1) as (operator,):
        model, names = mixed_services(tenant)
        tenant.account("poor")
        tenant.service("waiting", model, account="poor")
        wait_all(tenant, model, names, running=True)
        tenant.wait_stopped("waiting", "Overdue")
        dedicated_stack.meter.kill()
        wait_for("unknown", lambda: account_ready(tenant) == "BalanceUnknown", SECONDS)
        assert metrics(operator)["farebox_balance_age_seconds"] >= BALANCE_MAX_AGE_SECONDS
        # Nobody's fault here, and a restart would not help.
        assert operator.http("/healthz")[0] == 200
        assert operator.http("/readyz")[0] == 200
        # What needs no balance goes on; what needs one waits, and says so.
        tenant.edit("two", postpaid=False)
        tenant.wait_stopped("two", "PostpaidDisabled")
        tenant.edit("three", replicas=1)
        tenant.wait_backend("three", 1)
        tenant.topup("5", account="poor", name="late")
        tenant.service("new", model, replicas=1)
        tenant.wait_condition("new", "Ready", "Unknown")
        assert tenant.backend("new") is None
        tenant.wait_backend("one", 1)
        assert tenant.status("waiting")["stopReasons"] == ["Overdue"]
        dedicated_stack.start_meter()
        tenant.wait_topup("late")
        tenant.wait_running("waiting", 1)
        tenant.wait_running("new", 1)
        tenant.wait_account(state="Active", balance="10.00")


def test_an_operator_that_starts_without_its_meter_moves_nothing(
    tenant: Tenant, dedicated_stack: Stack
) -> None:
    assert dedicated_stack.meter is not None
    with operators(dedicated_stack, 1) as (operator,):
        model, names = mixed_services(tenant)
        wait_all(tenant, model, names, running=True)
        rested = {
            path: version
            for path, version in wait_rest(dedicated_stack, operator).items()
            if "deployments" in path
        }
    tenant.charge("one", model, 10)
    dedicated_stack.meter.stop()
    with operators(dedicated_stack, 1) as (operator,):
        wait_for("it leads", lambda: leads(operator), SECONDS)
        wait_for("it knows nothing", lambda: account_ready(tenant) == "BalanceUnknown", SECONDS)
        now = {path: version for path, version in written(dedicated_stack).items() if "deployments" in path}
        assert now == rested
        assert tenant.status("one")["phase"] == "Running"
        dedicated_stack.start_meter()
        wait_all(tenant, model, names, running=False)


# -- the ledger is restored from an older backup --------------------------------------------------------


@pytest.mark.parametrize(
    "there",
    [
        "operator running",
        "operator away",
        "operator away, ledger went on",
        "operator killed before it noted the top-up, ledger went on",
    ],
)
def test_a_ledger_restored_from_a_backup_gets_its_top_ups_again_once(
    tenant: Tenant, dedicated_stack: Stack, there: str
) -> None:
    with operators(dedicated_stack, 1) as (operator,):
        model = tenant.model()
        tenant.account(balance="3")
        tenant.service("own", model)
        tenant.wait_running("own", 1)
        tenant.charge("own", model, 3)
        tenant.wait_stopped("own", "Overdue")
        backup = back_up(tenant, dedicated_stack)
        noted = place(dedicated_stack)
        tenant.topup("10", reference="after-the-backup")
        tenant.wait_running("own", 1)
        # What a backup loses for good is usage; its sources may send it again.
        tenant.charge("own", model, 1)
        tenant.wait_account(balance="9.00")
        deployment = tenant.backend("own")
        assert deployment is not None
        since = tenant.version("own")
        if there != "operator running":
            # The next one cannot tell by the feed, but by the account's status and by the Lease.
            operator.stop()
        if "killed" in there:
            # It renews its Lease twice a second here, so this is what the one before the last has left.
            dedicated_stack.api.patch(LEASE, {"metadata": {"annotations": {BOOKMARK_ANNOTATION: noted}}})
        restore(dedicated_stack, backup)
        if "ledger went on" in there:
            # The account is ahead of its status: only the Lease shows that the history is another.
            for _ in range(8):
                tenant.charge("own", model, 0.125)
        if there != "operator running":
            operator = start(dedicated_stack)
        before, after = ("9.00", "8.00") if "ledger went on" in there else ("10.00", "9.00")
        tenant.wait_account(balance=before, state="Active")
        # And once only, however often it starts.
        operator.stop()
        operator = start(dedicated_stack)
        wait_for("it leads", lambda: leads(operator), SECONDS)
        tenant.charge("own", model, 1)
        tenant.wait_account(balance=after, state="Active")
        # The restored ledger had nothing on the account, and yet nobody was stopped.
        backend = tenant.backend("own")
        assert backend is not None
        assert backend["metadata"]["generation"] == deployment["metadata"]["generation"]
        assert set(tenant.phases(since, "own")) <= {"Running"}


def place(stack: Stack) -> str:
    """How far the operator has read, as it tells its successors."""
    return str(stack.api.get(LEASE)["metadata"]["annotations"][BOOKMARK_ANNOTATION])


def back_up(tenant: Tenant, stack: Stack) -> Path:
    """A copy of the ledger, made while no meter runs."""
    assert stack.meter is not None
    backup = stack.directory / f"backup-{tenant.unique}.db"
    stack.meter.stop()
    shutil.copyfile(stack.directory / "ledger.db", backup)
    stack.start_meter()
    return backup


def restore(stack: Stack, backup: Path) -> None:
    """Put a copy of the ledger in its place, as an administrator does after a disaster."""
    assert stack.meter is not None
    stack.meter.stop()
    ledger = stack.directory / "ledger.db"
    for part in ("", "-wal", "-shm"):
        ledger.with_name(ledger.name + part).unlink(missing_ok=True)
    shutil.copyfile(backup, ledger)
    stack.start_meter()


# -- terms and quotas end while nobody is there ---------------------------------------------------------


def test_what_ended_meanwhile_is_over(tenant: Tenant, dedicated_stack: Stack) -> None:
    """B6, B9: a trial stops, a term is renewed once or is followed by pay-as-you-go, or by a stop."""
    with operators(dedicated_stack, 1) as (operator,):
        model = tenant.model(freeQuota=QUOTA, reservation=OFFER)
        tenant.account(balance=str(4 * PRICE))
        tenant.service("try", model, postpaid=False, trial=True)
        tenant.service("renewed", model, postpaid=False, reservation=RESERVED | {"autoRenew": True})
        tenant.service("paid", model, reservation=RESERVED)
        tenant.service("over", model, postpaid=False, reservation=RESERVED)
        for name in ("try", "renewed", "paid", "over"):
            tenant.wait_running(name, 1)
        tenant.wait_account(balance=f"{PRICE}.00")
        operator.stop()
        days_pass(dedicated_stack, 100)
        start(dedicated_stack)
        tenant.wait_stopped("over", "ReservationExpired")
        tenant.wait_stopped("try", "FreeQuotaExpired")
        tenant.wait_account(balance="0.00", state="Overdue")
        assert tenant.status("renewed")["billingMode"] == "TPMReservation"
        # The renewal took what was left, so what is paid by use has to wait for more.
        tenant.wait_stopped("paid", "Overdue")
        tenant.topup("1")
        tenant.wait_running("paid", 1)
        assert tenant.status("paid")["billingMode"] == "PayAsYouGo"
        tenant.wait_running("renewed", 1)
        # A top-up is not for those that cannot be paid by use.
        tenant.wait_stopped("over", "ReservationExpired")
        tenant.wait_stopped("try", "FreeQuotaExpired")


def test_b6_a_trial_stops_when_its_quota_ends_though_nothing_else_happens(
    tenant: Tenant, dedicated_stack: Stack
) -> None:
    with operators(dedicated_stack, 0):
        start(dedicated_stack, FAREBOX_SWEEP_SECONDS="3600")
        model = tenant.model(freeQuota=QUOTA)
        tenant.account()
        tenant.service("try", model, postpaid=False, trial=True)
        tenant.wait_running("try", 1)
        now = datetime.now(UTC)
        ends = now + timedelta(seconds=12)
        quota_ends(dedicated_stack, model, ends)
        # With this the ledger sends the quota again, however long the meter took to start.
        event = usage_event(f"{tenant.namespace}/try", model, input_tokens=1) | {"time": now.isoformat()}
        assert dedicated_stack.post_usage([event])["accepted"] == 1
        expected = ends.strftime("%Y-%m-%dT%H:%M:%S")
        wait_for(
            "the new date is known",
            lambda: str(tenant.status("try")["freeQuota"]["expiresAt"]).startswith(expected),
            SECONDS,
        )
        tenant.wait_stopped("try", "FreeQuotaExpired")


def quota_ends(stack: Stack, model: str, at: datetime) -> None:
    """The free quota on a model ends earlier than days from now."""
    micros = int(at.timestamp() * 1_000_000)
    tamper(stack, f"UPDATE quotas SET expires_at = {micros} WHERE model = '{model}'")


def days_pass(stack: Stack, days: int) -> None:
    """Move all terms and quotas in the ledger into the past by `days` days."""
    ago = days * 86_400_000_000
    tamper(
        stack,
        f"UPDATE reservation_terms SET start_at = start_at - {ago}, end_at = end_at - {ago}",
        f"UPDATE quotas SET granted_at = granted_at - {ago}, expires_at = expires_at - {ago}",
    )


def tamper(stack: Stack, *statements: str) -> None:
    """Change the ledger while no meter runs."""
    assert stack.meter is not None
    stack.meter.stop()
    ledger = Database(f"sqlite:///{stack.directory / 'ledger.db'}")
    for statement in statements:
        assert ledger.tamper(statement) > 0
    stack.start_meter()
