"""A demo that is left running: what to remember of it, how to look around in it, how to end it.

The files about kept demos are beside the planes' directories, not in them, so that processes are found even
when somebody stopped the plane by itself.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from tests.support.stack import AUDIENCE, SYSTEM, Stack
from tests.tools.demo.fixture_services import DEMO_LABEL, FixtureServices
from tests.tools.demo.timeline import Timeline
from tests.tools.plane import Plane, places
from tests.tools.plane.cluster import Cluster
from tests.tools.plane.errors import PlaneError
from tests.tools.plane.plane import supervisor_of

STOP_SECONDS = 20.0


def keep(plane: Plane, stack: Stack) -> None:
    """Let the plane and Farebox's processes outlive this one."""
    pids = [process.pid for process in stack.processes()]
    gateways = [str(gateway.directory) for gateway in stack.gateways]
    note = {"directory": str(plane.directory), "pids": pids, "gateways": gateways}
    (places.common_directory() / f"demo-{plane.directory.name}.json").write_text(json.dumps(note))
    plane.detach()


def stop_kept() -> list[str]:
    """End every demo that was kept on a plane; returns their directories."""
    stopped = []
    for note in sorted(places.common_directory().glob("demo-*.json")):
        kept = json.loads(note.read_text())
        directory = Path(kept["directory"])
        pids = [pid for pid in kept["pids"] if _belongs(pid, directory)]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        _wait_gone(pids, directory)
        for gateway in kept["gateways"]:
            shutil.rmtree(gateway, ignore_errors=True)
        if places.is_alive(directory):
            os.kill(supervisor_of(directory), signal.SIGTERM)
            _wait_stopped(directory)
        note.unlink()
        stopped.append(str(directory))
    return stopped


def remove_labelled(cluster: Cluster) -> None:
    """Take the objects of all demos from a cluster that others use too."""
    selector = f"--selector={DEMO_LABEL}=true"
    cluster.kubectl("delete", "namespaces", selector)
    cluster.kubectl("delete", "models.farebox.dev", selector)


def explain(timeline: Timeline, cluster: Cluster, stack: Stack, services: FixtureServices) -> None:
    """Print how to look around."""
    billing, account = services.account.split("/")
    namespace, assistant = services.assistant.split("/")
    python = os.path.relpath(sys.executable)
    meter = stack.meter_url if cluster.simulated else "http://127.0.0.1:8090"
    model = services.model("llama-3.3-70b")
    gateway = stack.gateways[-1].url if stack.gateways else "http://127.0.0.1:8080"
    for line in (
        "",
        "It is left running. To look around:",
        "",
        *_kubeconfig_lines(cluster),
        "  kubectl get farebox -A",
        "  kubectl get deployments -n farebox-models",
        f"  kubectl events -n {namespace} --for infsvc/{assistant}",
        f"  kubectl get infsvc -n {namespace} -o wide --watch",
        "",
        "To call a model through the gateway:",
        "",
        *([] if cluster.simulated else [f"  kubectl port-forward -n {SYSTEM} svc/farebox-gateway 8080:80 &"]),
        f"  KEY=$(kubectl get secret app -n {services.team} -o 'jsonpath={{.data.api-key}}' | base64 -d)",
        f'  curl -sS {gateway}/v1/chat/completions -H "Authorization: Bearer $KEY" \\',
        "    -H 'Content-Type: application/json' -d '{",
        '      "model": "chat", "max_tokens": 16, "messages": [{"role": "user", "content": "Hello"}]}\'',
        "",
        "To use the money up (a call of 100 million tokens; 240 USD):",
        "",
        f"  TOKEN=$(kubectl create token farebox-gateway -n {SYSTEM} --audience={AUDIENCE})",
        *([] if cluster.simulated else [f"  kubectl port-forward -n {SYSTEM} svc/farebox-meter 8090 &"]),
        f"  curl -sS {meter}/v1/events \\",
        '    -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/cloudevents+json" -d \'{',
        '      "specversion": "1.0", "type": "dev.farebox.usage.v1", "source": "me", "id": "call-1",',
        f'      "subject": "{services.assistant}", "time": "\'$(date -u +%FT%TZ)\'", "data": {{',
        f'        "model": "{model}", "inputTokens": 100000000, "outputTokens": 0}}}}\'',
        "",
        "To top it up:",
        "",
        "  kubectl apply -f - <<EOF",
        "  apiVersion: farebox.dev/v1alpha1",
        "  kind: TopUp",
        f"  metadata: {{name: pay-1000, namespace: {billing}}}",
        f'  spec: {{billingAccountRef: {{name: {account}}}, amount: "300.00", reference: pay_1000}}',
        "  EOF",
        "",
        "To end it all:",
        "",
        f"  {_environment(cluster)}{python} -m tests.tools.demo down",
    ):
        timeline.say(line)


def _kubeconfig_lines(cluster: Cluster) -> list[str]:
    if not cluster.simulated:
        return []
    lines = [f"  export KUBECONFIG={cluster.kubeconfig}"]
    if shutil.which("kubectl") is None:
        lines.append(f"  export PATH=$PATH:{cluster.kubectl_program.parent}")
    return lines


def _environment(cluster: Cluster) -> str:
    return "" if cluster.simulated else f"CLUSTER={os.environ.get('CLUSTER', '')} "


def _belongs(pid: int, directory: Path) -> bool:
    """Whether a process is the demo's: ids come again, but its settings name the plane's directory."""
    environ = Path(f"/proc/{pid}/environ")
    try:
        return str(directory).encode() in environ.read_bytes()
    except OSError:
        return False


def _wait_gone(pids: list[int], directory: Path) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while left := [pid for pid in pids if _belongs(pid, directory)]:
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.05)


def _wait_stopped(directory: Path) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while places.is_alive(directory):
        if time.monotonic() > deadline:
            raise PlaneError(f"the plane in {directory} does not stop")
        time.sleep(0.05)
