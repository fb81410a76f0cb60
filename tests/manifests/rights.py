"""Asks the API server's RBAC who may do what, many questions with one call of kubectl."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.tools.plane import Cluster

TEAM, OTHER_TEAM, BILLING = "rbac-team", "rbac-other", "rbac-billing"
"""Namespaces of the actors below."""

AGGREGATION_SECONDS = 60.0

Rules = dict[tuple[str, str, str], frozenset[str]]
"""(group, resource, name or "") -> verbs."""


@dataclass(frozen=True)
class Identity:
    """Somebody who asks the API server for something."""

    user: str
    groups: tuple[str, ...] = ("system:authenticated",)

    @classmethod
    def service_account(cls, name: str) -> "Identity":
        """One of Farebox's own processes."""
        groups = ("system:serviceaccounts", "system:serviceaccounts:farebox-system", "system:authenticated")
        return cls(f"system:serviceaccount:farebox-system:{name}", groups)

    @property
    def flags(self) -> list[str]:
        """kubectl's flags to act as this one."""
        return [f"--as={self.user}", *(f"--as-group={group}" for group in self.groups)]


OPERATOR = Identity.service_account("farebox-operator")
METER = Identity.service_account("farebox-meter")
GATEWAY = Identity.service_account("farebox-gateway")
ANYBODY = Identity("anybody")
VIEWER = Identity("team-viewer")
EDITOR = Identity("team-editor")
ADMIN = Identity("team-admin")
BILLING_ADMIN = Identity("billing-admin")
GALLERY_ADMIN = Identity("gallery-admin")

_BUILT_IN = {VIEWER: "view", EDITOR: "edit", ADMIN: "admin"}


@dataclass(frozen=True)
class Question:
    """May `who` do `verb` on `resource` ("plural.group" or "plural.group/sub")?

    Without a namespace: in all of them, or on what is cluster-scoped.
    """

    who: Identity
    verb: str
    resource: str
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        where = f" in {self.namespace}" if self.namespace else ""
        return f"{self.who.user}: {self.verb} {self.resource} {self.name}{where}"

    def review(self) -> dict[str, Any]:
        """The question as a SubjectAccessReview."""
        plural, _, subresource = self.resource.partition("/")
        resource, _, group = plural.partition(".")
        attributes = {
            "verb": self.verb,
            "resource": resource,
            "group": group,
            "subresource": subresource,
            "namespace": self.namespace,
            "name": self.name,
        }
        return {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": self.who.user,
                "groups": list(self.who.groups),
                "resourceAttributes": {key: value for key, value in attributes.items() if value},
            },
        }


def allowed(plane: Cluster, questions: Sequence[Question]) -> list[Question]:
    """Those of the questions that the API server says yes to."""
    answers = _create(plane, (question.review() for question in questions))
    return [
        question for question, answer in zip(questions, answers, strict=True) if answer["status"]["allowed"]
    ]


def rules_of(plane: Cluster, who: Identity, namespace: str) -> Rules:
    """Everything that RBAC allows somebody in a namespace beyond what everybody may do."""
    common = _rules(plane, ANYBODY, namespace)
    own = _rules(plane, who, namespace)
    beyond = {key: verbs - common.get(key, frozenset()) for key, verbs in own.items()}
    return {key: verbs for key, verbs in beyond.items() if verbs}


def bind_actors(plane: Cluster) -> None:
    """Make the namespaces and bind everyone; returns when the built-in roles have Farebox's rights."""
    plane.apply(
        *(_object("v1", "Namespace", name) for name in (TEAM, OTHER_TEAM, BILLING)),
        *(_binding(role, TEAM, who) for who, role in _BUILT_IN.items()),
        _binding("farebox-billing-admin", BILLING, BILLING_ADMIN),
        _binding("farebox-cluster-admin", "", GALLERY_ADMIN),
    )
    services = "inferenceservices.farebox.dev"
    aggregated = [
        Question(VIEWER, "list", services, TEAM),
        *(Question(who, verb, services, TEAM) for who in (EDITOR, ADMIN) for verb in ("list", "delete")),
    ]
    deadline = time.monotonic() + AGGREGATION_SECONDS
    while (found := allowed(plane, aggregated)) != aggregated:
        missing = [str(question) for question in aggregated if question not in found]
        assert time.monotonic() < deadline, f"never allowed: {missing}"


def _rules(plane: Cluster, who: Identity, namespace: str) -> Rules:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    (answer,) = _create(plane, [review], *who.flags)
    assert not answer["status"]["incomplete"]
    rules: Rules = {}
    for rule in answer["status"]["resourceRules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames") or [""]:
                    key = (group, resource, name)
                    rules[key] = rules.get(key, frozenset()) | frozenset(rule["verbs"])
    return rules


def _create(plane: Cluster, objects: Iterable[dict[str, Any]], *flags: str) -> list[dict[str, Any]]:
    """Create objects and return the API server's answers, in the same order."""
    sent = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    text = plane.kubectl("create", "-f", "-", "--output=json", *flags, input=json.dumps(sent))
    # kubectl prints one object after the other, not a List.
    decoder, rest = json.JSONDecoder(), text.lstrip()
    answers: list[dict[str, Any]] = []
    while rest:
        answer, end = decoder.raw_decode(rest)
        answers += answer["items"] if answer["kind"] == "List" else [answer]
        rest = rest[end:].lstrip()
    return answers


def _object(api_version: str, kind: str, name: str, namespace: str = "") -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


def _binding(role: str, namespace: str, who: Identity) -> dict[str, Any]:
    kind = "RoleBinding" if namespace else "ClusterRoleBinding"
    group = "rbac.authorization.k8s.io"
    return _object(f"{group}/v1", kind, who.user, namespace) | {
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": group, "kind": "User", "name": who.user}],
    }
