"""Child processes that do not outlive the one which started them, however that ended.

A program of Farebox's own looks itself whether its parent is still there, and ends in order. Another's, such
as Envoy, is ended by Linux, even after a SIGKILL. Linux binds that to the thread which forks: it has to be
one that lives as long as the process, such as the main thread. Elsewhere a process stands between the two,
and ends the other program within half a second, unless it is killed itself.

Run as a program this file binds itself to its parent and becomes the other program, or stands between. It
needs nothing but the standard library, and no preexec_fn, which may deadlock in a process with threads.

    usage: leash.py PARENT_PID PROGRAM [ARGUMENT ...]
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.5


async def until_orphaned(parent: int) -> None:
    """Wait until this process is not a child of `parent` any more."""
    import asyncio

    while os.getppid() == parent:  # noqa: ASYNC110 - nothing tells of it that every system has
        await asyncio.sleep(_POLL_SECONDS)


def leashed(arguments: list[str]) -> list[str]:
    """A command that runs the given one, and ends with this process."""
    # -I -S: nothing of the caller's environment, no site-packages; it is done in 20 ms.
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *arguments]


def _become(parent: int, arguments: list[str]) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone already")
    os.execv(arguments[0], arguments)


def _stand_between(parent: int, arguments: list[str]) -> int:
    """Run the program, tell it when this process is told to end, and end it when the parent is gone.

    Returns its exit code, as a shell has it.
    """
    import subprocess

    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: told.append(number))
    child = subprocess.Popen(arguments)
    while True:
        try:
            code = child.wait(_POLL_SECONDS)
            return code if code >= 0 else 128 - code
        except subprocess.TimeoutExpired:
            while told:
                child.send_signal(told.pop())
            if os.getppid() != parent:
                child.kill()


if __name__ == "__main__":
    if sys.platform == "linux":
        _become(int(sys.argv[1]), sys.argv[2:])
    else:
        sys.exit(_stand_between(int(sys.argv[1]), sys.argv[2:]))
