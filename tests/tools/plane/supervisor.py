"""Owns the processes of one plane: starts, signals and counts them, and outlives the process that started it.

Run as a program by `processes.Processes`, never imported by it. It reads one JSON command per line from
stdin and answers each with one JSON line on stdout. When stdin ends (the parent is gone, however it went)
it kills every component and removes the plane's directory, so a crashed test run leaves nothing behind.
Should this process itself be killed, Linux kills the components (PR_SET_PDEATHSIG). It has one thread and
must keep it so: that signal is bound to the thread which forked.

It never decides what to start, never restarts anything, and never talks to Kubernetes.

    usage: supervisor.py DIRECTORY {remove|keep} LOCK_FD [RESERVED_PORT_FD ...]

The lock (flock) and the reserved ports are open files of this process: they are free again exactly when it
is gone, so no process ids are compared to find out whether a plane is alive.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

PR_SET_PDEATHSIG = 1
PARENT_POLL_SECONDS = 1.0
STOP_GRACE_SECONDS = 2.0
# Stopped in this order, each wave together: etcd outlives the API server, which may still write.
LAST_TO_STOP = "etcd"

LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Supervisor:
    def __init__(self, directory: str, remove_directory: str) -> None:
        self.directory = directory
        self.remove = remove_directory == "remove"
        self.parent = os.getppid()
        self.detached = False
        self.components: dict[str, subprocess.Popen[bytes]] = {}

    def serve(self) -> None:
        """Answer commands until `stop`, or until the parent is gone."""
        buffer = b""
        while True:
            if not self.detached and os.getppid() != self.parent:
                break
            inputs = [] if self.detached else [0]
            readable, _, _ = select.select(inputs, [], [], PARENT_POLL_SECONDS)
            if not readable:
                continue
            chunk = os.read(0, 65536)
            if not chunk:
                break
            buffer += chunk
            while b"\n" in buffer:
                line, buffer = buffer.split(b"\n", 1)
                answer = self.answer(json.loads(line))
                os.write(1, json.dumps(answer).encode() + b"\n")
        self.shut_down(grace=0.0)
        os._exit(0)

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"ok": getattr(self, "do_" + command.pop("do"))(**command)}
        except Exception as error:  # the caller must hear of any failure, and the components must live on
            return {"error": f"{type(error).__name__}: {error}"}

    def do_start(self, name: str, argv: list[str], log: str) -> int:
        running = self.components.get(name)
        if running is not None and running.poll() is None:
            raise RuntimeError(f"{name} is running already")
        with open(log, "ab") as output:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                preexec_fn=die_with(os.getpid()),
            )
        self.components[name] = process
        return process.pid

    def do_signal(self, name: str, number: int) -> int | None:
        """Send a signal; after SIGKILL return only when the process is gone, with its exit status."""
        process = self.components[name]
        process.send_signal(number)
        return process.wait() if number == signal.SIGKILL else process.poll()

    def do_status(self) -> dict[str, int | None]:
        """Exit status by component; null for the running ones."""
        return {name: process.poll() for name, process in self.components.items()}

    def do_detach(self) -> int:
        self.detached = True
        return os.getpid()

    def do_stop(self) -> None:
        self.shut_down(STOP_GRACE_SECONDS)
        os.write(1, b'{"ok": null}\n')
        os._exit(0)

    def on_terminate(self, *_: object) -> None:
        self.shut_down(STOP_GRACE_SECONDS)
        os._exit(0)

    def shut_down(self, grace: float) -> None:
        """Stop all components and remove what is to be removed."""
        first = [p for name, p in self.components.items() if name != LAST_TO_STOP]
        last = [p for name, p in self.components.items() if name == LAST_TO_STOP]
        stop(first, grace)
        stop(last, grace)
        if self.remove:
            shutil.rmtree(self.directory, ignore_errors=True)


def stop(processes: list[subprocess.Popen[bytes]], grace: float) -> None:
    """SIGTERM, and SIGKILL for those still there after `grace` seconds; at once with a grace of zero."""
    for process in processes:
        if grace:
            process.terminate()
            # One that a test has paused cannot act on SIGTERM before it is continued.
            process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + grace
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()) if grace else 0)
    for process in processes:
        process.kill()
        process.wait()


def die_with(supervisor: int) -> Callable[[], None]:
    """What the child does between fork and exec: ask the kernel to be killed with its supervisor."""

    def prepare() -> None:
        if LIBC is not None:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)

    return prepare


def main() -> None:
    supervisor = Supervisor(sys.argv[1], sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, supervisor.on_terminate)
    supervisor.serve()


if __name__ == "__main__":
    main()
