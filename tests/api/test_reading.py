"""Objects as Python reads and writes them."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from farebox.api import (
    KINDS,
    NEVER_CREATED,
    APIObject,
    BillingAccount,
    Condition,
    ConditionStatus,
    ConditionType,
    InferenceService,
    InferenceServiceStatus,
    LabelSelector,
    Model,
    OwnerReference,
    Phase,
    ServiceType,
    StopReason,
    TopUp,
)
from tests.api.samples import (
    ACCOUNT,
    ALL,
    DEFAULT_SERVICE,
    MODEL,
    RESERVED_SERVICE,
    SHARED_SERVICE,
    TOPUP,
    Manifest,
    changed,
)

NOW = "2026-07-01T12:00:00Z"


def read(manifest: Manifest) -> APIObject:
    return KINDS[manifest["kind"]].cls.model_validate(manifest)


@pytest.mark.parametrize("sample", ALL, ids=lambda sample: str(sample["metadata"]["name"]))
def test_a_manifest_is_written_as_it_was_read(sample: Manifest) -> None:
    assert read(sample).manifest() == sample


def test_fields_are_read_under_their_names_in_yaml() -> None:
    service = InferenceService.model_validate(RESERVED_SERVICE)
    assert service.spec.reservation is not None
    assert service.spec.reservation.input_tpm == 200_000
    assert service.spec.reservation.auto_renew
    assert service.spec.access.allowed_cidrs == ("10.0.0.0/8",)
    assert service.model_name == "qwen3-8b"
    assert service.spec.type is ServiceType.CUSTOM

    model = Model.model_validate(MODEL)
    assert model.served_name == "Qwen/Qwen3-8B"
    assert model.spec.prices.tiers[1].up_to_input_tokens is None
    assert model.spec.serving.deployment is not None
    assert model.spec.serving.deployment.template == MODEL["spec"]["serving"]["deployment"]["template"]

    topup = TopUp.model_validate(TOPUP)
    assert (topup.billing_account_name, topup.spec.amount) == ("acme", "100.00")


def test_an_account_is_in_the_services_namespace_unless_named() -> None:
    own = InferenceService.model_validate(SHARED_SERVICE)
    other = InferenceService.model_validate(RESERVED_SERVICE)
    assert (own.billing_account_namespace, own.billing_account_name) == ("team-a", "acme")
    assert (other.billing_account_namespace, other.billing_account_name) == ("billing", "acme")


def test_a_model_is_served_under_its_own_name_by_default() -> None:
    assert Model.model_validate(changed(MODEL, {"spec": {"servedName": None}})).served_name == "qwen3-8b"


@pytest.mark.parametrize("status", [{}, None], ids=["empty status", "no status"])
@pytest.mark.parametrize("sample", ALL, ids=lambda sample: str(sample["metadata"]["name"]))
def test_an_object_without_status_reads_as_not_reported_yet(
    sample: Manifest, status: dict[str, Any] | None
) -> None:
    bare = changed(sample, {"status": status})
    status_read = read(bare).status  # type: ignore[attr-defined]
    assert status_read == type(status_read)()
    assert status_read.observed_generation == 0
    assert status_read.condition(ConditionType.READY) is None


def test_b23_a_status_of_another_version_loses_only_what_cannot_be_read() -> None:
    status = {
        "phase": "Hibernating",
        "stopReasons": ["Overdue", "Weekend"],
        "enabledAt": NOW,
        "firstRunningAt": "yesterday",
        "freeQuota": {"total": 5, "used": -1},
        "somethingNew": 1,
    }
    service = InferenceService.model_validate(changed(SHARED_SERVICE, {"status": status}))
    assert service.status == InferenceServiceStatus(enabled_at=datetime(2026, 7, 1, 12, tzinfo=UTC))


@pytest.mark.parametrize("status", ["Running", 7, ["Running"]])
def test_b23_a_status_that_is_no_object_reads_as_none(status: Any) -> None:
    service = InferenceService.model_validate({**SHARED_SERVICE, "status": status})
    assert service.status == InferenceServiceStatus()


@pytest.mark.parametrize(
    ("sample", "spec"),
    [
        (SHARED_SERVICE, {"modelRef": None}),
        (SHARED_SERVICE, {"replicas": -1}),
        (SHARED_SERVICE, {"type": "Special"}),
        (ACCOUNT, {"creditLimit": "-1"}),
        (TOPUP, {"amount": "1e3"}),
        (MODEL, {"prices": {"tiers": []}}),
    ],
    ids=lambda value: None if "kind" in value else str(value),
)
def test_b23_a_spec_that_the_crd_refuses_is_an_error(sample: Manifest, spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read(changed(sample, {"spec": spec}))


def test_unknown_fields_are_ignored() -> None:
    more = {"metadata": {"managedFields": [{}]}, "spec": {"colour": "blue"}}
    assert read(changed(SHARED_SERVICE, more)) == read(SHARED_SERVICE)


def test_objects_are_values() -> None:
    service = InferenceService.model_validate(SHARED_SERVICE)
    assert service == InferenceService.model_validate(SHARED_SERVICE)
    with pytest.raises(ValidationError, match="frozen"):
        service.spec.replicas = 3  # type: ignore[misc]


def test_times_are_utc_and_whole_seconds_so_that_they_read_back_as_written() -> None:
    status = InferenceServiceStatus(
        phase=Phase.STOPPED,
        stop_reasons=(StopReason.OVERDUE,),
        enabled_at=datetime.fromisoformat("2026-07-01T14:00:00.987654+02:00"),
        conditions=(
            Condition(
                type=ConditionType.READY,
                status=ConditionStatus.FALSE,
                reason=StopReason.OVERDUE,
                last_transition_time=datetime.fromisoformat("2026-07-01T12:00:00.5+00:00"),
            ),
        ),
    )
    written = status.to_json()
    assert written["enabledAt"] == NOW
    assert written["conditions"][0] == {
        "type": "Ready",
        "status": "False",
        "reason": "Overdue",
        "message": "",
        "lastTransitionTime": NOW,
    }
    assert InferenceServiceStatus.model_validate(written) == status
    assert "firstRunningAt" not in written


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(ValidationError):
        InferenceServiceStatus(enabled_at=datetime(2026, 7, 1))  # noqa: DTZ001


def test_b1_a_default_service_is_written_with_what_was_set_alone() -> None:
    metadata = {
        "name": "qwen2.5-7b",
        "namespace": "team-a",
        "labels": {"a": "b"},
        "owner_references": [OwnerReference(api_version="v1", kind="A", name="b", uid="c", controller=True)],
    }
    service = InferenceService.model_validate({**DEFAULT_SERVICE, "metadata": metadata})
    assert service.is_default
    assert service.manifest() == {
        "apiVersion": "farebox.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {
            "name": "qwen2.5-7b",
            "namespace": "team-a",
            "labels": {"a": "b"},
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "A", "name": "b", "uid": "c", "controller": True}
            ],
        },
        "spec": DEFAULT_SERVICE["spec"],
    }


def test_metadata_of_a_stored_object() -> None:
    stored = {
        "uid": "u",
        "resourceVersion": "7",
        "generation": 2,
        "creationTimestamp": NOW,
        "deletionTimestamp": NOW,
    }
    account = BillingAccount.model_validate(changed(ACCOUNT, {"metadata": stored}))
    assert (account.name, account.namespace) == ("acme", "team-a")
    assert (account.metadata.uid, account.metadata.resource_version, account.metadata.generation) == (
        "u",
        "7",
        2,
    )
    assert account.metadata.creation_timestamp == datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert account.metadata.deletion_timestamp == account.metadata.creation_timestamp
    assert BillingAccount.model_validate(ACCOUNT).metadata.creation_timestamp == NEVER_CREATED


LABELS = {"team": "acme", "tier": "small"}


@pytest.mark.parametrize(
    ("selector", "selects"),
    [
        ({}, True),
        ({"matchLabels": {"team": "acme"}}, True),
        ({"matchLabels": {"team": "acme", "tier": "large"}}, False),
        ({"matchLabels": {"absent": ""}}, False),
        ({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["small", "large"]}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["large"]}]}, False),
        ({"matchExpressions": [{"key": "absent", "operator": "In", "values": [""]}]}, False),
        ({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["small"]}]}, False),
        ({"matchExpressions": [{"key": "absent", "operator": "NotIn", "values": ["small"]}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "absent", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, False),
        ({"matchExpressions": [{"key": "absent", "operator": "DoesNotExist"}]}, True),
        (
            {
                "matchLabels": {"team": "acme"},
                "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}],
            },
            False,
        ),
    ],
    ids=str,
)
def test_label_selectors_select_as_kubernetes_does(selector: dict[str, Any], selects: bool) -> None:
    assert LabelSelector.model_validate(selector).matches(LABELS) is selects
