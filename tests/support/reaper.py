"""Ends what a test run has started when the run is killed, even by SIGKILL, or interrupted by Ctrl-C.

`reaping` starts this file as a program, the reaper. Every process that is started meanwhile inherits an
environment variable with the run's mark, servers that put themselves into the background included
(PostgreSQL, Envoy, Valkey). When the reaper's stdin ends without a line "done", it ends all processes that
carry the mark: SIGTERM first, SIGKILL after three seconds. It finds them in /proc, so it needs Linux;
elsewhere it does nothing.

    usage: reaper.py MARK
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import types
import uuid
from collections.abc import Iterator

VARIABLE = "FAREBOX_TEST_RUN"
GRACE_SECONDS = 3.0
END_SECONDS = 30.0
POLL_SECONDS = 0.05


@contextlib.contextmanager
def reaping(interruptible: bool = True) -> Iterator[None]:
    """End everything that is started inside, should this process end before the block does.

    Args:
        interruptible: Ctrl-C ends it at once, instead of after an orderly shutdown. Not for a cluster that
            others use, where objects have to be deleted first.
    """
    mark = uuid.uuid4().hex
    # A session of its own and no mark: neither Ctrl-C nor another reaper ends it, such as that of the pytest
    # process which started this worker.
    reaper = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, mark],
        env={name: value for name, value in os.environ.items() if name != VARIABLE},
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert reaper.stdin is not None
    stdin = reaper.stdin

    def interrupt(number: int, frame: types.FrameType | None) -> None:
        stdin.close()
        signal.default_int_handler(number, frame)

    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = mark
    handler = signal.signal(signal.SIGINT, interrupt) if interruptible else None
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
        if not stdin.closed:
            stdin.write(b"done\n")
            stdin.close()
        reaper.wait()


def marked(mark: str, variable: str = VARIABLE) -> list[int]:
    """The processes of this user that carry the mark, but for the caller."""
    wanted = f"{variable}={mark}".encode()
    found = []
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as environment:
                if wanted in environment.read().split(b"\0"):
                    found.append(int(name))
    return found


def end(mark: str) -> None:
    """End all processes with the mark; some may start others until they have ended."""
    started = time.monotonic()
    asked: set[int] = set()
    while (pids := marked(mark)) and time.monotonic() < started + END_SECONDS:
        patient = time.monotonic() < started + GRACE_SECONDS
        for pid in pids:
            if not patient or pid not in asked:
                asked.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM if patient else signal.SIGKILL)
                    os.kill(pid, signal.SIGCONT)
        time.sleep(POLL_SECONDS)


def main() -> None:
    """Run the reaper."""
    if sys.stdin.buffer.readline() != b"done\n":
        end(sys.argv[1])


if __name__ == "__main__":
    main()
