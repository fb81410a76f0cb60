"""Backends: Farebox restores what runs behind services after any change by others (B3, B5, B23)."""

import pytest

from farebox.kube.names import core_path, deployment_path, shared_backend_name
from tests.integration.tenants import SECONDS, Tenant, condition_of, template
from tests.support.api import JSONObject, path_of
from tests.support.stack import BACKENDS
from tests.support.waiting import wait_for

pytestmark = pytest.mark.plane

MEMORY = {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}
REFUSED = {"spec": {"containers": [{"name": "server", "image": "none", "resources": MEMORY}]}}
"""A template that the CRD's schema lets in and the API server refuses in a Deployment."""
SAID = "must be less than or equal to memory limit"


@pytest.fixture
def running(tenant: Tenant) -> Tenant:
    """A tenant with a dedicated service `own` of two replicas, Running."""
    model = tenant.model()
    tenant.account(balance="5")
    tenant.service("own", model, replicas=2)
    tenant.wait_running("own", 2)
    return tenant


def version_of(deployment: JSONObject | None) -> str:
    assert deployment is not None
    return str(deployment["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"])


def served_since(tenant: Tenant, since: str, name: str) -> bool:
    """Whether the gateway could take calls of a service all the time after a resourceVersion."""
    states = tenant.history(since, name)
    return all(condition_of(state, "Serving")["status"] == "True" for state in states)


def own_path(tenant: Tenant) -> str:
    return deployment_path(BACKENDS, tenant.backend_name("own"))


def test_b5_a_deployment_scaled_by_hand_is_put_right(running: Tenant) -> None:
    since = running.version("own")
    running.api.patch(own_path(running), {"spec": {"replicas": 5}})
    running.wait_running("own", 2)
    assert served_since(running, since, "own")
    for replicas in (5, 0, 1):
        running.api.patch(own_path(running), {"spec": {"replicas": replicas}})
        wait_for("it is put right", lambda: running.backend("own")["spec"]["replicas"] == 2, SECONDS)  # type: ignore[index]
    running.wait_running("own", 2)
    running.edit("own", postpaid=False)
    running.wait_stopped("own", "PostpaidDisabled")
    running.kubectl("scale", "-n", BACKENDS, f"deployment/{running.backend_name('own')}", "--replicas=3")
    wait_for("it is put right", lambda: running.backend("own")["spec"]["replicas"] == 0, SECONDS)  # type: ignore[index]
    running.wait_stopped("own", "PostpaidDisabled")


def test_b5_a_deleted_deployment_is_created_again_and_a_stopped_one_when_needed(running: Tenant) -> None:
    uid = running.api.get(own_path(running))["metadata"]["uid"]
    running.api.delete(own_path(running))
    wait_for("a new one", lambda: running.api.get(own_path(running))["metadata"]["uid"] != uid, SECONDS)
    running.wait_running("own", 2)
    running.edit("own", postpaid=False)
    running.wait_stopped("own", "PostpaidDisabled")
    running.api.delete(own_path(running))
    running.edit("own", limits={"rpm": 1})
    running.wait_stopped("own", "PostpaidDisabled")
    assert running.backend("own") is None
    running.edit("own", postpaid=True)
    running.wait_running("own", 2)


def test_b5_a_deployment_edited_by_hand_is_put_right_and_foreign_labels_stay(running: Tenant) -> None:
    edits: tuple[JSONObject, ...] = (
        {"spec": {"template": {"spec": {"containers": [{"name": "server", "image": "miner"}]}}}},
        {"metadata": {"labels": {"farebox.dev/model": "stolen", "mine": "kept"}}},
        {"metadata": {"labels": {"app.kubernetes.io/managed-by": None, "farebox.dev/service-uid": None}}},
        {"metadata": {"annotations": {"farebox.dev/service-name": "another", "farebox.dev/model": None}}},
    )
    asked = running.api.get(own_path(running))

    def is_right() -> bool:
        found = running.api.get(own_path(running))
        labels, annotations = found["metadata"]["labels"], found["metadata"]["annotations"]
        assert found["spec"]["template"] == asked["spec"]["template"]
        assert asked["metadata"]["labels"].items() <= labels.items(), labels
        ours = {key: text for key, text in asked["metadata"]["annotations"].items() if "farebox" in key}
        assert ours.items() <= annotations.items(), annotations
        return True

    for edit in edits:
        running.api.patch(own_path(running), edit)
        wait_for(f"put right after {edit}", is_right, SECONDS)
    running.wait_running("own", 2)
    assert running.api.get(own_path(running))["metadata"]["labels"]["mine"] == "kept"


def test_b5_a_deleted_service_of_a_backend_is_created_again(running: Tenant) -> None:
    path = core_path("services", BACKENDS, running.backend_name("own"))
    uid = running.api.get(path)["metadata"]["uid"]
    running.api.delete(path)
    wait_for("a new one", lambda: running.api.get(path)["metadata"]["uid"] != uid, SECONDS)


def test_b5_a_service_of_a_backend_edited_by_hand_is_put_right_and_foreign_labels_stay(
    running: Tenant,
) -> None:
    path = core_path("services", BACKENDS, running.backend_name("own"))
    asked = running.api.get(path)["spec"]
    edits: tuple[JSONObject, ...] = (
        {
            "metadata": {"labels": {"mine": "kept"}},
            "spec": {"selector": {"farebox.dev/backend": "elsewhere"}},
        },
        {"spec": {"selector": {"farebox.dev/backend": None, "app": "elsewhere"}}},
        {"spec": {"ports": [{"port": 80, "targetPort": 8000}]}},
        {"spec": {"ports": [{"name": "http", "port": 8000, "targetPort": 22}]}},
    )
    for edit in edits:
        running.api.patch(path, edit)
        wait_for(f"put right after {edit}", lambda: running.api.get(path)["spec"] == asked, SECONDS)
    assert running.api.get(path)["metadata"]["labels"]["mine"] == "kept"


def own_shared_and_off(tenant: Tenant, model: str, replicas: int = 1) -> None:
    """Three services: one with a backend of its own, one on the shared backend, and one that was disabled."""
    tenant.account(balance="5")
    tenant.service("own", model, replicas=replicas)
    tenant.service("shared", model, dedicated=False)
    tenant.service("off", model)
    tenant.wait_running("own", replicas)
    tenant.wait_state("shared", "Running")
    tenant.wait_running("off", 1)
    tenant.edit("off", postpaid=False)
    tenant.wait_stopped("off", "PostpaidDisabled")


def test_a_port_edited_in_the_model_is_that_of_its_services_too(tenant: Tenant) -> None:
    model = tenant.model()
    own_shared_and_off(tenant, model)
    tenant.edit_model(model, serving={"deployment": {"port": 9000}})
    tenant.edit("off", postpaid=True)
    for name in ("own", "shared", "off"):
        backend = shared_backend_name(model) if name == "shared" else tenant.backend_name(name)
        path = core_path("services", BACKENDS, backend)

        def leads_there(path: str = path) -> bool:
            (port,) = tenant.api.get(path)["spec"]["ports"]
            return (port["port"], port["targetPort"]) == (9000, 9000)

        wait_for(f"{name} has the port", leads_there, SECONDS)
        address = f"http://{backend}.{BACKENDS}.svc:9000"
        wait_for("the address", lambda name=name, at=address: tenant.status(name)["backend"] == at, SECONDS)  # type: ignore[misc]


def test_the_shared_backend_is_at_zero_exactly_when_no_service_needs_it(tenant: Tenant) -> None:
    model = tenant.model(deployment={"replicas": 2})
    tenant.account("one", balance="5")
    tenant.account("two", balance="5")
    tenant.service("a", model, account="one", dedicated=False, postpaid=False)
    tenant.service("b", model, account="two", dedicated=False, postpaid=False)
    tenant.service("own", model, account="two")
    tenant.wait_running("own", 1)
    tenant.wait_state("a", "Stopped", "PostpaidDisabled")
    tenant.wait_state("b", "Stopped", "PostpaidDisabled")
    tenant.wait_condition(model, "Ready", "True", "Idle", kind="Model")
    assert tenant.shared_backend(model) is None
    tenant.edit("a", postpaid=True)
    tenant.wait_state("a", "Running")
    tenant.wait_shared(model, 2)
    tenant.edit("b", postpaid=True)
    tenant.wait_state("b", "Running")
    tenant.charge("a", model, 5)
    tenant.wait_state("a", "Stopped", "Overdue")
    tenant.wait_shared(model, 2)
    # The scale subresource of the Model is for its shared backend.
    tenant.kubectl("scale", f"mdl/{model}", "--replicas=3")
    tenant.wait_shared(model, 3)
    tenant.delete("InferenceService", "b")
    tenant.wait_shared(model, 0)
    tenant.wait_condition(model, "Ready", "True", "Idle", kind="Model")
    tenant.topup("1", account="one")
    tenant.wait_state("a", "Running")
    tenant.wait_shared(model, 3)
    tenant.wait_running("own", 1)


def test_an_edited_template_rolls_dedicated_and_shared_backends_and_nothing_stops(tenant: Tenant) -> None:
    model = tenant.model()
    own_shared_and_off(tenant, model, replicas=2)
    since = {name: tenant.version(name) for name in ("own", "shared")}
    tenant.edit_model(model, serving={"deployment": {"template": template(version="newer")}})
    for name in ("own", "shared"):
        path = deployment_path(BACKENDS, tenant.status(name)["selector"].removeprefix("farebox.dev/backend="))
        wait_for("the new template", lambda path=path: version_of(tenant.api.get(path)) == "newer", SECONDS)  # type: ignore[misc]
    tenant.wait_running("own", 2)
    tenant.wait_shared(model, 1)
    tenant.wait_condition("shared", "Ready", "True")
    for name, version in since.items():
        # A rollout as quick as here may come and go without a status that says so.
        assert set(tenant.phases(version, name)) <= {"Running"}
        assert served_since(tenant, version, name)
    # What stands still is not touched, and has the new template when it comes back.
    assert version_of(tenant.backend("off")) == "first"
    tenant.edit("off", postpaid=True)
    tenant.wait_running("off", 1)
    assert version_of(tenant.backend("off")) == "newer"


def test_b23_a_template_that_the_api_server_refuses_is_reported_and_delays_no_other_object(
    tenant: Tenant,
) -> None:
    refused, fine = tenant.model("refused", pods=REFUSED), tenant.model("fine")
    tenant.account(balance="5")
    for index in range(5):
        tenant.service(f"refused-{index}", refused)
    tenant.service("refused-shared", refused, dedicated=False)
    for index in range(5):
        condition = tenant.wait_condition(f"refused-{index}", "Stalled", "True", "BackendRejected")
        assert SAID in condition["message"]
    tenant.wait_condition("refused-shared", "Stalled", "True", "BackendRejected")
    condition = tenant.wait_condition(refused, "Stalled", "True", "BackendRejected", kind="Model")
    assert SAID in condition["message"]
    tenant.wait_event("refused-0", "BackendRejected", "Warning")
    tenant.wait_event(refused, "BackendRejected", "Warning", kind="Model")
    tenant.service("fine", fine)
    tenant.wait_running("fine", 1)
    tenant.edit_model(refused, serving={"deployment": {"template": template()}})
    for index in range(5):
        tenant.wait_running(f"refused-{index}", 1)
    tenant.wait_state("refused-shared", "Running")
    tenant.wait_condition(refused, "Ready", "True", kind="Model")


def test_b23_what_a_template_has_of_the_wrong_type_is_reported_and_null_is_as_absent(tenant: Tenant) -> None:
    """Where Farebox adds something of its own: labels, a drain."""
    server = template()["spec"]["containers"][0]
    nulls = {"spec": {"containers": [server | {"lifecycle": None}], "automountServiceAccountToken": None}}
    model = tenant.model("nulls", pods=nulls, deployment={"drainSeconds": 7})
    tenant.account(balance="5")
    tenant.service("own", model)
    tenant.wait_running("own", 1)
    (pod,) = tenant.pods(tenant.backend_name("own"))
    assert pod["spec"]["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 7}}}
    assert pod["spec"]["automountServiceAccountToken"] is False
    for name, pods in (
        ("labels", template() | {"metadata": {"labels": "app=llm"}}),
        ("lifecycle", {"spec": {"containers": [server | {"lifecycle": "stop"}]}}),
    ):
        wrong = tenant.model(name, pods=pods, deployment={"drainSeconds": 7})
        tenant.service(name, wrong)
        condition = tenant.wait_condition(name, "Stalled", "True", "BackendRejected")
        assert f".{name} of type" in condition["message"], condition["message"]


def test_b23_an_edit_of_a_template_that_is_refused_leaves_running_what_runs(running: Tenant) -> None:
    model = running.get("own")["spec"]["modelRef"]["name"]
    running.edit_model(model, serving={"deployment": {"template": REFUSED}})
    running.wait_condition("own", "Stalled", "True", "BackendRejected")
    running.wait_state("own", "Running")
    running.wait_condition("own", "Serving", "True")
    running.wait_backend("own", 2)
    # Even so it stops and can be scaled: the wish for pods does not hang on their template.
    running.edit("own", postpaid=False)
    running.wait_stopped("own", "PostpaidDisabled")
    running.edit_model(model, serving={"deployment": {"template": template(version="newer")}})
    running.edit("own", postpaid=True)
    running.wait_running("own", 2)


def test_b23_pods_that_the_cluster_refuses_are_reported(tenant: Tenant) -> None:
    # Pod Security lets the Deployment in and refuses its pods.
    model = tenant.model(pods=template(hostNetwork=True))
    tenant.account(balance="5")
    tenant.service("own", model)
    condition = tenant.wait_condition("own", "Stalled", "True", "BackendFailed")
    assert "violates PodSecurity" in condition["message"]
    tenant.wait_state("own", "Creating")
    tenant.edit_model(model, serving={"deployment": {"template": template(hostNetwork=False)}})
    tenant.wait_running("own", 1)


def test_b18_on_resume_a_service_stays_stopped_until_its_backend_is_ready(tenant: Tenant) -> None:
    model = tenant.model(pods=template(hold=True))
    tenant.account(balance="1")
    tenant.service("own", model, replicas=2)
    backend = tenant.backend_name("own")
    tenant.release(backend, pods=2)
    tenant.wait_running("own", 2)
    tenant.charge("own", model, 1)
    tenant.wait_stopped("own", "Overdue")
    since = tenant.version("own")
    tenant.topup("1")
    tenant.wait_state("own", "Stopped")
    tenant.wait_condition("own", "Reconciling", "True", "Resuming")
    tenant.wait_condition("own", "Serving", "False", "Resuming")
    wait_for("two pods", lambda: len(tenant.pods(backend)) == 2, SECONDS)
    assert tenant.status("own")["phase"] == "Stopped"
    tenant.release(backend, pods=2)
    tenant.wait_running("own", 2)
    assert tenant.phases(since, "own") == ["Stopped", "Running"]


def test_b18_calls_are_refused_before_the_pods_go(running: Tenant) -> None:
    since = running.version("own")
    deployments_since = running.api.get(own_path(running))["metadata"]["resourceVersion"]
    running.edit("own", postpaid=False)
    running.wait_stopped("own", "PostpaidDisabled")
    refusal = next(
        int(state["metadata"]["resourceVersion"])
        for state in running.history(since, "own")
        if condition_of(state, "Serving")["status"] == "False"
    )
    states = running.history_of(deployment_path(BACKENDS), deployments_since, running.backend_name("own"))
    scaled = next(state for state in states if state["spec"]["replicas"] == 0)
    assert refusal < int(scaled["metadata"]["resourceVersion"])


def test_a_running_service_whose_backend_fails_stays_running_and_does_not_serve(tenant: Tenant) -> None:
    running, model = tenant, tenant.model(pods=template(hold=True))
    tenant.account(balance="5")
    tenant.service("own", model, replicas=2)
    backend = running.backend_name("own")
    tenant.release(backend, pods=2)
    tenant.wait_running("own", 2)
    since = running.version("own")
    running.hold(backend)
    running.wait_condition("own", "Serving", "False", "NoReplicaReady")
    running.wait_event("own", "NoReplicaReady", "Warning")
    running.wait_condition("own", "Ready", "False", "Progressing")
    assert running.status("own")["phase"] == "Running"
    running.release(backend, pods=2)
    running.wait_condition("own", "Serving", "True")
    running.wait_running("own", 2)
    assert running.phases(since, "own") == ["Running"]


@pytest.mark.parametrize(
    "name",
    ["qwen2.5-7b", "9b", "x" + "y" * 200 + "z", "a.b-c.d"],
    ids=["dots", "a digit first", "long", "many dots"],
)
def test_names_that_services_of_kubernetes_cannot_have_work(tenant: Tenant, name: str) -> None:
    model = tenant.model(name)
    tenant.account(balance="5")
    tenant.service(name, model)
    tenant.service("shared", model, dedicated=False)
    tenant.wait_running(name, 1)
    tenant.wait_state("shared", "Running")
    tenant.wait_shared(model, 1)
    backend = tenant.backend_name(name)
    assert tenant.api.get(core_path("services", BACKENDS, backend))
    assert tenant.status(name)["backend"] == f"http://{backend}.{BACKENDS}.svc:8000"
    tenant.edit(name, postpaid=False)
    tenant.wait_stopped(name, "PostpaidDisabled")
    tenant.delete("InferenceService", name)
    tenant.wait_gone(deployment_path(BACKENDS, backend))


def test_names_that_look_alike_have_backends_of_their_own(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(balance="5", allowedNamespaces={"from": "All"})
    # "<namespace>/x" and "<namespace>-x/..." must never meet in one derived name.
    near = f"{tenant.namespace}-x"
    tenant.make_namespace(near)
    home = {"name": "acme", "namespace": tenant.namespace}
    tenant.service("x-y", model)
    tenant.service("y", model, namespace=near, billingAccountRef=home)
    tenant.wait_running("x-y", 1)
    wait_for(
        "the other runs", lambda: tenant.get("y", namespace=near)["status"]["phase"] == "Running", SECONDS
    )
    backends = tenant.api.get(f"{deployment_path(BACKENDS)}?labelSelector=farebox.dev/model={model}")["items"]
    assert len(backends) == 2


def test_an_external_model_runs_without_a_backend(tenant: Tenant) -> None:
    model = f"external-{tenant.unique}"
    serving = {"external": {"baseURL": "https://api.example.com/v1"}}
    prices = {"currency": tenant.currency, "tiers": [{"input": "1", "cachedInput": "1", "output": "1"}]}
    body = {"metadata": {"name": model}, "spec": {"serving": serving, "prices": prices}}
    tenant.api.create(path_of("Model"), {"apiVersion": "farebox.dev/v1alpha1", "kind": "Model"} | body)
    try:
        tenant.account(balance="1")
        tenant.service("far", model, dedicated=False)
        tenant.wait_state("far", "Running")
        tenant.wait_condition("far", "Ready", "True", "External")
        assert tenant.status("far")["backend"] == "https://api.example.com/v1"
        assert tenant.shared_backend(model) is None
        tenant.charge("far", model, 1)
        tenant.wait_state("far", "Stopped", "Overdue")
        tenant.topup("1")
        tenant.wait_state("far", "Running")
    finally:
        tenant.api.delete(path_of("Model", name=model))


def test_a_deployment_of_somebody_elses_under_a_backends_name_is_left_alone_and_reported(
    tenant: Tenant,
) -> None:
    model = tenant.model()
    name = shared_backend_name(model)
    labels = {"app": "foreign"}
    pods = {"metadata": {"labels": labels}, "spec": template()["spec"]}
    foreign = {"metadata": {"name": name}, "spec": {"selector": {"matchLabels": labels}, "template": pods}}
    tenant.api.create(deployment_path(BACKENDS), foreign)
    tenant.account(balance="5")
    tenant.service("shared", model, dedicated=False)
    condition = tenant.wait_condition("shared", "Stalled", "True", "BackendRejected")
    assert f"Deployment {BACKENDS}/{name} exists and was not created by Farebox" in condition["message"]
    assert tenant.api.get(deployment_path(BACKENDS, name))["metadata"].get("labels") is None
    tenant.api.delete(deployment_path(BACKENDS, name))
    # Nothing tells the operator that a foreign object went; the next try of its own finds out.
    tenant.edit_model(model, displayName="again")
    tenant.wait_state("shared", "Running")


def test_a_service_of_somebody_elses_under_a_backends_name_is_left_alone_and_reported(tenant: Tenant) -> None:
    model = tenant.model()
    path = core_path("services", BACKENDS, shared_backend_name(model))
    spec = {"selector": {"app": "foreign"}, "ports": [{"port": 80}]}
    foreign = tenant.api.create(
        core_path("services", BACKENDS), {"metadata": {"name": shared_backend_name(model)}, "spec": spec}
    )
    tenant.account(balance="5")
    tenant.service("shared", model, dedicated=False)
    condition = tenant.wait_condition("shared", "Stalled", "True", "BackendRejected")
    assert (
        f"Service {BACKENDS}/{shared_backend_name(model)} exists and was not created by Farebox"
        in condition["message"]
    )
    tenant.delete("Model", model)
    tenant.wait_gone(deployment_path(BACKENDS, shared_backend_name(model)))
    assert tenant.api.get(path)["metadata"]["resourceVersion"] == foreign["metadata"]["resourceVersion"]
    tenant.api.delete(path)
