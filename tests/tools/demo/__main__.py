"""`python -m tests.tools.demo` runs the main job and checks it; with `down` it ends what KEEP=1 left.

CLUSTER=plane | kind | current says where (tests/tools/plane/README.md); KEEP=1 leaves it all running.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from tests.support.reaper import reaping
from tests.support.stack import SYSTEM, Stack
from tests.tools.demo import keeping
from tests.tools.demo.expect import Wrong
from tests.tools.demo.fixture_services import FixtureServices
from tests.tools.demo.scenario import Scenario
from tests.tools.demo.timeline import Timeline
from tests.tools.demo.watching import PhaseWatch
from tests.tools.plane.cluster import Cluster
from tests.tools.plane.clusters import open_cluster
from tests.tools.plane.errors import PlaneError
from tests.tools.plane.plane import Plane

_PATIENCE_SIMULATED = 20.0
_PATIENCE_REAL = 180.0
"""Where pods start programs, and nodes may have to fetch images first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if all came out right, 1 with a sentence if not."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.demo", description=__doc__)
    parser.add_argument(
        "--patience", type=float, metavar="SECONDS", help="for a step to come out (default: 20; in pods 180)"
    )
    commands = parser.add_subparsers(metavar="COMMAND")
    down = commands.add_parser("down", help="end what KEEP=1 left running")
    down.set_defaults(down=True)
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    timeline = Timeline(sys.stdout)
    try:
        if getattr(chosen, "down", False):
            _down(timeline)
        else:
            _demo(timeline, chosen.patience)
    except Wrong as wrong:
        timeline.wrong(str(wrong))
        return 1
    except (PlaneError, AssertionError, OSError, LookupError) as error:
        timeline.wrong(f"the demo could not be run: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _demo(timeline: Timeline, patience: float | None) -> None:
    kept = os.environ.get("KEEP", "") not in ("", "0")
    timeline.event(f"CLUSTER={os.environ.get('CLUSTER') or 'plane'}: {_welcome()}")
    with contextlib.ExitStack() as cleanup:
        cluster = cleanup.enter_context(open_cluster())
        timeline.event(f"Kubernetes {_version(cluster)} answers at {cluster.server}")
        timeline.command("$ kubectl apply --server-side -k manifests/base")
        stack = cleanup.enter_context(Stack.start(cluster))
        timeline.event("Farebox runs: operator and meter, with the rights that manifests/base gives them")
        services = FixtureServices.of(cluster)
        try:
            with PhaseWatch(cluster) as watch:
                limit = patience or (_PATIENCE_SIMULATED if cluster.simulated else _PATIENCE_REAL)
                Scenario(stack, services, timeline, watch, limit).play()
            _verify(timeline, stack)
            timeline.say()
            timeline.event("every step came out as it should")
        except Wrong:
            _show_logs(timeline, stack)
            raise
        finally:
            if kept:
                _keep(cleanup, cluster, stack)
                keeping.explain(timeline, cluster, stack, services)
            elif not cluster.simulated:
                services.remove(cluster)


def _keep(cleanup: contextlib.ExitStack, cluster: Cluster, stack: Stack) -> None:
    """Leave it running. In a cluster that is not ours, only the objects have to be left."""
    if isinstance(cluster, Plane):
        keeping.keep(cluster, stack)
        cleanup.pop_all()


def _down(timeline: Timeline) -> None:
    if (os.environ.get("CLUSTER") or "plane") != "plane":
        with open_cluster() as cluster:
            keeping.remove_labelled(cluster)
        timeline.event("the demo's namespaces and models are gone; Farebox itself is still installed")
        return
    stopped = keeping.stop_kept()
    for directory in stopped:
        timeline.event(f"stopped the demo in {directory}")
    if not stopped:
        timeline.say("no demo was left running")


def _verify(timeline: Timeline, stack: Stack) -> None:
    """Recompute the ledger from its first entry. Raises Wrong if anything differs."""
    timeline.step("The ledger is recomputed from its first entry")
    cluster = stack.cluster
    if cluster.simulated:
        verify = ["farebox", "ledger", "verify", "--url", f"sqlite:///{stack.directory / 'ledger.db'}"]
        command = [sys.executable, "-m", *verify]
    else:
        verify = ["kubectl", "exec", "-n", SYSTEM, "farebox-meter-0", "--", "farebox", "ledger", "verify"]
        command = [str(cluster.kubectl_program), f"--kubeconfig={cluster.kubeconfig}", *verify[1:]]
    timeline.command(f"$ {' '.join(verify)}")
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    for line in f"{run.stdout}{run.stderr}".splitlines():
        timeline.detail(line)
    if run.returncode != 0:
        raise Wrong(f"the ledger's entries do not add up (exit status {run.returncode})")
    timeline.ok("every balance is what its entries say")


def _show_logs(timeline: Timeline, stack: Stack) -> None:
    for process in stack.operators:
        timeline.say(process.tail(15))


def _version(cluster: Cluster) -> str:
    lines = cluster.kubectl("version").splitlines()
    return next((line.split()[-1] for line in lines if line.startswith("Server")), "(of unknown version)")


def _welcome() -> str:
    return {
        "kind": "a kind cluster in Docker; the image is built and loaded first",
        "current": "the current context of your kubeconfig",
    }.get(os.environ.get("CLUSTER", ""), "a control plane of its own is started, nothing else is touched")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    with reaping(interruptible=(os.environ.get("CLUSTER") or "plane") == "plane"):
        status = main()
    sys.exit(status)
