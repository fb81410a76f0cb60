"""The states of a service: enabled, overdue, topped up, disabled, edited meanwhile (B2-B5, B7, B8)."""

import itertools
import json
import re

import pytest

from tests.integration.tenants import SECONDS, Tenant, condition_of, template
from tests.support.api import path_of
from tests.support.waiting import wait_for
from tests.tools.plane import KubectlError

pytestmark = pytest.mark.plane


def autoscaler(service: str, replicas: int) -> str:
    """An HPA on a service; without metrics it still enforces minReplicas."""
    return f"""
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{name: {service}}}
spec:
  minReplicas: {replicas}
  maxReplicas: {replicas + 1}
  scaleTargetRef: {{apiVersion: farebox.dev/v1alpha1, kind: InferenceService, name: {service}}}
"""


def test_b2_first_enable_goes_from_not_enabled_through_creating_to_running(tenant: Tenant) -> None:
    model = tenant.model(pods=template(hold=True))
    tenant.account(defaultServices={"models": "All"}, balance="5")
    tenant.wait_state(model, "NotEnabled", "PostpaidDisabled")
    since = tenant.version(model)
    tenant.edit(model, postpaid=True)
    tenant.wait_state(model, "Creating")
    tenant.wait_condition(model, "Reconciling", "True", "Creating")
    tenant.wait_condition(model, "Serving", "False", "Creating")
    tenant.release(f"m-{model}", pods=1)
    status = tenant.wait_state(model, "Running")
    tenant.wait_condition(model, "Ready", "True", "Running")
    tenant.wait_condition(model, "Serving", "True", "Serving")
    assert status["enabledAt"] <= status["firstRunningAt"] <= status["lastTransitionTime"]
    assert tenant.phases(since, model) == ["NotEnabled", "Creating", "Running"]


def test_b2_a_dedicated_service_runs_with_its_replicas_and_reports_its_addresses(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(balance="5")
    tenant.service("own", model, replicas=3)
    tenant.wait_running("own", 3)
    wait_for("counts", lambda: tenant.status("own")["readyReplicas"] == 3, SECONDS)
    status = tenant.status("own")
    name = tenant.backend_name("own")
    assert status["endpoint"] == "http://farebox-gateway.farebox-system.svc/v1"
    address = f"http://{name}.farebox-models.svc:8000"
    assert status["backend"] == address
    service = tenant.api.get(f"/api/v1/namespaces/farebox-models/services/{name}")
    pods = tenant.pods(name)
    selector = service["spec"]["selector"].items()
    assert all(selector <= pod["metadata"]["labels"].items() for pod in pods)
    assert len(pods) == 3
    assert status["selector"] == ",".join(f"{key}={value}" for key, value in selector)


def test_b31_a_status_that_has_the_backend_as_endpoint_is_corrected(tenant: Tenant) -> None:
    """An earlier version wrote the address of the backend there."""
    tenant.account(balance="5")
    tenant.service("off", tenant.model(), postpaid=False)
    written = tenant.wait_state("off", "Stopped", "PostpaidDisabled")
    path = path_of("InferenceService", tenant.namespace, "off")
    old = {"endpoint": written["backend"], "backend": None}
    tenant.api.patch(f"{path}/status", {"status": old})
    wait_for("the status is corrected", lambda: tenant.status("off") == written, SECONDS)


def test_b3_overdue_stops_exactly_the_services_that_pay_as_they_go(tenant: Tenant) -> None:
    model, other_model = tenant.model(), tenant.model("other")
    tenant.account(balance="5")
    tenant.account("rich", balance="5")
    tenant.service("two", model, replicas=2)
    tenant.service("one", model)
    tenant.service("shared", model, dedicated=False)
    tenant.service("off", model, postpaid=False)
    tenant.service("elsewhere", other_model, account="rich")
    tenant.wait_running("two", 2)
    tenant.wait_running("one", 1)
    tenant.wait_state("shared", "Running")
    tenant.wait_running("elsewhere", 1)
    tenant.wait_stopped("off", "PostpaidDisabled")
    untouched = {name: tenant.version(name) for name in ("off", "elsewhere")}

    tenant.charge("one", model, 5)
    for name in ("two", "one"):
        tenant.wait_stopped(name, "Overdue")
        tenant.wait_condition(name, "Ready", "False", "Overdue")
        tenant.wait_condition(name, "Stalled", "True", "Overdue")
        assert tenant.status(name)["billingMode"] == "PayAsYouGo"
    tenant.wait_state("shared", "Stopped", "Overdue")
    tenant.wait_shared(model, 0)
    account = tenant.wait_account(
        state="Overdue", services={"notEnabled": 0, "creating": 0, "running": 0, "stopped": 4}
    )
    assert (account["balance"], account["available"]) == ("0.00", "0.00")
    tenant.kubectl("scale", "infsvc/two", "--replicas=4")
    tenant.wait_stopped("two", "Overdue")

    tenant.topup("0.01")
    tenant.wait_running("two", 4)
    tenant.wait_running("one", 1)
    tenant.wait_state("shared", "Running")
    tenant.wait_shared(model, 1)
    tenant.wait_account(state="Active", services={"notEnabled": 0, "creating": 0, "running": 3, "stopped": 1})
    assert {name: tenant.version(name) for name in untouched} == untouched


def test_b3_a_top_up_that_is_too_small_changes_nothing_and_says_how_much_is_missing(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(balance="1")
    tenant.service("one", model)
    tenant.wait_running("one", 1)
    tenant.charge("one", model, 11)
    tenant.wait_stopped("one", "Overdue")
    ready = tenant.wait_condition("acme", "Ready", "True", "Overdue", kind="BillingAccount")
    assert "more than 10.00" in ready["message"]
    since = tenant.version("one")
    receipt = tenant.wait_topup(tenant.topup("4"))
    assert receipt["balanceAfter"] == "-6.00"
    assert "still overdue. Top up more than 6.00" in receipt["message"]
    exact = tenant.wait_topup(tenant.topup("6"))
    assert "Any top-up reactivates the account" in exact["message"]
    tenant.wait_stopped("one", "Overdue")
    tenant.wait_topup(tenant.topup("0.000000001"))
    tenant.wait_running("one", 1)
    # Nothing was ever tried in between.
    assert tenant.phases(since, "one") == ["Stopped", "Running"]
    counts = [state["status"]["replicas"] for state in tenant.history(since, "one")]
    assert counts == sorted(counts)


def test_b3_a_credit_limit_is_spent_before_a_service_stops_and_can_be_raised(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(creditLimit="10")
    tenant.service("one", model)
    tenant.wait_running("one", 1)
    tenant.charge("one", model, 9.999999)
    tenant.wait_account(state="Active")
    tenant.charge("one", model, 0.000001)
    tenant.wait_stopped("one", "Overdue")
    raised = {"spec": {"creditLimit": "10.000000001"}}
    tenant.kubectl("patch", "ba/acme", "--type=merge", f"-p={json.dumps(raised)}")
    tenant.wait_running("one", 1)
    lowered = {"spec": {"creditLimit": "1"}}
    tenant.kubectl("patch", "ba/acme", "--type=merge", f"-p={json.dumps(lowered)}")
    tenant.wait_stopped("one", "Overdue")


ORDERS = [
    order
    for order in itertools.permutations(("disable", "overdue", "topup", "enable"))
    if order.index("overdue") < order.index("topup") and order.index("disable") < order.index("enable")
]


def test_b4_no_top_up_restarts_what_its_owner_disabled_in_whatever_order(tenant: Tenant) -> None:
    model = tenant.model()
    names = ["-".join(order) for order in ORDERS]
    for name in names:
        tenant.account(name, balance="1")
        tenant.service(name, model, account=name)
    for name in names:
        tenant.wait_running(name, 1)
    for step in range(4):
        for name, order in zip(names, ORDERS, strict=True):
            act(tenant, name, model, order[step])
        for name, order in zip(names, ORDERS, strict=True):
            done = order[: step + 1]
            overdue = "overdue" in done and "topup" not in done
            tenant.wait_account(name, state="Overdue" if overdue else "Active")
            if "disable" in done and "enable" not in done:
                tenant.wait_stopped(name, "PostpaidDisabled")
                tenant.wait_condition(name, "Ready", "True", "Disabled")
                assert tenant.status(name)["billingMode"] == "None"
            elif overdue:
                tenant.wait_stopped(name, "Overdue")
            else:
                tenant.wait_running(name, 1)


def act(tenant: Tenant, name: str, model: str, action: str) -> None:
    """One of the four actions on a service and the account of its name."""
    match action:
        case "disable" | "enable":
            tenant.edit(name, postpaid=action == "enable")
        case "overdue":
            tenant.charge(name, model, 2)
        case "topup":
            tenant.topup("2", account=name)


def test_b5_edits_while_stopped_act_on_resume(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(balance="1")
    for name in ("scaled", "limited", "switched-off"):
        tenant.service(name, model)
        tenant.wait_running(name, 1)
    tenant.charge("scaled", model, 2)
    for name in ("scaled", "limited", "switched-off"):
        tenant.wait_stopped(name, "Overdue")
    tenant.kubectl("scale", "infsvc/scaled", "--replicas=3")
    tenant.edit("limited", limits={"rpm": 5}, replicas=2)
    tenant.edit("switched-off", postpaid=False)
    tenant.wait_stopped("scaled", "Overdue")
    tenant.wait_stopped("limited", "Overdue")
    tenant.wait_stopped("switched-off", "PostpaidDisabled")
    tenant.topup("5")
    tenant.wait_running("scaled", 3)
    tenant.wait_running("limited", 2)
    tenant.wait_stopped("switched-off", "PostpaidDisabled")


@pytest.mark.parametrize("reason", ["Overdue", "PostpaidDisabled"])
def test_b5_an_autoscaler_never_wakes_a_stopped_service(tenant: Tenant, reason: str) -> None:
    model = tenant.model()
    tenant.account(balance="1")
    tenant.service("hpa", model)
    tenant.wait_running("hpa", 1)
    if reason == "Overdue":
        tenant.charge("hpa", model, 1)
    else:
        tenant.edit("hpa", postpaid=False)
    tenant.wait_stopped("hpa", reason)
    since = tenant.version("hpa")
    tenant.apply(autoscaler("hpa", 3))
    # It has done what it can: the wish is there, and the operator has seen it.
    wait_for("the autoscaler acts", lambda: tenant.get("hpa")["spec"]["replicas"] == 3, SECONDS)
    tenant.wait_stopped("hpa", reason)
    assert tenant.phases(since, "hpa") == ["Stopped"]
    if reason == "Overdue":
        tenant.topup("1")
    else:
        tenant.edit("hpa", postpaid=True)
    tenant.wait_running("hpa", 3)


def test_b5_a_running_service_follows_its_autoscaler_and_zero_is_ready(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(balance="1")
    tenant.service("hpa", model)
    tenant.wait_running("hpa", 1)
    since = tenant.version("hpa")
    tenant.apply(autoscaler("hpa", 2))
    tenant.wait_running("hpa", 2)
    tenant.kubectl("delete", "hpa/hpa")
    tenant.kubectl("scale", "infsvc/hpa", "--replicas=0")
    tenant.wait_running("hpa", 0)
    tenant.wait_condition("hpa", "Serving", "False", "ScaledToZero")
    tenant.kubectl("scale", "infsvc/hpa", "--replicas=1")
    tenant.wait_running("hpa", 1)
    assert tenant.phases(since, "hpa") == ["Running"]


def test_b7_two_services_on_one_model_are_independent(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account("poor", balance="1")
    tenant.account("rich", balance="1")
    tenant.service("a", model, account="poor", limits={"rpm": 1})
    tenant.service("b", model, account="rich", replicas=2)
    tenant.service("c", model, account="rich", dedicated=False)
    tenant.wait_running("a", 1)
    tenant.wait_running("b", 2)
    tenant.wait_state("c", "Running")
    untouched = tenant.version("b"), tenant.version("c")
    tenant.charge("a", model, 1)
    tenant.wait_stopped("a", "Overdue")
    tenant.wait_account("rich", balance="1.00")
    assert (tenant.version("b"), tenant.version("c")) == untouched
    tenant.edit("b", postpaid=False)
    tenant.topup("1", account="poor")
    tenant.wait_running("a", 1)
    tenant.wait_stopped("b", "PostpaidDisabled")
    assert tenant.version("c") == untouched[1]


def test_b8_what_cannot_be_changed_is_refused_with_what_to_do_instead(tenant: Tenant) -> None:
    model, other = tenant.model(), tenant.model("other")
    tenant.account(balance="1")
    tenant.service("fixed", model)
    tenant.wait_running("fixed", 1)
    for spec, sentence in (
        ({"modelRef": {"name": other}}, "modelRef cannot be changed: create another service"),
        ({"billingAccountRef": {"name": "x"}}, "billingAccountRef cannot be changed: create another service"),
        ({"dedicated": False}, "dedicated cannot be changed: create another service"),
        ({"type": "Default"}, "type cannot be changed: create another service"),
    ):
        patch = json.dumps({"spec": spec})
        with pytest.raises(KubectlError, match=re.escape(sentence)):
            tenant.kubectl("patch", "infsvc/fixed", "--type=merge", f"-p={patch}")
    tenant.wait_running("fixed", 1)


def test_b8_a_limit_above_the_models_ceiling_is_reported_until_it_is_mended(tenant: Tenant) -> None:
    model = tenant.model(limits={"rpm": 100, "tpm": 5000})
    tenant.account(balance="1")
    tenant.service("greedy", model, limits={"rpm": 101})
    ready = tenant.wait_condition("greedy", "Ready", "False", "LimitAboveCeiling")
    assert "spec.limits.rpm is 101, above the ceiling of 100" in ready["message"]
    tenant.wait_condition("greedy", "Stalled", "True", "LimitAboveCeiling")
    # The ceiling applies; it keeps nobody from serving.
    tenant.wait_condition("greedy", "Serving", "True")
    tenant.edit("greedy", limits={"rpm": 100})
    tenant.wait_running("greedy", 1)
    tenant.wait_condition("greedy", "Stalled", "False")
    tenant.edit_model(model, limits={"rpm": 99})
    condition = tenant.wait_condition("greedy", "Stalled", "True", "LimitAboveCeiling")
    assert "ceiling of 99" in condition["message"]
    tenant.edit_model(model, limits={"rpm": 0})
    tenant.wait_condition("greedy", "Stalled", "False")
    assert condition_of(tenant.get("greedy"), "Ready")["status"] == "True"
