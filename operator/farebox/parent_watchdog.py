"""Ends child processes when their parent ends, however it ends.

A Farebox process polls for its parent (`until_orphaned`) and shuts down in order. Another program, such as
Envoy, is killed by Linux (PR_SET_PDEATHSIG), even after a SIGKILL of the parent. Linux binds this to the
forking thread, which must live as long as the process, as the main thread does. On other systems a
supervisor process runs between the two and kills the program within half a second.

Run as a program, this file sets the signal and becomes the other program, or supervises it. It needs only the
standard library, and no preexec_fn, which may deadlock in a process with threads.

    usage: parent_watchdog.py PARENT_PID PROGRAM [ARGUMENT ...]
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.5


async def until_orphaned(parent: int) -> None:
    """Wait until this process is no longer a child of `parent`."""
    import asyncio

    while os.getppid() == parent:  # noqa: ASYNC110 - no event for it exists on every system
        await asyncio.sleep(_POLL_SECONDS)


def watched(arguments: list[str]) -> list[str]:
    """A command line that runs `arguments` and ends with this process."""
    # -I -S: no environment variables, no site-packages. It starts in 20 ms.
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *arguments]


def _become(parent: int, arguments: list[str]) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("The parent process has already ended")
    os.execv(arguments[0], arguments)


def _supervise(parent: int, arguments: list[str]) -> int:
    """Run the program, pass signals on to it, and kill it when the parent is gone.

    Returns its exit code by the convention of shells (128 + signal).
    """
    import subprocess

    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: received.append(number))
    child = subprocess.Popen(arguments)
    while True:
        try:
            code = child.wait(_POLL_SECONDS)
            return code if code >= 0 else 128 - code
        except subprocess.TimeoutExpired:
            while received:
                child.send_signal(received.pop())
            if os.getppid() != parent:
                child.kill()


if __name__ == "__main__":
    if sys.platform == "linux":
        _become(int(sys.argv[1]), sys.argv[2:])
    else:
        sys.exit(_supervise(int(sys.argv[1]), sys.argv[2:]))
