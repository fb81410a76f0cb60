"""Who may do what, asked of a real API server with manifests/base on it (B22)."""

import itertools

import pytest

from tests.manifests.rights import (
    ADMIN,
    ANYBODY,
    BILLING,
    BILLING_ADMIN,
    EDITOR,
    GALLERY_ADMIN,
    GATEWAY,
    METER,
    OPERATOR,
    OTHER_TEAM,
    TEAM,
    VIEWER,
    Identity,
    Question,
    Rules,
    allowed,
    rules_of,
)
from tests.tools.plane import Cluster, KubectlError

pytestmark = pytest.mark.plane

OWN = "farebox.dev"
READ = frozenset({"get", "list", "watch"})
STATUS = frozenset({"patch"})

OPERATOR_EVERYWHERE: Rules = {
    (OWN, "models", ""): frozenset(),  # everybody may read the gallery already
    (OWN, "inferenceservices", ""): READ | {"create", "delete"},
    (OWN, "billingaccounts", ""): READ,
    (OWN, "topups", ""): READ,
    (OWN, "apikeys", ""): READ,
    (OWN, "models/status", ""): STATUS,
    (OWN, "inferenceservices/status", ""): STATUS,
    (OWN, "billingaccounts/status", ""): STATUS,
    (OWN, "topups/status", ""): STATUS,
    (OWN, "apikeys/status", ""): STATUS,
    (OWN, "ledgerrecords", ""): frozenset({"create"}),
    ("", "secrets", ""): frozenset({"create"}),
    ("", "namespaces", ""): READ,
    ("events.k8s.io", "events", ""): frozenset({"create"}),
}
OPERATOR_IN_MODELS: Rules = {
    ("apps", "deployments", ""): READ | {"create", "update", "delete"},
    ("apps", "deployments/scale", ""): frozenset({"patch"}),
    ("", "services", ""): READ | {"create", "update", "delete"},
}
OPERATOR_IN_SYSTEM: Rules = {
    ("coordination.k8s.io", "leases", ""): frozenset({"create"}),
    ("coordination.k8s.io", "leases", "farebox-operator"): frozenset({"get", "update"}),
}
METER_EVERYWHERE: Rules = {
    ("authentication.k8s.io", "tokenreviews", ""): frozenset({"create"}),
    ("authorization.k8s.io", "subjectaccessreviews", ""): frozenset({"create"}),
}
GATEWAY_EVERYWHERE: Rules = {
    (OWN, "usageevents", ""): frozenset({"create"}),
    (OWN, "models", ""): frozenset(),  # as above
    (OWN, "apikeys", ""): READ,
    (OWN, "inferenceservices", ""): READ,
    (OWN, "billingaccounts", ""): READ,
}
GATEWAY_IN_MODELS: Rules = {
    ("", "secrets", ""): frozenset({"get"}),
}

# Exactly these, by namespace. A right that somebody adds to a manifest shows up here.
PROCESSES = [
    (OPERATOR, TEAM, OPERATOR_EVERYWHERE),
    (OPERATOR, "kube-system", OPERATOR_EVERYWHERE),
    (OPERATOR, "farebox-models", OPERATOR_EVERYWHERE | OPERATOR_IN_MODELS),
    (OPERATOR, "farebox-system", OPERATOR_EVERYWHERE | OPERATOR_IN_SYSTEM),
    *((METER, namespace, METER_EVERYWHERE) for namespace in (TEAM, "farebox-models", "farebox-system")),
    *((GATEWAY, namespace, GATEWAY_EVERYWHERE) for namespace in (TEAM, "kube-system", "farebox-system")),
    (GATEWAY, "farebox-models", GATEWAY_EVERYWHERE | GATEWAY_IN_MODELS),
]

TENANT_VIEW: Rules = {
    (OWN, "inferenceservices", ""): READ,
    (OWN, "billingaccounts", ""): READ,
    (OWN, "topups", ""): READ,
    (OWN, "apikeys", ""): READ,
    (OWN, "inferenceservices/scale", ""): frozenset({"get"}),
    (OWN, "inferenceservices/status", ""): frozenset({"get"}),
    (OWN, "billingaccounts/status", ""): frozenset({"get"}),
    (OWN, "topups/status", ""): frozenset({"get"}),
    (OWN, "apikeys/status", ""): frozenset({"get"}),
}
TENANT_EDIT: Rules = TENANT_VIEW | {
    (OWN, "inferenceservices", ""): READ | {"create", "update", "patch", "delete", "deletecollection"},
    (OWN, "apikeys", ""): READ | {"create", "update", "patch", "delete", "deletecollection"},
    (OWN, "inferenceservices/scale", ""): frozenset({"get", "update", "patch"}),
}
BILLING_RIGHTS: Rules = {
    (OWN, "topups", ""): READ | {"create", "update", "patch", "delete"},
    (OWN, "billingaccounts", ""): READ | {"create", "update", "patch", "delete"},
    (OWN, "inferenceservices", ""): READ,
    (OWN, "inferenceservices/status", ""): frozenset({"get"}),
    (OWN, "billingaccounts/status", ""): frozenset({"get"}),
    (OWN, "topups/status", ""): frozenset({"get"}),
}
GALLERY_RIGHTS: Rules = {
    (OWN, "models", ""): frozenset({"create", "update", "patch", "delete"}),
    (OWN, "models/scale", ""): frozenset({"get", "update", "patch"}),
    (OWN, "models/status", ""): frozenset({"get"}),
    (OWN, "inferenceservices", ""): READ,
    (OWN, "billingaccounts", ""): READ,
    (OWN, "topups", ""): READ,
}
PEOPLE = [
    (VIEWER, TEAM, TENANT_VIEW),
    (EDITOR, TEAM, TENANT_EDIT),
    (ADMIN, TEAM, TENANT_EDIT),
    (BILLING_ADMIN, BILLING, BILLING_RIGHTS),
    (GALLERY_ADMIN, TEAM, GALLERY_RIGHTS),
    *((who, OTHER_TEAM, {}) for who in (ANYBODY, VIEWER, EDITOR, ADMIN, BILLING_ADMIN)),
    *((who, "farebox-models", {}) for who in (ANYBODY, VIEWER, EDITOR, ADMIN, BILLING_ADMIN)),
]


def only_own(rules: Rules) -> Rules:
    return {key: verbs for key, verbs in rules.items() if key[0] == OWN}


def names(value: object) -> str:
    if isinstance(value, Identity):
        return value.user.rpartition(":")[2]
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(("who", "namespace", "expected"), PROCESSES, ids=names)
def test_a_process_has_exactly_these_rights(
    actors: Cluster, who: Identity, namespace: str, expected: Rules
) -> None:
    assert rules_of(actors, who, namespace) == {key: verbs for key, verbs in expected.items() if verbs}


@pytest.mark.parametrize(("who", "namespace", "expected"), PEOPLE, ids=names)
def test_a_person_has_exactly_these_rights_on_farebox(
    actors: Cluster, who: Identity, namespace: str, expected: Rules
) -> None:
    assert only_own(rules_of(actors, who, namespace)) == expected


ALLOWED = [
    # The meter's questions about its callers (contracts of the meter's API): cluster-wide ones.
    Question(OPERATOR, "create", "ledgerrecords.farebox.dev"),
    Question(OPERATOR, "watch", "billingaccounts.farebox.dev"),
    Question(OPERATOR, "get", "billingaccounts.farebox.dev", TEAM),
    Question(GATEWAY, "create", "usageevents.farebox.dev"),
    # The operator's lists and watches are of all namespaces, of Deployments in its own alone.
    *(
        Question(OPERATOR, verb, f"{plural}.farebox.dev")
        for verb in ("list", "watch")
        for plural in ("models", "inferenceservices", "billingaccounts", "topups", "apikeys")
    ),
    Question(OPERATOR, "create", "secrets", TEAM),
    # The gateway's watches are of all namespaces; that of accounts is its right to the meter's feed too.
    *(
        Question(GATEWAY, verb, f"{plural}.farebox.dev")
        for verb in ("list", "watch")
        for plural in ("models", "inferenceservices", "billingaccounts", "apikeys")
    ),
    Question(GATEWAY, "get", "secrets", "farebox-models", "provider"),
    Question(OPERATOR, "list", "namespaces"),
    Question(OPERATOR, "watch", "deployments.apps", "farebox-models"),
    Question(OPERATOR, "patch", "deployments.apps/scale", "farebox-models"),
    Question(OPERATOR, "update", "leases.coordination.k8s.io", "farebox-system", "farebox-operator"),
    Question(METER, "create", "tokenreviews.authentication.k8s.io"),
    Question(METER, "create", "subjectaccessreviews.authorization.k8s.io"),
    # The gallery is open to everyone who is logged in; the rest to those of the namespace.
    Question(ANYBODY, "list", "models.farebox.dev"),
    Question(VIEWER, "get", "billingaccounts.farebox.dev", TEAM),
    Question(EDITOR, "patch", "inferenceservices.farebox.dev/scale", TEAM),
    Question(ADMIN, "create", "inferenceservices.farebox.dev", TEAM),
    Question(EDITOR, "create", "apikeys.farebox.dev", TEAM),
    Question(BILLING_ADMIN, "create", "topups.farebox.dev", BILLING),
    Question(BILLING_ADMIN, "patch", "billingaccounts.farebox.dev", BILLING),
    Question(GALLERY_ADMIN, "create", "models.farebox.dev"),
]

WRITES = ("create", "update", "patch", "delete", "deletecollection")
TENANTS = (VIEWER, EDITOR, ADMIN)
DENIED = [
    # No process reads Secrets or Pods, or gets into one, anywhere, but for providers' tokens (ALLOWED).
    *(
        Question(who, verb, resource, namespace)
        for who, namespace in itertools.product(
            (OPERATOR, METER, GATEWAY), ("", TEAM, "farebox-models", "farebox-system", "kube-system")
        )
        for verb, resource in (
            ("get", "secrets"),
            ("list", "secrets"),
            ("get", "pods"),
            ("create", "pods"),
            ("create", "pods/exec"),
            ("create", "pods/portforward"),
            ("create", "serviceaccounts/token"),
            ("get", "configmaps"),
        )
        if (who, verb, resource, namespace) != (GATEWAY, "get", "secrets", "farebox-models")
    ),
    # The operator makes Secrets, and nobody but it makes any; no other verb on them, of any process.
    *(
        Question(OPERATOR, verb, "secrets", namespace)
        for verb in ("watch", "update", "patch", "delete", "deletecollection")
        for namespace in ("", TEAM, "farebox-system")
    ),
    *(Question(who, "create", "secrets", TEAM) for who in (METER, GATEWAY)),
    *(
        Question(GATEWAY, verb, "secrets", "farebox-models")
        for verb in ("create", "list", "watch", "update", "patch", "delete")
    ),
    # The operator writes Deployments and Services nowhere but in farebox-models, and watches them only there.
    *(
        Question(OPERATOR, verb, resource, namespace)
        for verb, resource, namespace in itertools.product(
            (*WRITES, "list", "watch"),
            ("deployments.apps", "deployments.apps/scale", "services"),
            ("", TEAM, "farebox-system", "kube-system"),
        )
    ),
    # It acts for no owner: no spec of a person's is changed, no money is made, no gallery is written.
    *(Question(OPERATOR, verb, "inferenceservices.farebox.dev", TEAM) for verb in ("update", "patch")),
    *(Question(OPERATOR, verb, "apikeys.farebox.dev", TEAM) for verb in WRITES),
    *(Question(OPERATOR, verb, "topups.farebox.dev", TEAM) for verb in WRITES),
    *(Question(OPERATOR, verb, "billingaccounts.farebox.dev", TEAM) for verb in WRITES),
    *(Question(OPERATOR, verb, "models.farebox.dev") for verb in WRITES),
    Question(OPERATOR, "create", "usageevents.farebox.dev"),
    Question(OPERATOR, "update", "leases.coordination.k8s.io", "farebox-system", "another"),
    Question(OPERATOR, "update", "leases.coordination.k8s.io", "kube-system", "farebox-operator"),
    Question(OPERATOR, "list", "customresourcedefinitions.apiextensions.k8s.io"),
    # The gateway reads and posts usage; it writes neither records nor anything of the cluster's.
    Question(GATEWAY, "create", "ledgerrecords.farebox.dev"),
    *(
        Question(GATEWAY, verb, f"{plural}.farebox.dev{sub}", TEAM)
        for verb in WRITES
        for plural in ("apikeys", "inferenceservices", "billingaccounts", "topups")
        for sub in ("", "/status")
    ),
    Question(GATEWAY, "watch", "topups.farebox.dev"),
    Question(METER, "create", "ledgerrecords.farebox.dev"),
    # Nobody grants himself balance: not as top-up, not as credit, not as status, not at the meter's door.
    *(
        Question(who, verb, resource, TEAM)
        for who in TENANTS
        for verb, resource in itertools.product(
            WRITES,
            (
                "topups.farebox.dev",
                "billingaccounts.farebox.dev",
                "billingaccounts.farebox.dev/status",
                "inferenceservices.farebox.dev/status",
                "topups.farebox.dev/status",
                "apikeys.farebox.dev/status",
            ),
        )
    ),
    *(
        Question(who, "create", f"{virtual}.farebox.dev", namespace)
        for who in (*TENANTS, ANYBODY, BILLING_ADMIN, GALLERY_ADMIN)
        for virtual in ("ledgerrecords", "usageevents")
        for namespace in ("", TEAM)
    ),
    # Nor does a tenant reach the backends, other teams, or the gallery.
    *(
        Question(who, verb, resource, namespace)
        for who in TENANTS
        for verb, resource, namespace in (
            ("get", "deployments.apps", "farebox-models"),
            ("patch", "deployments.apps/scale", "farebox-models"),
            ("create", "pods/exec", "farebox-models"),
            ("create", "pods/portforward", "farebox-models"),
            ("create", "networkpolicies.networking.k8s.io", "farebox-models"),
            ("get", "secrets", "farebox-models"),
            ("get", "billingaccounts.farebox.dev", OTHER_TEAM),
            ("list", "inferenceservices.farebox.dev", OTHER_TEAM),
            ("create", "apikeys.farebox.dev", OTHER_TEAM),
            ("list", "apikeys.farebox.dev", OTHER_TEAM),
            ("patch", "inferenceservices.farebox.dev", OTHER_TEAM),
            ("watch", "billingaccounts.farebox.dev", ""),
            ("create", "models.farebox.dev", ""),
            ("patch", "models.farebox.dev/scale", ""),
            # Labels of namespaces decide who may use an account, and who passes the NetworkPolicies.
            ("patch", "namespaces", TEAM),
            ("update", "namespaces", TEAM),
        )
    ),
    *(
        Question(VIEWER, verb, f"{plural}.farebox.dev", TEAM)
        for verb in WRITES
        for plural in ("inferenceservices", "apikeys")
    ),
    # Billing admins have money, and only where they are bound; gallery admins have models, and no money.
    *(Question(BILLING_ADMIN, verb, "inferenceservices.farebox.dev", BILLING) for verb in WRITES),
    *(
        Question(BILLING_ADMIN, verb, f"{plural}.farebox.dev/status", BILLING)
        for verb in ("update", "patch")
        for plural in ("topups", "billingaccounts")
    ),
    Question(BILLING_ADMIN, "create", "topups.farebox.dev", TEAM),
    Question(BILLING_ADMIN, "create", "models.farebox.dev"),
    *(
        Question(GALLERY_ADMIN, verb, f"{plural}.farebox.dev", TEAM)
        for verb in WRITES
        for plural in ("topups", "billingaccounts", "inferenceservices")
    ),
]


def test_what_each_identity_needs_is_allowed(actors: Cluster) -> None:
    yes = set(allowed(actors, ALLOWED))
    assert [str(question) for question in ALLOWED if question not in yes] == []


def test_what_nobody_should_do_is_denied(actors: Cluster) -> None:
    assert [str(question) for question in allowed(actors, DENIED)] == []


TOP_UP = """
apiVersion: farebox.dev/v1alpha1
kind: TopUp
metadata: {name: gift, namespace: rbac-team}
spec: {billingAccountRef: {name: mine}, amount: "1000000.00", reference: gift}
"""
ACCOUNT = """
apiVersion: farebox.dev/v1alpha1
kind: BillingAccount
metadata: {name: mine, namespace: rbac-team}
spec: {currency: USD}
"""
SERVICE = """
apiVersion: farebox.dev/v1alpha1
kind: InferenceService
metadata: {name: scaled, namespace: rbac-team}
spec: {modelRef: {name: m}, billingAccountRef: {name: mine}, dedicated: true, replicas: 1}
"""


@pytest.mark.parametrize("who", TENANTS, ids=names)
def test_a_tenant_who_tries_to_grant_himself_money_is_refused(actors: Cluster, who: Identity) -> None:
    actors.kubectl("apply", "-f", "-", input=ACCOUNT)
    with pytest.raises(KubectlError, match="forbidden"):
        actors.kubectl("create", "-f", "-", *who.flags, input=TOP_UP)
    raise_limit = '{"spec": {"creditLimit": "1000000"}}'
    with pytest.raises(KubectlError, match="forbidden"):
        actors.kubectl("patch", "-n", TEAM, "ba/mine", "--type=merge", f"-p={raise_limit}", *who.flags)
    forge = '{"status": {"balance": "1000000"}}'
    with pytest.raises(KubectlError, match="forbidden"):
        actors.kubectl(
            "patch", "-n", TEAM, "ba/mine", "--subresource=status", "--type=merge", f"-p={forge}", *who.flags
        )


def test_a_billing_admin_applies_top_ups_as_git_tools_do_and_changes_none(actors: Cluster) -> None:
    """Server-side apply is a PATCH, of what is not there yet as well."""
    paid = TOP_UP.replace(TEAM, BILLING)
    apply = ("apply", "--server-side", "-f", "-", *BILLING_ADMIN.flags)
    for _ in range(2):
        actors.kubectl(*apply, input=paid)
    with pytest.raises(KubectlError, match="a TopUp cannot be changed"):
        actors.kubectl(*apply, input=paid.replace("1000000.00", "2000000.00"))


def test_a_tenant_scales_the_service_itself(actors: Cluster) -> None:
    actors.kubectl("apply", "-f", "-", *EDITOR.flags, input=SERVICE)
    actors.kubectl("scale", "-n", TEAM, "infsvc/scaled", "--replicas=3", *EDITOR.flags)
    assert actors.kubectl("get", "-n", TEAM, "infsvc/scaled", "-o=jsonpath={.spec.replicas}") == "3"
