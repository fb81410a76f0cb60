"""One control plane and one Farebox for all workers of a test run.

The pytest process that starts the workers runs this file as a program, the owner. It starts what a worker
asks for when the first one asks, and ends all of it when its stdin ends: when the run is over, however it
ended. Tests keep apart by namespaces, so any number of them use one Farebox at once.

    usage: python -m tests.support.shared LISTENER_FD

Two things can be asked for: `plane`, a control plane without Farebox; `stack`, another one with Farebox.
"""

import contextlib
import json
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.tools.plane.cluster import Cluster

if TYPE_CHECKING:
    from tests.support.stack import Stack
    from tests.tools.plane import Plane

REPOSITORY = Path(__file__).parents[2]
NODES = 3
START_SECONDS = 240.0
"""A plane starts in seconds on a quiet machine."""
END_SECONDS = 60.0


class Owner:
    """The owner process as the pytest process that started it sees it.

    Args:
        name: an abstract Unix socket, on which the owner listens.
    """

    def __init__(self, name: str) -> None:
        # Bound here, so that a request waits until the owner answers, however early it comes.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{name}")
            listener.listen(64)
            # A session of its own: Ctrl-C is for pytest, which ends this one by closing its stdin.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.shared", str(listener.fileno())],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    def close(self) -> None:
        """End everything that it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            # The supervisors of its planes, and the run's reaper, end what it started.
            self._process.kill()
            self._process.wait()


class SharedPlane(Cluster):
    """A control plane that the owner started. `close` leaves it running."""

    simulated = True

    def __init__(self, described: dict[str, str], worker: str) -> None:
        self.kubeconfig = Path(described["kubeconfig"])
        self.kubectl_program = Path(described["kubectl"])
        self.directory = Path(described["directory"]) / worker
        self.directory.mkdir(exist_ok=True)

    def load_image(self, name: str) -> str:
        """Nothing to do: no program runs in a simulated pod."""
        return ""

    def close(self) -> None:
        """Nothing to do: the owner ends it."""


def request(name: str, what: str) -> dict[str, Any]:
    """Ask the owner for `plane` or `stack`; returns its description once it runs.

    Raises:
        RuntimeError: it could not be started; the message is the owner's error.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(START_SECONDS)
        connection.connect(f"\0{name}")
        connection.sendall(what.encode() + b"\n")
        answer: dict[str, Any] = json.loads(connection.makefile().readline())
    if "error" in answer:
        raise RuntimeError(f"the shared {what} did not start: {answer['error']}")
    return answer


def _describe_plane(plane: "Plane") -> dict[str, Any]:
    return {
        "kubeconfig": str(plane.kubeconfig),
        "kubectl": str(plane.kubectl_program),
        "directory": str(plane.directory),
    }


def _describe_stack(stack: "Stack", plane: "Plane") -> dict[str, Any]:
    return _describe_plane(plane) | {"processes": stack.endpoints()}


def _serve(listener: socket.socket, resources: contextlib.ExitStack) -> None:
    """Answer the workers until stdin ends. One at a time: a start uses the whole machine anyway."""

    # Imported when it is needed: most runs of a few tests ask for nothing.
    def start_plane() -> dict[str, Any]:
        from tests.tools.plane import Plane

        return _describe_plane(resources.enter_context(Plane.start(nodes=NODES)))

    def start_stack() -> dict[str, Any]:
        from tests.support.stack import Stack
        from tests.tools.plane import Plane

        plane = resources.enter_context(Plane.start(nodes=NODES))
        return _describe_stack(resources.enter_context(Stack.start(plane)), plane)

    starters: dict[str, Callable[[], dict[str, Any]]] = {"plane": start_plane, "stack": start_stack}
    answers: dict[str, dict[str, Any]] = {}
    while True:
        readable, _, _ = select.select([sys.stdin, listener], [], [])
        if sys.stdin in readable:
            return
        connection, _ = listener.accept()
        with connection:
            what = connection.makefile().readline().strip()
            if what not in answers:
                try:
                    answers[what] = starters[what]()
                except Exception as error:
                    answers[what] = {"error": f"{type(error).__name__}: {error}"}
            # A worker that has ended meanwhile reads no answer.
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(answers[what]).encode() + b"\n")


def main() -> None:
    """Run the owner."""
    with socket.socket(fileno=int(sys.argv[1])) as listener, contextlib.ExitStack() as resources:
        _serve(listener, resources)


if __name__ == "__main__":
    main()
