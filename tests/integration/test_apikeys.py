"""Keys on the plane, made by the operator with its own token (B14, B20, B22, B24)."""

import base64
import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from farebox.kube.names import core_path
from tests.integration.dedicated_stack import operators
from tests.integration.tenants import SECONDS, Tenant, condition_of
from tests.support.api import Api, ApiError, JSONObject, manifest, path_of
from tests.support.stack import SYSTEM, Stack
from tests.support.waiting import wait_for

pytestmark = pytest.mark.plane

FOREIGN = base64.b64encode(b"somebody's own").decode()


def make(tenant: Tenant, name: str, **spec: object) -> None:
    """Create an APIKey as a user does."""
    body = manifest("APIKey", name, {"services": {"all": True}} | spec, tenant.namespace)
    tenant.api.create(path_of("APIKey", tenant.namespace), body)


def edit(tenant: Tenant, name: str, **spec: object) -> None:
    tenant.api.patch(path_of("APIKey", tenant.namespace, name), {"spec": spec})


def nudge(tenant: Tenant, name: str) -> None:
    """Make the operator look at a key now, not at its next sweep."""
    annotations = {"tests/nudge": datetime.now(UTC).isoformat()}
    tenant.api.patch(path_of("APIKey", tenant.namespace, name), {"metadata": {"annotations": annotations}})


def secret(tenant: Tenant, name: str) -> JSONObject:
    return tenant.api.get(core_path("secrets", tenant.namespace, name))


def token_of(found: JSONObject) -> str:
    return base64.b64decode(found["data"]["api-key"]).decode()


def wait_state(tenant: Tenant, name: str, reason: str, status: str = "True") -> JSONObject:
    """Wait until a key's Ready has a reason; returns the whole status."""
    tenant.wait_condition(name, "Ready", status, reason, kind="APIKey")
    return tenant.status(name, "APIKey")


def wait_working(tenant: Tenant, name: str) -> str:
    """Wait until a key is Active, and check that it is in its Secret; returns it."""
    status = wait_state(tenant, name, "Active")
    token = token_of(secret(tenant, name))
    assert status["keyHash"] == hashlib.sha256(token.encode()).hexdigest()
    assert status["prefix"] == token[:8]
    assert status["secretName"] == name
    return token


def put_foreign_secret(tenant: Tenant, name: str, value: str = FOREIGN) -> JSONObject:
    body: JSONObject = {"metadata": {"name": name}, "data": {"api-key": value}}
    return tenant.api.create(core_path("secrets", tenant.namespace), body)


def test_b14_a_key_is_made_once_and_only_its_hash_is_kept(tenant: Tenant) -> None:
    make(tenant, "app", services={"names": ["chat"]}, quota={"tokens": 5, "period": "Day"})
    token = wait_working(tenant, "app")
    assert re.fullmatch(r"fbx_[A-Za-z0-9_-]{43}", token)
    found, apikey = secret(tenant, "app"), tenant.get("app", "APIKey")
    (owner,) = found["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("APIKey", "app", apikey["metadata"]["uid"])
    assert "blockOwnerDeletion" not in owner
    assert (found["type"], found["immutable"], list(found["data"])) == (
        "farebox.dev/api-key",
        True,
        ["api-key"],
    )
    assert "finalizers" not in apikey["metadata"]
    assert token not in str(apikey)
    # Editing it makes no other key.
    edit(tenant, "app", services={"names": ["chat", "more"]}, quota=None)
    wait_working(tenant, "app")
    assert secret(tenant, "app")["metadata"]["uid"] == found["metadata"]["uid"]
    assert condition_of(tenant.get("app", "APIKey"), "Ready")["observedGeneration"] == 2


def test_b14_the_key_is_in_no_log_and_no_event(tenant: Tenant) -> None:
    make(tenant, "app")
    token = wait_working(tenant, "app")
    secret_forms = (token, base64.b64encode(token.encode()).decode(), token[4:])
    path = f"/apis/events.k8s.io/v1/namespaces/{tenant.namespace}/events"
    event = wait_for(
        "the Event",
        lambda: next((e for e in tenant.api.get(path)["items"] if e["reason"] == "SecretMade"), None),
        SECONDS,
    )
    logs = tenant.stack.logs("operator")
    for form in secret_forms:
        assert form not in str(event)
        assert form not in logs


def test_b14_disabling_and_expiry_show_in_the_state(tenant: Tenant) -> None:
    make(tenant, "app", disabled=True)
    wait_state(tenant, "app", "Disabled")
    edit(tenant, "app", disabled=False)
    token = wait_working(tenant, "app")
    soon = datetime.now(UTC) + timedelta(seconds=3)
    edit(tenant, "app", expiresAt=soon.isoformat())
    wait_state(tenant, "app", "Expired")
    assert datetime.now(UTC) >= soon.replace(microsecond=0)
    edit(tenant, "app", expiresAt=None)
    assert wait_working(tenant, "app") == token
    assert condition_of(tenant.get("app", "APIKey"), "Stalled")["status"] == "False"


def test_b22_a_secret_that_was_there_is_neither_taken_nor_changed(tenant: Tenant) -> None:
    foreign = put_foreign_secret(tenant, "app")
    make(tenant, "app")
    status = wait_state(tenant, "app", "SecretExists", "False")
    assert "keyHash" not in status
    assert "secretName" not in status
    assert "Delete it" in condition_of(tenant.get("app", "APIKey"), "Ready")["message"]
    assert secret(tenant, "app") == foreign
    tenant.api.delete(core_path("secrets", tenant.namespace, "app"))
    wait_working(tenant, "app")


def test_b22_a_foreign_secret_that_stays_is_a_standstill(tenant: Tenant) -> None:
    foreign = put_foreign_secret(tenant, "app")
    make(tenant, "app")
    tenant.wait_condition("app", "Stalled", "True", "SecretExists", kind="APIKey")
    assert condition_of(tenant.get("app", "APIKey"), "Reconciling")["status"] == "False"
    assert secret(tenant, "app") == foreign
    before = tenant.version("app", "APIKey")
    # A second look changes nothing, and holds up no other key.
    nudge(tenant, "app")
    nudged = tenant.version("app", "APIKey")
    make(tenant, "next")
    wait_working(tenant, "next")
    assert tenant.version("app", "APIKey") == nudged != before
    assert secret(tenant, "app") == foreign


def test_b23_a_refused_secret_is_reported_with_the_api_servers_message(tenant: Tenant) -> None:
    path = core_path("resourcequotas", tenant.namespace)
    body = {"metadata": {"name": "none"}, "spec": {"hard": {"count/secrets": "0"}}}
    tenant.api.create(path, body)
    wait_for(
        "the quota counts", lambda: tenant.api.get(f"{path}/none").get("status", {}).get("used"), SECONDS
    )
    make(tenant, "app")
    tenant.wait_condition("app", "Stalled", "True", "SecretRefused", kind="APIKey")
    message = condition_of(tenant.get("app", "APIKey"), "Ready")["message"]
    assert "exceeded quota: none" in message
    assert "keyHash" not in tenant.status("app", "APIKey")
    tenant.api.delete(f"{path}/none")
    # Admission remembers a quota for a moment after it is gone.
    wait_for("the key without the quota", lambda: _nudged_state(tenant, "app") == "Active", SECONDS)
    wait_working(tenant, "app")


def _nudged_state(tenant: Tenant, name: str) -> str:
    nudge(tenant, name)
    return str(condition_of(tenant.get(name, "APIKey"), "Ready")["reason"])


def test_b20_a_reconcile_cut_off_after_the_secret_is_finished(tenant: Tenant) -> None:
    """The half-done state, made by hand: hash and Secret are there, and the status does not name it."""
    token = "fbx_" + "a" * 43
    put_foreign_secret(tenant, "app", base64.b64encode(token.encode()).decode())
    make(tenant, "app")
    wait_state(tenant, "app", "SecretExists", "False")
    record_hash(tenant, "app", token)
    nudge(tenant, "app")
    assert wait_working(tenant, "app") == token
    assert "createdAt" not in tenant.status("app", "APIKey")
    assert "status.keyHash" in condition_of(tenant.get("app", "APIKey"), "Ready")["message"]


def test_b20_a_reconcile_cut_off_before_the_secret_is_repeated(tenant: Tenant) -> None:
    put_foreign_secret(tenant, "app")
    make(tenant, "app")
    wait_state(tenant, "app", "SecretExists", "False")
    lost = "fbx_" + "b" * 43
    # Both at once, or the operator sees the one without the other.
    tenant.api.delete(core_path("secrets", tenant.namespace, "app"))
    record_hash(tenant, "app", lost)
    nudge(tenant, "app")
    assert wait_working(tenant, "app") != lost
    assert "createdAt" in tenant.status("app", "APIKey")


def record_hash(tenant: Tenant, name: str, token: str) -> None:
    status = {"keyHash": hashlib.sha256(token.encode()).hexdigest(), "prefix": token[:8]}
    tenant.api.patch(path_of("APIKey", tenant.namespace, name, "status"), {"status": status})


def test_b22_the_operator_itself_cannot_read_or_change_a_secret(tenant: Tenant) -> None:
    make(tenant, "app")
    wait_working(tenant, "app")
    operator = Api(tenant.stack.cluster.service_account_kubeconfig(SYSTEM, "farebox-operator"))
    path = core_path("secrets", tenant.namespace)
    attempts = [
        lambda: operator.get(path),
        lambda: operator.get(f"{path}?watch=1&timeoutSeconds=1"),
        lambda: operator.get(f"{path}/app"),
        lambda: operator.patch(f"{path}/app", {"metadata": {"labels": {"a": "b"}}}),
        lambda: operator.request("DELETE", f"{path}/app"),
        lambda: operator.request("DELETE", path),
    ]
    for attempt in attempts:
        with pytest.raises(ApiError) as error:
            attempt()
        assert error.value.status == 403


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "Opaque"}, "no Secret but those of type"),
        (
            {
                "type": "kubernetes.io/service-account-token",
                "metadata": {"annotations": {"kubernetes.io/service-account.name": "default"}},
            },
            "no Secret but those of type",
        ),
        ({"metadata": {"name": "other"}}, "no Secret but that of an APIKey of the same name"),
        ({"metadata": {"ownerReferences": []}}, "no Secret but that of an APIKey of the same name"),
    ],
    ids=["plain", "token of a ServiceAccount", "other name", "no owner"],
)
def test_b22_the_operator_can_make_no_other_secret(tenant: Tenant, part: JSONObject, says: str) -> None:
    make(tenant, "app")
    wait_working(tenant, "app")
    found = secret(tenant, "app")
    body: JSONObject = {key: found[key] for key in ("data", "type")}
    body["metadata"] = {"name": "app", "ownerReferences": found["metadata"]["ownerReferences"]}
    for key, value in part.items():
        body[key] = body[key] | value if isinstance(value, dict) else value
    operator = Api(tenant.stack.cluster.service_account_kubeconfig(SYSTEM, "farebox-operator"))

    def refused() -> bool:
        with pytest.raises(ApiError) as error:
            operator.create(f"{core_path('secrets', tenant.namespace)}?dryRun=All", body)
        return says in error.value.message

    # The API server takes a moment to act on a policy that is new.
    wait_for("the policy acts", refused, SECONDS)


def test_b22_a_tenant_manages_its_keys_and_forges_none(tenant: Tenant) -> None:
    account = f"--serviceaccount={tenant.namespace}:default"
    tenant.kubectl("create", "rolebinding", "editors", "--clusterrole=edit", account)
    person = Api(tenant.stack.cluster.service_account_kubeconfig(tenant.namespace, "default"))
    path = path_of("APIKey", tenant.namespace)
    wait_for("its rights", lambda: "items" in person.get(path), SECONDS)
    person.create(path, manifest("APIKey", "mine", {"services": {"all": True}}, tenant.namespace))
    token = wait_working(tenant, "mine")
    assert token_of(person.get(core_path("secrets", tenant.namespace, "mine"))) == token
    forged = {"status": {"keyHash": "0" * 64}}
    with pytest.raises(ApiError) as error:
        person.patch(f"{path}/mine/status", forged)
    assert error.value.status == 403
    person.patch(f"{path}/mine", forged)
    assert wait_working(tenant, "mine") == token
    with pytest.raises(ApiError) as error:
        person.create(path_of("APIKey", "default"), manifest("APIKey", "theirs", {"services": {"all": True}}))
    assert error.value.status == 403
    # Nobody puts another key into the Secret.
    with pytest.raises(ApiError, match="immutable"):
        person.patch(core_path("secrets", tenant.namespace, "mine"), {"data": {"api-key": FOREIGN}})
    person.delete(f"{path}/mine")
    tenant.wait_gone(f"{path}/mine")


def test_b24_a_key_goes_at_once_and_its_secret_with_it_and_its_name_is_free(tenant: Tenant) -> None:
    make(tenant, "app")
    first = wait_working(tenant, "app")
    path = path_of("APIKey", tenant.namespace, "app")
    tenant.api.delete(path)
    assert tenant.api.find(path) is None
    make(tenant, "app")
    assert wait_working(tenant, "app") != first
    assert condition_of(tenant.get("app", "APIKey"), "Stalled")["status"] == "False"
    tenant.api.delete(path)
    tenant.wait_gone(core_path("secrets", tenant.namespace, "app"))


def test_b24_a_namespace_with_keys_is_deleted_without_hanging(tenant: Tenant) -> None:
    make(tenant, "app")
    put_foreign_secret(tenant, "foreign")
    make(tenant, "foreign")
    wait_working(tenant, "app")
    wait_state(tenant, "foreign", "SecretExists", "False")
    tenant.stack.cluster.kubectl("delete", "namespace", tenant.namespace, "--timeout=60s")


@pytest.fixture
def killable(dedicated_stack: Stack) -> Iterator[Stack]:
    """The dedicated stack; operators that the test starts are stopped at its end."""
    with operators(dedicated_stack, 0):
        yield dedicated_stack


KILLS = 4
MOST_KEYS = 300


def only_operator(killable: Stack) -> None:
    """Start an operator; no other runs."""
    for process in killable.operators:
        if process.running():
            process.stop()
    killable.start_operator(FAREBOX_LEASE_SECONDS="3")


def test_b20_an_operator_that_is_killed_between_two_writes_loses_no_key(killable: Stack) -> None:
    tenant = Tenant(killable)
    names: list[str] = []
    for _ in range(KILLS):
        only_operator(killable)
        names.append(_new_key(tenant, names))
        wait_working(tenant, names[-1])
        # Stopped at any moment, again and again, until it stands still with a key half made.
        while True:
            names.append(_new_key(tenant, names))
            killable.operator.pause()
            if _half_made(tenant):
                killable.operator.kill()
                break
            killable.operator.resume()
    only_operator(killable)
    tokens = {wait_working(tenant, name) for name in names}
    assert len(tokens) == len(names)


def _new_key(tenant: Tenant, names: list[str]) -> str:
    assert len(names) < MOST_KEYS, "no moment was between two writes"
    name = f"k{len(names)}"
    make(tenant, name)
    return name


def _half_made(tenant: Tenant) -> bool:
    items = tenant.api.get(path_of("APIKey", tenant.namespace))["items"]
    statuses = [item.get("status") or {} for item in items]
    return any("keyHash" in status and "secretName" not in status for status in statuses)


def test_b20_an_operator_that_starts_among_finished_keys_writes_nothing(killable: Stack) -> None:
    tenant = Tenant(killable)
    only_operator(killable)
    names = [f"k{number}" for number in range(10)]
    for name in names:
        make(tenant, name)
    for name in names:
        wait_working(tenant, name)
    versions = [tenant.version(name, "APIKey") for name in names]
    only_operator(killable)
    # Keys are looked at in the order of the first list, then this one.
    make(tenant, "last")
    wait_working(tenant, "last")
    assert [tenant.version(name, "APIKey") for name in names] == versions
