"""The parent's side of `supervisor.py`: one supervisor process per plane, commands over its stdin.

Never starts a component itself: a process that the supervisor does not know would survive a crash.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from .errors import PlaneError

SUPERVISOR = Path(__file__).with_name("supervisor.py")
LEAVE_SECONDS = 10.0


class Processes:
    """The processes of one plane.

    Args:
        directory: where the plane lives; the supervisor's working directory and logs/ in it.
        after_use: "remove" or "keep" the directory when the plane ends, however it ends.
        lock: file descriptor that holds the plane's lock; the supervisor takes it over.
        ports: reserved ports; the supervisor takes them over as well.
    """

    def __init__(self, directory: Path, after_use: str, lock: int, ports: Sequence[socket.socket]) -> None:
        self._logs = directory / "logs"
        self._logs.mkdir(exist_ok=True)
        handed_over = [lock, *(port.fileno() for port in ports)]
        with open(self._logs / "supervisor.log", "ab") as log:
            # -I -S: nothing of the caller's environment, no site-packages; it starts in 20 ms.
            program = [sys.executable, "-I", "-S", str(SUPERVISOR)]
            self._process = subprocess.Popen(
                [*program, str(directory), after_use, *map(str, handed_over)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=directory,
                pass_fds=handed_over,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout
        self._exchange = threading.Lock()

    @property
    def pid(self) -> int:
        """Process id of the supervisor, which is also the process group of all components."""
        return self._process.pid

    def start(self, name: str, argv: Sequence[str]) -> int:
        """Start a component and return its process id; its output is appended to logs/<name>.log."""
        return int(self._ask(do="start", name=name, argv=list(argv), log=str(self.log(name))))

    def send_signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a component; SIGKILL returns when the process is gone."""
        self._ask(do="signal", name=name, number=int(number))

    def dead(self) -> dict[str, int]:
        """Components that have ended, with their exit status (negative: the signal that ended them)."""
        status: dict[str, int | None] = self._ask(do="status")
        return {name: code for name, code in status.items() if code is not None}

    def detach(self) -> int:
        """Let the processes outlive this one; returns the process id to send SIGTERM to."""
        return int(self._ask(do="detach"))

    def stop(self) -> None:
        """Stop everything; works however often it is called, and whatever has died before."""
        with contextlib.suppress(PlaneError):
            self._ask(do="stop")
        with contextlib.suppress(BrokenPipeError):
            self._commands.close()
        try:
            self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        self._answers.close()

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def tail(self, name: str, lines: int = 15) -> str:
        """The end of a component's log."""
        try:
            return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(no log)"

    def _ask(self, **command: Any) -> Any:
        with self._exchange:
            try:
                self._commands.write(json.dumps(command).encode() + b"\n")
                self._commands.flush()
                line = self._answers.readline()
            except (OSError, ValueError) as error:
                raise PlaneError(f"the plane's supervisor is gone: {error}") from error
        if not line:
            raise PlaneError(f"the plane's supervisor is gone:\n{self.tail('supervisor')}")
        answer = json.loads(line)
        if "error" in answer:
            raise PlaneError(f"{command['do']} {command.get('name', '')}: {answer['error']}")
        return answer["ok"]
