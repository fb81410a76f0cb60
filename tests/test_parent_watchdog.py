"""A child process ends with its parent, however the parent ends, on every system."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import farebox.parent_watchdog

DIRECTORY = str(Path(farebox.parent_watchdog.__file__).parent)
LINUX = "import os, sys, parent_watchdog; parent_watchdog._become(os.getppid(), sys.argv[1:])"
ELSEWHERE = (
    "import os, sys, parent_watchdog; sys.exit(parent_watchdog._supervise(os.getppid(), sys.argv[1:]))"
)
OWNER = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
PROGRAM = ("/bin/sh", "-c", "echo here; exec sleep 1000")


def started(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """A Python program that finds the module."""
    return subprocess.Popen(
        [sys.executable, "-c", *arguments], env={"PYTHONPATH": DIRECTORY}, stdout=subprocess.PIPE, **options
    )


@pytest.mark.parametrize("way", [LINUX, ELSEWHERE], ids=["Linux", "elsewhere"])
def test_a_child_ends_when_its_parent_is_killed(way: str) -> None:
    owner = started(OWNER, sys.executable, "-c", way, *PROGRAM)
    assert owner.stdout is not None
    with owner, owner.stdout as output:
        assert output.readline() == b"here\n"
        owner.send_signal(signal.SIGKILL)
        assert output.read() == b"", "all that could write is gone"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_supervisor_passes_signals_on(number: signal.Signals, code: int) -> None:
    between = started(ELSEWHERE, *PROGRAM)
    assert between.stdout is not None
    with between, between.stdout as output:
        assert output.readline() == b"here\n"
        between.send_signal(number)
        assert output.read() == b""
        assert between.wait() == code


def test_the_supervisor_exits_with_the_programs_code() -> None:
    with started(ELSEWHERE, "sh", "-c", "exit 3") as between:
        assert between.wait() == 3
