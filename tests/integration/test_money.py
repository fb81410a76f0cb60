"""Money: what is charged and booked, to the nano-unit, whatever is repeated, late or restored (B10-B12)."""

import json
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from farebox.domain.billing.money import parse_amount
from tests.integration.tenants import SECONDS, Tenant
from tests.support.api import JSONObject, path_of
from tests.support.stack import AUDIENCE, SYSTEM, Stack, usage_event
from tests.support.waiting import wait_for

pytestmark = pytest.mark.plane

PRECISE = [
    {
        "upToInputTokens": 1000,
        "input": "0.123",
        "cachedInput": "0.007",
        "cacheWrite": "0.154",
        "output": "1.999",
    },
    {"input": "999999.999", "cachedInput": "0.001", "output": "0.000"},
]


@pytest.fixture(scope="module")
def reader(stack: Stack) -> Iterator[str]:
    """A token that may read balances and the list of pending events: the operator's."""
    return stack.cluster.service_account_token(SYSTEM, "farebox-operator", audience=AUDIENCE)


def ledger_balance(tenant: Tenant, reader: str, account: str = "acme") -> str:
    answer = tenant.stack.call_meter("GET", f"/v1/accounts/{tenant.namespace}/{account}", token=reader)
    return str(answer["balance"])


def wait_balance(tenant: Tenant, reader: str, balance: str) -> None:
    def look() -> bool:
        found = ledger_balance(tenant, reader)
        assert parse_amount(found) == parse_amount(balance), found
        return True

    wait_for(f"the balance is {balance}", look, SECONDS)


def subject(tenant: Tenant, service: str) -> str:
    return f"{tenant.namespace}/{service}"


def pending_of(tenant: Tenant, reader: str, service: str) -> list[JSONObject]:
    events = tenant.stack.call_meter("GET", "/v1/events/pending?limit=10000", token=reader)["events"]
    return [event for event in events if event["service"] == subject(tenant, service)]


@pytest.fixture
def shop(tenant: Tenant) -> Tenant:
    """A tenant with a service `own` on a model `llm` at 1.00 for a million input tokens, and 10.00."""
    model = tenant.model()
    tenant.account(balance="10")
    tenant.service("own", model)
    tenant.wait_running("own", 1)
    return tenant


def test_b12_usage_is_charged_at_the_models_price_to_the_nano_unit(tenant: Tenant, reader: str) -> None:
    model = tenant.model(prices={"currency": tenant.currency, "tiers": PRECISE})
    tenant.account(balance="10")
    tenant.service("own", model)
    tenant.wait_running("own", 1)
    # 123 nano for a token of input, 7 for a cached one, 1999 for one of output.
    tenant.stack.post_usage([usage_event(subject(tenant, "own"), model, 1000, 1, cached_input_tokens=999)])
    first = 1 * 123 + 999 * 7 + 1 * 1999
    wait_balance(tenant, reader, nano(10_000_000_000 - first))
    # Cache writes have a price of their own: 154 nano for a token (B41).
    written = usage_event(subject(tenant, "own"), model, 100, 0, 10, cache_write_input_tokens=60)
    tenant.stack.post_usage([written])
    first += 30 * 123 + 10 * 7 + 60 * 154
    wait_balance(tenant, reader, nano(10_000_000_000 - first))
    # The second tier prices the whole call. Without cacheWrite, a write costs what input costs.
    tenant.stack.post_usage(
        [usage_event(subject(tenant, "own"), model, 1001, 7, 998, cache_write_input_tokens=2)]
    )
    second = 3 * 999_999_999 + 998 * 1
    wait_balance(tenant, reader, nano(10_000_000_000 - first - second))
    tenant.wait_account(balance=nano(10_000_000_000 - first - second), state="Active")


def nano(amount: int) -> str:
    return f"{amount // 10**9}.{amount % 10**9:09d}".rstrip("0")


def test_b12_an_event_counts_once_however_often_it_comes(shop: Tenant, reader: str) -> None:
    model = f"llm-{shop.unique}"
    events = [usage_event(subject(shop, "own"), model, 1_000_000) for _ in range(3)]
    answer = shop.stack.post_usage([*events, events[0]])
    assert (answer["accepted"], answer["duplicate"]) == (3, 1)
    for _ in range(3):
        answer = shop.stack.post_usage(reversed(events))
        assert (answer["accepted"], answer["duplicate"]) == (0, 3)
    wait_balance(shop, reader, "7")


def test_b12_late_usage_of_a_deleted_service_is_charged(shop: Tenant, reader: str) -> None:
    model = f"llm-{shop.unique}"
    late = usage_event(subject(shop, "own"), model, 4_000_000)
    shop.delete("InferenceService", "own")
    shop.delete("Model", model)
    shop.stack.post_usage([late])
    wait_balance(shop, reader, "6")
    shop.delete("BillingAccount", "acme")
    shop.stack.post_usage([usage_event(subject(shop, "own"), model, 7_000_000)])
    wait_balance(shop, reader, "-1")


def test_b12_usage_before_its_service_is_known_waits_and_is_charged(tenant: Tenant, reader: str) -> None:
    model = tenant.model()
    tenant.account(balance="10")
    answer = tenant.stack.post_usage([usage_event(subject(tenant, "early"), model, 3_000_000)])
    assert (answer["accepted"], answer["pending"]) == (1, 1)
    (pending,) = pending_of(tenant, reader, "early")
    assert (pending["reason"], pending["waitingFor"]) == ("BindingNotFound", subject(tenant, "early"))
    assert ledger_balance(tenant, reader) == "10.00"
    tenant.service("early", model)
    wait_balance(tenant, reader, "7")
    assert pending_of(tenant, reader, "early") == []


def test_b12_a_call_is_charged_at_the_price_of_its_time(shop: Tenant, reader: str) -> None:
    model = f"llm-{shop.unique}"
    shop.charge("own", model, 1)
    wait_balance(shop, reader, "9")
    before = datetime.now(UTC)
    dearer = [{"input": "2.000", "cachedInput": "0.100", "output": "2.000"}]
    shop.edit_model(model, prices={"currency": shop.currency, "tiers": dearer})

    def charged_at_the_new_price() -> bool:
        held = parse_amount(ledger_balance(shop, reader))
        shop.stack.post_usage([usage_event(subject(shop, "own"), model, 1)])
        return held - parse_amount(ledger_balance(shop, reader)) == 2000

    wait_for("the new price", charged_at_the_new_price, SECONDS)
    held = parse_amount(ledger_balance(shop, reader))
    late = usage_event(subject(shop, "own"), model, 1_000_000)
    late["time"] = (before - timedelta(seconds=2)).isoformat()
    shop.stack.post_usage([late])
    assert held - parse_amount(ledger_balance(shop, reader)) == 1_000_000_000


def test_b10_a_top_up_counts_once_for_its_reference(tenant: Tenant, reader: str) -> None:
    tenant.account()
    first = tenant.topup("10", reference="pay-1", name="first")
    receipt = tenant.wait_topup(first)
    assert receipt["balanceAfter"] == "10.00"
    written = tenant.get(first, "TopUp")
    # Applied again, under another name, and restored from a backup that has no status.
    again = {**written, "metadata": {"name": first, "namespace": tenant.namespace}}
    again.pop("status")
    tenant.apply(json.dumps(again))
    second = tenant.topup("10.000", reference="pay-1", name="second")
    assert "Duplicate reference" in tenant.wait_topup(second)["message"]
    tenant.delete("TopUp", first)
    tenant.api.create(path_of("TopUp", tenant.namespace), again)
    restored = tenant.wait_topup(first)
    assert (restored["balanceAfter"], restored["postedAt"]) == ("10.00", receipt["postedAt"])
    tenant.api.patch(
        path_of("TopUp", tenant.namespace, "second", "status"), {"status": {"phase": None, "postedAt": None}}
    )
    assert tenant.wait_topup(second)["postedAt"] == receipt["postedAt"]
    assert ledger_balance(tenant, reader) == "10.00"
    # Another amount, or another kind, is another payment: it needs a reference of its own.
    for spec in ({"amount": "11"}, {"amount": "10", "kind": "Adjustment"}):
        name = tenant.topup(reference="pay-1", **spec)
        status = tenant.wait_topup(name, "Rejected")
        assert "already used" in status["message"]
        tenant.wait_condition(name, "Stalled", "True", "ReferenceConflict", kind="TopUp")
    assert ledger_balance(tenant, reader) == "10.00"
    tenant.topup("1", reference="pay-2")
    wait_balance(tenant, reader, "11")


def test_b10_the_same_reference_on_another_account_is_another_payment(tenant: Tenant, reader: str) -> None:
    tenant.account("one")
    tenant.account("two")
    for account in ("one", "two"):
        tenant.wait_topup(tenant.topup("10", account=account, reference="pay-1"))
    assert ledger_balance(tenant, reader, "one") == ledger_balance(tenant, reader, "two") == "10.00"


def test_b10_deleting_a_top_up_takes_nothing_back_and_an_adjustment_does(tenant: Tenant, reader: str) -> None:
    tenant.account()
    name = tenant.topup("10")
    tenant.wait_topup(name)
    tenant.delete("TopUp", name)
    receipt = tenant.wait_topup(tenant.topup("-4", kind="Adjustment"))
    assert receipt["balanceAfter"] == "6.00"
    assert ledger_balance(tenant, reader) == "6.00"


def test_b10_a_top_up_waits_for_its_account(tenant: Tenant) -> None:
    name = tenant.topup("10", account="later")
    condition = tenant.wait_condition(name, "Stalled", "True", "AccountNotFound", kind="TopUp")
    assert f"{tenant.namespace}/later" in condition["message"]
    assert "phase" not in tenant.status(name, "TopUp")
    tenant.account("later")
    assert tenant.wait_topup(name)["balanceAfter"] == "10.00"


def test_the_balance_in_the_status_follows_the_ledger(shop: Tenant) -> None:
    shop.charge("own", f"llm-{shop.unique}", 2.5)
    status = shop.wait_account(balance="7.50")
    assert (status["available"], status["state"]) == ("7.50", "Active")


def test_low_balance_is_a_condition_and_an_event(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(balance="10", lowBalance="5")
    tenant.service("own", model)
    tenant.wait_running("own", 1)
    tenant.wait_condition("acme", "LowBalance", "False", kind="BillingAccount")
    tenant.charge("own", model, 6)
    tenant.wait_condition("acme", "LowBalance", "True", "BelowThreshold", kind="BillingAccount")
    wait_for("the Event", lambda: "LowBalance" in tenant.kubectl("get", "events"), SECONDS)
    tenant.topup("6")
    tenant.wait_condition("acme", "LowBalance", "False", kind="BillingAccount")


@pytest.fixture(scope="module")
def coveted(stack: Stack) -> Iterator[Tenant]:
    """A tenant with a service and 10.00, which nobody who should not gets at."""
    made = Tenant(stack)
    made.service("own", made.model())
    made.account(balance="10")
    made.wait_running("own", 1)
    admin = f"--serviceaccount={made.namespace}:default"
    made.kubectl("create", "rolebinding", "admins", "--clusterrole=admin", admin)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("who", "path", "status"),
    [
        ("nobody", "/v1/events", 401),
        ("a stranger", "/v1/events", 401),
        ("for another audience", "/v1/events", 401),
        ("farebox-operator", "/v1/events", 403),
        ("farebox-meter", "/v1/events", 403),
        ("farebox-gateway", "/v1/records", 403),
        ("farebox-gateway", "/v1/topups", 403),
        ("farebox-meter", "/v1/topups", 403),
        ("tenant", "/v1/events", 403),
        ("tenant", "/v1/records", 403),
        ("tenant", "/v1/topups", 403),
        ("tenant", "/v1/changes", 403),
        ("tenant", "/v1/events/pending", 403),
    ],
)
def test_b22_the_meter_takes_nothing_from_who_has_no_right(
    coveted: Tenant, reader: str, who: str, path: str, status: int
) -> None:
    shop, method = coveted, "GET" if path in ("/v1/changes", "/v1/events/pending") else "POST"
    model = f"llm-{shop.unique}"
    if path == "/v1/events":
        body = json.dumps([usage_event(subject(shop, "own"), model, 1_000_000)])
        content_type = "application/cloudevents-batch+json"
    else:
        content_type = "application/json"
        body = json.dumps({"account": subject(shop, "acme"), "reference": "gift", "amount": "1000",
                           "kind": "Payment", "source": "me", "accounts": []})  # fmt: skip
    request = urllib.request.Request(
        f"{shop.stack.meter_url}{path}",
        data=None if method == "GET" else body.encode(),
        method=method,
        headers={"Content-Type": content_type} | bearer(shop, who),
    )
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=30)
    assert refusal.value.code == status
    assert json.load(refusal.value)["error"]["message"]
    assert ledger_balance(shop, reader) == "10.00"


def bearer(tenant: Tenant, who: str) -> dict[str, str]:
    """The Authorization header of somebody."""
    cluster = tenant.stack.cluster
    match who:
        case "nobody":
            return {}
        case "a stranger":
            token = "made.up.token"
        case "for another audience":
            token = cluster.service_account_token(SYSTEM, "farebox-gateway")
        case "tenant":
            token = cluster.service_account_token(tenant.namespace, "default", audience=AUDIENCE)
        case _:
            token = cluster.service_account_token(SYSTEM, who, audience=AUDIENCE)
    return {"Authorization": f"Bearer {token}"}
