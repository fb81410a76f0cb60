"""Free quotas and reservations as tenants see them: what runs on them, what happens at their end (B6, B9).

What takes days is tested on the ledger itself, with a clock of the test's own
(tests/ledger/booking/test_entitlements.py).
"""

import pytest

from farebox.domain.keys import ObjectKey
from tests.integration.tenants import SECONDS, Tenant, condition_of
from tests.support.api import path_of
from tests.support.stack import AUDIENCE, SYSTEM
from tests.support.waiting import wait_for

pytestmark = pytest.mark.plane

QUOTA = {"tokens": 1_000_000, "validDays": 90}
OFFER = {
    "inputUnitTPM": 1000,
    "inputUnitPricePerDay": "2.00",
    "outputUnitTPM": 1000,
    "outputUnitPricePerDay": "3.00",
    "terms": [1, 30],
}
RESERVED = {"inputTPM": 2000, "outputTPM": 1000, "days": 1}
PRICE = 7
"""Of one term of RESERVED."""


def wait_status(tenant: Tenant, service: str, part: str, **fields: object) -> None:
    """Wait until a part of a service's status has these fields."""

    def look() -> bool:
        found = tenant.status(service).get(part) or {}
        assert {name: found.get(name) for name in fields} == fields, found
        return True

    wait_for(f"{service} has {part} {fields}", look, SECONDS)


def test_b6_a_trial_runs_until_the_quota_is_used_up_and_is_never_billed(tenant: Tenant) -> None:
    model = tenant.model(freeQuota=QUOTA)
    tenant.account()
    tenant.service("try", model, postpaid=False, trial=True)
    tenant.wait_running("try", 1)
    assert tenant.status("try")["billingMode"] == "FreeQuota"
    wait_status(tenant, "try", "freeQuota", total=1_000_000)
    tenant.charge("try", model, 1.5)
    tenant.wait_stopped("try", "FreeQuotaExhausted")
    wait_status(tenant, "try", "freeQuota", used=1_000_000)
    tenant.wait_account(balance="0.00", state="Overdue")
    # No top-up brings it back: its owner has to say that it may cost money.
    tenant.topup("5")
    tenant.wait_account(balance="5.00")
    tenant.edit("try", trial=False, postpaid=True)
    tenant.wait_running("try", 1)
    assert tenant.status("try")["billingMode"] == "PayAsYouGo"
    tenant.charge("try", model, 2)
    tenant.wait_account(balance="3.00")


def test_b6_services_share_the_quota_and_only_the_excess_is_billed(tenant: Tenant) -> None:
    model = tenant.model(freeQuota=QUOTA)
    tenant.account(balance="5")
    tenant.service("paid", model)
    tenant.service("try", model, postpaid=False, trial=True)
    tenant.wait_running("paid", 1)
    tenant.wait_running("try", 1)
    tenant.charge("paid", model, 0.6)
    tenant.charge("try", model, 0.3)
    tenant.charge("paid", model, 0.6)
    tenant.wait_stopped("try", "FreeQuotaExhausted")
    tenant.wait_running("paid", 1)
    tenant.wait_account(balance="4.50")


def test_b6_a_quota_outlives_its_services_and_is_granted_once(tenant: Tenant) -> None:
    model = tenant.model(freeQuota=QUOTA)
    tenant.account()
    tenant.service("try", model, postpaid=False, trial=True)
    tenant.wait_running("try", 1)
    tenant.charge("try", model, 1)
    tenant.wait_stopped("try", "FreeQuotaExhausted")
    tenant.delete("InferenceService", "try")
    tenant.service("again", model, postpaid=False, trial=True)
    tenant.wait_stopped("again", "FreeQuotaExhausted")


def test_b6_a_trial_on_a_model_without_a_quota_says_so(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account()
    tenant.service("try", model, postpaid=False, trial=True)
    tenant.wait_stopped("try", "FreeQuotaExhausted")
    assert "has no free quota" in condition_of(tenant.get("try"), "Ready")["message"]
    tenant.edit_model(model, freeQuota=QUOTA)
    tenant.wait_running("try", 1)


def test_b9_a_reservation_is_bought_and_outlives_overdue(tenant: Tenant) -> None:
    model = tenant.model(reservation=OFFER)
    tenant.account(balance="10")
    tenant.service("reserved", model, postpaid=False, reservation=RESERVED)
    tenant.service("other", model)
    tenant.wait_running("reserved", 1)
    tenant.wait_running("other", 1)
    tenant.wait_account(balance="3.00")
    assert tenant.status("reserved")["billingMode"] == "TPMReservation"
    wait_status(tenant, "reserved", "reservation", state="Active")
    tenant.charge("other", model, 4)
    tenant.wait_stopped("other", "Overdue")
    tenant.wait_running("reserved", 1)


def test_b9_what_cannot_be_paid_stops_and_is_bought_after_a_top_up_once(tenant: Tenant) -> None:
    model = tenant.model(reservation=OFFER)
    tenant.account(balance="2")
    tenant.service("reserved", model, postpaid=False, reservation=RESERVED)
    tenant.wait_stopped("reserved", "ReservationUnpaid")
    assert "more than is available" in condition_of(tenant.get("reserved"), "Ready")["message"]
    tenant.topup("4")
    tenant.wait_account(balance="6.00")
    tenant.wait_stopped("reserved", "ReservationUnpaid")
    tenant.topup("4")
    tenant.wait_running("reserved", 1)
    tenant.wait_account(balance="3.00")


def test_b9_what_the_model_does_not_offer_is_not_bought(tenant: Tenant) -> None:
    model = tenant.model(reservation=OFFER)
    tenant.account(balance="1000")
    tenant.service("reserved", model, postpaid=False, reservation=RESERVED | {"days": 7})
    tenant.wait_stopped("reserved", "ReservationUnpaid")
    assert "no terms of 7 days" in condition_of(tenant.get("reserved"), "Ready")["message"]
    tenant.wait_account(balance="1000.00")
    tenant.edit_model(model, reservation=OFFER | {"terms": [7]})
    tenant.wait_running("reserved", 1)
    tenant.wait_account(balance=f"{1000 - 7 * PRICE}.00")


def test_b22_a_reservation_takes_nothing_from_an_account_that_does_not_allow_it(tenant: Tenant) -> None:
    model = tenant.model(reservation=OFFER)
    home = f"{tenant.namespace}-home"
    tenant.make_namespace(home)
    tenant.account(namespace=home, balance="10")
    reference = {"name": "acme", "namespace": home}
    tenant.service("guest", model, postpaid=False, reservation=RESERVED, billingAccountRef=reference)
    tenant.wait_stopped("guest", "AccountNotAllowed")
    path = path_of("BillingAccount", home, "acme")
    wait_for("the balance shows", lambda: tenant.api.get(path)["status"]["balance"] == "10.00", SECONDS)
    tenant.api.patch(path, {"spec": {"allowedNamespaces": {"from": "All"}}})
    tenant.wait_running("guest", 1)
    wait_for("it is paid", lambda: tenant.api.get(path)["status"]["balance"] == "3.00", SECONDS)


def test_b9_a_deleted_service_renews_nothing(tenant: Tenant) -> None:
    model = tenant.model(reservation=OFFER)
    tenant.account(balance="10")
    tenant.service("reserved", model, postpaid=False, reservation=RESERVED | {"autoRenew": True})
    tenant.wait_running("reserved", 1)
    key = ObjectKey(tenant.namespace, "reserved")
    assert buying(tenant, key) == ["Renewing"]
    tenant.delete("InferenceService", "reserved")
    wait_for("it buys nothing more", lambda: buying(tenant, key) == ["Nothing"], SECONDS)
    # Made again it is another reservation, paid for itself.
    tenant.topup("5")
    tenant.service("reserved", model, postpaid=False, reservation=RESERVED)
    tenant.wait_running("reserved", 1)
    assert sorted(buying(tenant, key)) == ["Nothing", "Once"]
    tenant.wait_account(balance="1.00")


def buying(tenant: Tenant, service: ObjectKey) -> list[str]:
    """What each reservation under a service's name still buys, as the ledger has it."""
    token = tenant.stack.cluster.service_account_token(SYSTEM, "farebox-operator", audience=AUDIENCE)
    page = tenant.stack.call_meter("GET", "/v1/changes?after=0&limit=10000", token=token)
    assert page["complete"]
    return [found["buying"] for found in page["reservations"] if found["service"] == str(service)]
