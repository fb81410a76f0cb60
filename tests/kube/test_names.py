"""Derived names: always valid, the same for the same thing, never the same for two."""

import re
import string

from hypothesis import example, given
from hypothesis import strategies as st

from farebox.domain.keys import ObjectKey
from farebox.kube.names import (
    core_path,
    dedicated_backend_name,
    deployment_path,
    dns_label,
    event_path,
    label_value,
    lease_path,
    resource_path,
    shared_backend_name,
)

RFC1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?")

labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
"""Names of namespaces: RFC 1123 labels."""
subdomains = st.lists(labels, min_size=1, max_size=8).map(".".join).filter(lambda name: len(name) <= 253)
"""Names of objects: RFC 1123 subdomains."""
near = st.text("ab-.0", min_size=1, max_size=6).filter(
    lambda name: re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", name)
)
"""Short names that differ in little, so that two of them would meet if they could."""
names = subdomains | near
anything = st.text(max_size=300)


def valid_label(name: str) -> bool:
    return len(name) <= 63 and RFC1035.fullmatch(name) is not None


@given(names)
@example("qwen2.5-7b")
@example("0")
@example("a" * 253)
@example("-".join(["a" * 30] * 3))
def test_shared_backends_have_valid_names(model: str) -> None:
    name = shared_backend_name(model)
    assert valid_label(name)
    assert name == shared_backend_name(model)


@given(names, names)
@example("qwen2.5", "qwen2-5")
@example("a.b", "a-b")
def test_two_models_never_share_a_backend(one: str, other: str) -> None:
    assert (shared_backend_name(one) == shared_backend_name(other)) is (one == other)


@given(labels, names)
@example("a", "0")
@example("a" * 63, "b" * 253)
def test_dedicated_backends_have_valid_names(namespace: str, service: str) -> None:
    name = dedicated_backend_name(ObjectKey(namespace, service))
    assert valid_label(name)


pairs = st.tuples(st.from_regex(r"[ab0]([-ab0]{0,3}[ab0])?", fullmatch=True), names)


@given(pairs, pairs)
@example(("a", "b-c"), ("a-b", "c"))
@example(("a", "b.c"), ("a", "b-c"))
def test_two_services_never_share_a_backend(one: tuple[str, str], other: tuple[str, str]) -> None:
    first, second = dedicated_backend_name(ObjectKey(*one)), dedicated_backend_name(ObjectKey(*other))
    assert (first == second) is (one == other)


@given(names, pairs)
def test_a_shared_backend_is_never_a_dedicated_one(model: str, service: tuple[str, str]) -> None:
    assert shared_backend_name(model) != dedicated_backend_name(ObjectKey(*service))


@given(anything)
@example("")
@example(".")
@example("_")
@example("Ünïcode")
@example("a\n")
def test_any_text_makes_a_valid_label_and_value(text: str) -> None:
    assert valid_label(dns_label(text))
    assert len(label_value(text)) <= 63
    assert LABEL_VALUE.fullmatch(label_value(text))


@given(labels.filter(lambda name: name[0] in string.ascii_lowercase))
def test_a_valid_name_is_unchanged(name: str) -> None:
    assert dns_label(name) == name
    assert label_value(name) == name


@given(names, names)
def test_different_names_have_different_label_values(one: str, other: str) -> None:
    assert (label_value(one) == label_value(other)) is (one == other)


def test_a_derived_name_stays_readable() -> None:
    assert shared_backend_name("qwen3-8b") == "m-qwen3-8b"
    assert shared_backend_name("qwen2.5-7b").startswith("m-qwen2-5-7b-")
    assert dedicated_backend_name(ObjectKey("team-a", "chat")).startswith("s-team-a-chat-")
    assert label_value("qwen2.5-7b") == "qwen2.5-7b"


def test_paths_are_those_of_the_api_server() -> None:
    assert resource_path("Model", name="qwen2.5") == "/apis/farebox.dev/v1alpha1/models/qwen2.5"
    assert resource_path("InferenceService", "a", "b", "scale") == (
        "/apis/farebox.dev/v1alpha1/namespaces/a/inferenceservices/b/scale"
    )
    assert resource_path("TopUp") == "/apis/farebox.dev/v1alpha1/topups"
    assert deployment_path("a") == "/apis/apps/v1/namespaces/a/deployments"
    assert core_path("namespaces", name="a") == "/api/v1/namespaces/a"
    assert event_path("a") == "/apis/events.k8s.io/v1/namespaces/a/events"
    assert lease_path("a", "b") == "/apis/coordination.k8s.io/v1/namespaces/a/leases/b"
