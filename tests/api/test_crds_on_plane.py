"""The CRDs on a real API server: what it lets in, what it refuses and in which words (B8, B23), and what
kubectl shows. No operator runs on this plane, so statuses stay as the tests write them.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from farebox.api import GROUP, KINDS
from tests.api.pages import examples
from tests.api.samples import (
    ACCOUNT,
    ALL,
    APIKEY,
    EXTERNAL_MODEL,
    MODEL,
    RESERVED_SERVICE,
    SHARED_SERVICE,
    TOPUP,
    Manifest,
    changed,
)
from tests.api.tables import ACCEPTED, CHANGES_ACCEPTED, CHANGES_REFUSED, REFUSED, Accepted, Refused
from tests.support.api import Api, ApiError, path_of
from tests.tools.plane import Cluster, KubectlError

pytestmark = pytest.mark.plane

CRDS = Path(__file__).parents[2] / "crds"
NAMESPACE = "kinds"


def placed(sample: Manifest) -> Manifest:
    """The sample where other tests on the same plane do not meet it."""
    metadata = {"namespace": NAMESPACE} if "namespace" in sample["metadata"] else {}
    if sample["kind"] == "Model":
        metadata["name"] = f"kinds-{sample['metadata']['name']}"
    return changed(sample, {"metadata": metadata})


@pytest.fixture(scope="module")
def cluster(plane: Cluster) -> Iterator[Cluster]:
    """The plane with the CRDs, and every sample stored."""
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(CRDS))
    names = [f"crd/{info.plural}.{GROUP}" for info in KINDS.values()]
    plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    plane.apply(*map(placed, ALL))
    yield plane
    plane.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    plane.kubectl(
        "delete", "models", placed(MODEL)["metadata"]["name"], placed(EXTERNAL_MODEL)["metadata"]["name"]
    )


@lru_cache
def api_of(kubeconfig: Path) -> Api:
    return Api(kubeconfig)


def create(cluster: Cluster, manifest: Manifest) -> dict[str, Any]:
    """What would be stored of a new object; an unknown field is an error, as with kubectl."""
    fresh = placed(manifest)
    if manifest["spec"].get("type") != "Default":
        fresh = changed(fresh, {"metadata": {"name": "fresh"}})
    else:
        fresh = changed(fresh, {"metadata": {"namespace": "default"}})
    path = path_of(fresh["kind"], fresh["metadata"].get("namespace", ""))
    query = "?dryRun=All&fieldValidation=Strict"
    return api_of(cluster.kubeconfig).request("POST", f"{path}{query}", fresh)


def patch(
    cluster: Cluster, manifest: Manifest, body: dict[str, Any], subresource: str = "", dry_run: bool = False
) -> dict[str, Any]:
    """What is stored, or with `dry_run` would be stored, of a sample after a merge patch."""
    metadata = placed(manifest)["metadata"]
    path = path_of(manifest["kind"], metadata.get("namespace", ""), metadata["name"])
    path = f"{path}/{subresource}" if subresource else path
    query = "?dryRun=All" if dry_run else ""
    return api_of(cluster.kubeconfig).request("PATCH", f"{path}{query}", body, "application/merge-patch+json")


def name_of(case: Refused | Accepted) -> str:
    return f"{case.sample['kind']}: {case.title}"


@pytest.mark.parametrize("case", REFUSED, ids=name_of)
def test_b23_a_wrong_object_is_refused_with_the_field_and_what_to_do(cluster: Cluster, case: Refused) -> None:
    with pytest.raises(ApiError) as error:
        create(cluster, changed(case.sample, {"spec": case.spec}))
    assert " is invalid: " in error.value.message
    assert case.says in error.value.message


@pytest.mark.parametrize("case", ACCEPTED, ids=name_of)
def test_a_right_object_is_let_in_and_reads_as_written(cluster: Cluster, case: Accepted) -> None:
    written = changed(case.sample, {"spec": case.spec})
    read = KINDS[written["kind"]].cls.model_validate
    assert read(create(cluster, written)).spec == read(written).spec  # type: ignore[attr-defined]


@pytest.mark.parametrize("example", examples(), ids=lambda example: str(example["metadata"]["name"]))
def test_examples_of_the_docs_are_let_in(cluster: Cluster, example: Manifest) -> None:
    create(cluster, example)


@pytest.mark.parametrize("case", CHANGES_REFUSED, ids=name_of)
def test_b8_an_immutable_field_is_refused_with_what_to_do_instead(cluster: Cluster, case: Refused) -> None:
    with pytest.raises(ApiError) as error:
        patch(cluster, case.sample, {"spec": case.spec}, dry_run=True)
    assert case.says in error.value.message


@pytest.mark.parametrize("case", CHANGES_ACCEPTED, ids=name_of)
def test_b8_what_may_change_is_let_in(cluster: Cluster, case: Accepted) -> None:
    patch(cluster, case.sample, {"spec": case.spec}, dry_run=True)


@pytest.mark.parametrize("sample", ALL, ids=lambda sample: str(sample["metadata"]["name"]))
def test_b23_a_misspelt_field_is_refused(cluster: Cluster, sample: Manifest) -> None:
    with pytest.raises(ApiError, match=r'unknown field "spec.postpayed"'):
        create(cluster, changed(sample, {"spec": {"postpayed": True}}))


def test_null_is_as_absent(cluster: Cluster) -> None:
    spec = {**SHARED_SERVICE["spec"], "limits": None, "reservation": None, "replicas": None}
    stored = create(cluster, {**SHARED_SERVICE, "spec": spec})
    assert stored["spec"] == create(cluster, SHARED_SERVICE)["spec"]


def test_a_pod_template_is_kept_as_written(cluster: Cluster) -> None:
    stored = create(cluster, MODEL)["spec"]["serving"]["deployment"]["template"]
    assert stored == MODEL["spec"]["serving"]["deployment"]["template"]


def test_b10_a_topup_takes_labels_after_it_was_posted(cluster: Cluster) -> None:
    patch(cluster, TOPUP, {"metadata": {"labels": {"reviewed": "yes"}}}, dry_run=True)


class TestStatus:
    def test_only_the_status_subresource_writes_it(self, cluster: Cluster) -> None:
        body = {"spec": {"lowBalance": "7"}, "status": {"balance": "9.00"}}
        assert "status" not in patch(cluster, ACCOUNT, body, dry_run=True)
        stored = patch(cluster, ACCOUNT, body, subresource="status", dry_run=True)
        assert stored["status"] == {"balance": "9.00"}
        assert stored["spec"]["lowBalance"] == ACCOUNT["spec"]["lowBalance"]

    def test_generation_moves_with_the_spec_alone(self, cluster: Cluster) -> None:
        before = patch(cluster, EXTERNAL_MODEL, {"status": {"services": 3}}, subresource="status")
        after = patch(cluster, EXTERNAL_MODEL, {"spec": {"retired": True}})
        again = patch(cluster, EXTERNAL_MODEL, {"status": {"services": 4}}, subresource="status")
        generations = [stored["metadata"]["generation"] for stored in (before, after, again)]
        assert generations == [1, 2, 2]

    @pytest.mark.parametrize(
        ("status", "says"),
        [
            ({"phase": "Asleep"}, 'status.phase: Unsupported value: "Asleep"'),
            ({"stopReasons": ["Overdue", "Overdue"]}, 'status.stopReasons[1]: Duplicate value: "Overdue"'),
            ({"stopReasons": ["Tired"]}, 'status.stopReasons[0]: Unsupported value: "Tired"'),
            ({"conditions": [{"type": "Ready"}]}, "status.conditions[0].status: Required value"),
            ({"replicas": -1}, "status.replicas"),
        ],
        ids=lambda value: None if isinstance(value, dict) else value.split(":")[0],
    )
    def test_a_wrong_status_is_refused(self, cluster: Cluster, status: dict[str, Any], says: str) -> None:
        with pytest.raises(ApiError) as error:
            patch(cluster, SHARED_SERVICE, {"status": status}, subresource="status", dry_run=True)
        assert says in error.value.message

    def test_conditions_of_two_writers_are_merged_by_type(self, cluster: Cluster) -> None:
        written = [
            apply_condition(cluster, writer, type_)
            for writer, type_ in (("one", "Ready"), ("two", "Audited"))
        ]
        types = [condition["type"] for condition in written[-1]["status"]["conditions"]]
        assert types == ["Ready", "Audited"]


def apply_condition(cluster: Cluster, writer: str, type_: str) -> dict[str, Any]:
    condition = {
        "type": type_,
        "status": "True",
        "reason": "Written",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    body = {key: value for key, value in placed(TOPUP).items() if key != "spec"}
    body["status"] = {"conditions": [condition]}
    answer = cluster.kubectl(
        "apply",
        "--server-side",
        "--subresource=status",
        f"--field-manager={writer}",
        "-o",
        "json",
        "-f",
        "-",
        input=json.dumps(body),
    )
    stored: dict[str, Any] = json.loads(answer)
    return stored


class TestScale:
    def test_b5_a_dedicated_service_is_scaled_on_itself(self, cluster: Cluster) -> None:
        cluster.kubectl("scale", "infsvc/reserved", "-n", NAMESPACE, "--replicas=4")
        stored = patch(
            cluster, RESERVED_SERVICE, {"status": {"replicas": 3, "selector": "a=b"}}, subresource="status"
        )
        assert stored["spec"]["replicas"] == 4
        path = f"/apis/farebox.dev/v1alpha1/namespaces/{NAMESPACE}/inferenceservices/reserved/scale"
        scale = json.loads(cluster.kubectl("get", "--raw", path))
        assert (scale["spec"], scale["status"]) == ({"replicas": 4}, {"replicas": 3, "selector": "a=b"})

    @pytest.mark.parametrize("replicas", [0, 3])
    def test_b8_a_service_on_the_shared_backend_is_not(self, cluster: Cluster, replicas: int) -> None:
        with pytest.raises(
            KubectlError, match=r"which is scaled on the Model \(serving.deployment.replicas\)"
        ):
            cluster.kubectl("scale", "infsvc/shared", "-n", NAMESPACE, f"--replicas={replicas}")

    def test_a_models_shared_backend_is_scaled_on_the_model(self, cluster: Cluster) -> None:
        cluster.kubectl("scale", f"mdl/{placed(MODEL)['metadata']['name']}", "--replicas=3")
        stored = patch(cluster, MODEL, {}, dry_run=True)
        assert stored["spec"]["serving"]["deployment"]["replicas"] == 3

    def test_an_external_model_cannot_be_scaled(self, cluster: Cluster) -> None:
        with pytest.raises(KubectlError):
            cluster.kubectl("scale", f"mdl/{placed(EXTERNAL_MODEL)['metadata']['name']}", "--replicas=3")
        assert "deployment" not in patch(cluster, EXTERNAL_MODEL, {}, dry_run=True)["spec"]["serving"]


class TestKubectl:
    def test_explain_describes_every_field(self, cluster: Cluster) -> None:
        for info in KINDS.values():
            assert "<no description>" not in cluster.kubectl("explain", info.plural, "--recursive")
            shown = cluster.kubectl("explain", f"{info.short_name}.spec")
            assert "-required-" in shown
        shown = " ".join(cluster.kubectl("explain", "infsvc.spec.replicas").split())
        assert "autoscalers go here, never to the Deployment" in shown
        assert shown.endswith("Default: 1.")

    def test_columns_tell_the_state(self, cluster: Cluster) -> None:
        status = {
            "phase": "Stopped",
            "billingMode": "PayAsYouGo",
            "stopReasons": ["ModelRetired", "Overdue"],
            "replicas": 0,
            "conditions": [ready("False", "Overdue", "top up at least 5.00 USD")],
        }
        patch(cluster, SHARED_SERVICE, {"status": status}, subresource="status")
        row = table(cluster, "infsvc", "shared")
        assert list(row) == ["NAME", "MODEL", "TYPE", "PHASE", "BILLING", "REASON", "REPLICAS", "AGE"]
        assert list(row.values())[:-1] == [
            "shared",
            "qwen3-8b",
            "Custom",
            "Stopped",
            "PayAsYouGo",
            "ModelRetired",
            "0",
        ]
        wide = table(cluster, "infsvc", "shared", "-o", "wide")
        assert wide["REASONS"] == '["ModelRetired","Overdue"]'
        assert wide["MESSAGE"] == "top up at least 5.00 USD"

    def test_columns_of_accounts_topups_and_models(self, cluster: Cluster) -> None:
        status: dict[str, Any] = {
            "balance": "-3.20",
            "state": "Overdue",
            "services": {"running": 1, "stopped": 2},
        }
        patch(cluster, ACCOUNT, {"status": status}, subresource="status")
        row = table(cluster, "ba", "acme")
        assert list(row) == ["NAME", "BALANCE", "STATE", "RUNNING", "STOPPED", "AGE"]
        assert list(row.values())[:-1] == ["acme", "-3.20", "Overdue", "1", "2"]

        patch(cluster, TOPUP, {"status": {"phase": "Posted", "balanceAfter": "96.80"}}, subresource="status")
        row = table(cluster, "tu", "july")
        assert list(row) == ["NAME", "ACCOUNT", "AMOUNT", "KIND", "PHASE", "BALANCE-AFTER", "AGE"]
        assert list(row.values())[:-1] == ["july", "acme", "100.00", "Payment", "Posted", "96.80"]

        status = {"replicas": 2, "services": 7, "conditions": [ready("True", "Ready", "")]}
        patch(cluster, MODEL, {"status": status}, subresource="status")
        row = table(cluster, "mdl", placed(MODEL)["metadata"]["name"])
        assert list(row) == ["NAME", "DISPLAY", "REPLICAS", "SERVICES", "READY", "AGE"]
        assert list(row.values())[1:-1] == ["Qwen3 8B", "2", "7", "True"]

    def test_b14_columns_of_keys_show_prefix_services_state_and_expiry(self, cluster: Cluster) -> None:
        conditions = [ready("True", "Active", "")]
        status = {"prefix": "fbx_a1b2", "keyHash": "0" * 64, "secretName": "app", "conditions": conditions}
        patch(cluster, APIKEY, {"status": status}, subresource="status")
        row = table(cluster, "ak", "app")
        assert list(row) == ["NAME", "PREFIX", "SERVICES", "STATE", "EXPIRES", "AGE"]
        assert list(row.values())[:-1] == [
            "app",
            "fbx_a1b2",
            '{"names":["chat","qwen2.5-7b"]}',
            "Active",
            "2027-01-01T00:00:00Z",
        ]

    def test_the_category_lists_all_kinds(self, cluster: Cluster) -> None:
        names = cluster.kubectl("get", "farebox", "-A", "-o", "name").split()
        assert {name.split(".")[0] for name in names} == {info.singular for info in KINDS.values()}

    @pytest.mark.parametrize(
        ("kind", "selector", "names"),
        [
            ("infsvc", "spec.type=Default", ["qwen2.5-7b"]),
            (
                "infsvc",
                "spec.modelRef.name=qwen3-8b,spec.billingAccountRef.name=acme",
                ["reserved", "shared"],
            ),
            ("infsvc", "status.phase=Running", ["reserved"]),
            ("ba", "status.state=Active", ["acme"]),
            ("tu", "spec.billingAccountRef.name=acme,status.phase=Rejected", ["july"]),
        ],
    )
    def test_field_selectors(self, cluster: Cluster, kind: str, selector: str, names: list[str]) -> None:
        for sample, status in (
            (RESERVED_SERVICE, {"phase": "Running"}),
            (ACCOUNT, {"state": "Active"}),
            (TOPUP, {"phase": "Rejected"}),
        ):
            patch(cluster, sample, {"status": status}, subresource="status")
        listed = cluster.kubectl("get", kind, "-n", NAMESPACE, f"--field-selector={selector}", "-o", "name")
        assert [line.partition("/")[2] for line in listed.split()] == names


def ready(status: str, reason: str, message: str) -> dict[str, Any]:
    return {
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


def table(cluster: Cluster, kind: str, name: str, *args: str) -> dict[str, str]:
    """One row of kubectl get, by the names of the columns; a cell begins where its header does."""
    header, row = cluster.kubectl("get", kind, name, "-n", NAMESPACE, *args).splitlines()
    starts = [at for at in range(len(header)) if header[at] != " " and (at == 0 or header[at - 1] == " ")]
    ends = [*starts[1:], max(len(header), len(row))]
    return {header[a:b].strip(): row[a:b].strip() for a, b in zip(starts, ends, strict=True)}
