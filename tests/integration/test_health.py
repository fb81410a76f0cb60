"""What operators of Farebox see: probes, metrics, Events and logs."""

import json

import pytest

from tests.integration.tenants import SECONDS, Tenant
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = pytest.mark.plane

OPERATOR_METRICS = (
    "workqueue_depth",
    "workqueue_adds_total",
    "workqueue_queue_duration_seconds_bucket",
    "workqueue_work_duration_seconds_bucket",
    "workqueue_retries_total",
    "leader_election_master_status",
    "farebox_services",
    "farebox_api_writes_total",
    "farebox_service_transitions_total",
    "farebox_balance_age_seconds",
    "farebox_watch_events_total",
)


def samples(text: str) -> dict[str, float]:
    """Values of Prometheus metrics by name and labels."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_probes_say_that_all_is_well(stack: Stack) -> None:
    for component in ("operator", "meter"):
        for path in ("/healthz", "/readyz"):
            wait_for(f"{component} {path}", lambda at=(component, path): stack.http(*at)[0] == 200, SECONDS)  # type: ignore[misc]


def test_metrics_have_their_usual_names_and_move(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(balance="5")
    tenant.service("own", model)
    tenant.wait_running("own", 1)
    tenant.edit("own", postpaid=False)
    tenant.wait_stopped("own", "PostpaidDisabled")

    def moved() -> bool:
        """A write is counted a moment after it shows."""
        found = samples(tenant.stack.http("operator", "/metrics")[1])
        names = {name.partition("{")[0] for name in found}
        assert [name for name in OPERATOR_METRICS if name not in names] == []
        assert found['leader_election_master_status{name="farebox-operator"}'] == 1
        assert found['farebox_service_transitions_total{phase="Stopped"}'] >= 1
        assert found['farebox_api_writes_total{write="scale"}'] >= 1
        assert found["farebox_balance_age_seconds"] < 45
        assert found['farebox_services{phase="Stopped"}'] >= 1
        return True

    wait_for("the metrics", moved, SECONDS)
    assert "farebox_" in tenant.stack.http("meter", "/metrics")[1]


def test_transitions_are_reported_by_events(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(balance="1")
    tenant.service("own", model)
    tenant.wait_running("own", 1)
    tenant.charge("own", model, 1)
    tenant.wait_stopped("own", "Overdue")
    tenant.topup("1")
    tenant.wait_running("own", 1)
    tenant.edit("own", postpaid=False)
    tenant.wait_stopped("own", "PostpaidDisabled")

    def reported() -> bool:
        items = json.loads(tenant.kubectl("get", "events.events.k8s.io", "-o=json"))["items"]
        seen = {(item["regarding"]["kind"], item["reason"], item["action"], item["type"]) for item in items}
        expected = {
            ("InferenceService", "Serving", "Start", "Normal"),
            ("InferenceService", "Overdue", "Stop", "Warning"),
            ("InferenceService", "PostpaidDisabled", "Stop", "Normal"),
            ("BillingAccount", "Overdue", "Stop", "Warning"),
            ("BillingAccount", "Active", "Resume", "Normal"),
            ("TopUp", "Posted", "Post", "Normal"),
        }
        assert expected <= seen, expected - seen
        return True

    wait_for("the Events", reported, SECONDS)
    described = tenant.kubectl("describe", "infsvc/own")
    assert "Overdue" in described.partition("Events:")[2]


def test_columns_say_what_people_ask_first(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account()
    tenant.service("own", model, replicas=2)
    tenant.wait_stopped("own", "Overdue")
    header, line = tenant.kubectl("get", "infsvc").splitlines()
    assert header.split() == ["NAME", "MODEL", "TYPE", "PHASE", "BILLING", "REASON", "REPLICAS", "AGE"]
    assert line.split()[:7] == ["own", model, "Custom", "Stopped", "PayAsYouGo", "Overdue", "0"]
    tenant.wait_account(balance="0.00", state="Overdue")
    header, line = tenant.kubectl("get", "ba").splitlines()
    assert header.split() == ["NAME", "BALANCE", "STATE", "RUNNING", "STOPPED", "AGE"]
    assert line.split()[:3] == ["acme", "0.00", "Overdue"]


def test_logs_are_json_and_hold_no_token(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(balance="1")
    tenant.service("own", model)
    tenant.wait_running("own", 1)
    tenant.charge("own", model, 1)
    tenant.wait_stopped("own", "Overdue")
    stack = tenant.stack
    for component in ("operator", "meter"):
        text = stack.logs(component)
        # The last line may not be written to its end.
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        assert lines
        assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
        # Every token of a ServiceAccount begins so: {"alg": in base64.
        assert "eyJhbGci" not in text
        assert "Bearer" not in text
