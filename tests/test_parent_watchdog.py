"""A child process ends with the one which started it, however that ended, on every system."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import farebox.parent_watchdog

DIRECTORY = str(Path(farebox.parent_watchdog.__file__).parent)
LINUX = "import os, sys, leash; leash._become(os.getppid(), sys.argv[1:])"
ELSEWHERE = "import os, sys, leash; sys.exit(leash._stand_between(os.getppid(), sys.argv[1:]))"
OWNER = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
PROGRAM = ("/bin/sh", "-c", "echo here; exec sleep 1000")


def started(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """A Python program that finds the module."""
    return subprocess.Popen(
        [sys.executable, "-c", *arguments], env={"PYTHONPATH": DIRECTORY}, stdout=subprocess.PIPE, **options
    )


@pytest.mark.parametrize("way", [LINUX, ELSEWHERE], ids=["Linux", "elsewhere"])
def test_it_ends_when_its_owner_is_killed(way: str) -> None:
    owner = started(OWNER, sys.executable, "-c", way, *PROGRAM)
    assert owner.stdout is not None
    with owner, owner.stdout as output:
        assert output.readline() == b"here\n"
        owner.send_signal(signal.SIGKILL)
        assert output.read() == b"", "all that could write is gone"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_who_stands_between_passes_on_that_it_is_to_end(number: signal.Signals, code: int) -> None:
    between = started(ELSEWHERE, *PROGRAM)
    assert between.stdout is not None
    with between, between.stdout as output:
        assert output.readline() == b"here\n"
        between.send_signal(number)
        assert output.read() == b""
        assert between.wait() == code


def test_who_stands_between_ends_as_the_program_did() -> None:
    with started(ELSEWHERE, "sh", "-c", "exit 3") as between:
        assert between.wait() == 3
