"""Child processes that do not outlive the one which started them, however that ended.

A program of Farebox's own looks itself whether its parent is still there, and ends in order. Another's, such
as Envoy, is ended by Linux, even after a SIGKILL; elsewhere nobody does. Linux binds that to the thread which
forks: it has to be one that lives as long as the process, such as the main thread.

Run as a program this file binds itself to its parent and becomes the other program. It needs nothing but the
standard library, and no preexec_fn, which may deadlock in a process with threads.

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
    """A command that becomes the given one, and ends with this process where that can be had."""
    if sys.platform != "linux":
        return arguments
    # -I -S: nothing of the caller's environment, no site-packages; it is done in 20 ms.
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *arguments]


def _become(parent: int, arguments: list[str]) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone already")
    os.execv(arguments[0], arguments)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
