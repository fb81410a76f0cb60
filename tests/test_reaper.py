"""A run of tests that is killed or interrupted leaves nothing running."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import reaper
from tests.support.ports import free_port
from tests.support.processes import runs
from tests.support.stack import REPOSITORY
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")

SERVERS = """
import os, subprocess, sys
from pathlib import Path
from tests.support.postgres import FAST, Postgres
from tests.support.processes import Process
from tests.support.reaper import VARIABLE, reaping
from tests.support.valkey import new_valkey

with reaping(), Postgres.started(**FAST):
    valkey = new_valkey(unix_socket_path=sys.argv[1] + "/valkey.sock")
    valkey.start()
    Process("simulator", "simulator --model * --port " + sys.argv[2], Path(sys.argv[1]), {}, int(sys.argv[2]))
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
    print(os.environ[VARIABLE], flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_all_servers_end_with_the_process_that_started_them(tmp_path: Path, number: signal.Signals) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", SERVERS, str(tmp_path), str(free_port())],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert run.stdin is not None
    assert run.stdout is not None
    mark = run.stdout.readline().strip()
    # What has just been started may not show its environment in /proc yet. The
    # simulator and the one that ignores SIGTERM are Python's.
    wait_for("all show the mark", lambda: len(reaper.marked(mark)) >= 4, 60)
    started = reaper.marked(mark)
    assert {"postgres", "valkey-server"} <= set(map(name_of, started))
    run.send_signal(number)
    run.communicate()
    wait_for("all have ended", lambda: not reaper.marked(mark), 60)
    assert not [pid for pid in started if runs(pid)]


WORKER = """
import os, subprocess, sys
from tests.support.reaper import VARIABLE, reaping

with reaping():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print(os.environ[VARIABLE], flush=True)
    sys.stdin.read()
"""
CONTROLLER = """
import subprocess, sys
from tests.support.reaper import reaping

with reaping():
    subprocess.run([sys.executable, "-c", sys.argv[1]])
"""


def test_what_a_worker_started_ends_when_the_process_that_started_the_worker_is_killed() -> None:
    controller = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, WORKER],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert controller.stdout is not None
    mark = controller.stdout.readline().strip()
    wait_for("what the worker started shows the mark", lambda: reaper.marked(mark), 60)
    controller.kill()
    wait_for("all have ended", lambda: not reaper.marked(mark), 60)
    controller.communicate()


def test_what_outlives_a_run_that_ended_in_order_is_left() -> None:
    """`make demo KEEP=1` leaves its processes on purpose."""
    with reaper.reaping():
        kept = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    assert kept.poll() is None
    kept.communicate()


@pytest.mark.usefixtures("binaries")
@pytest.mark.parametrize("target", ["test", "demo"])
def test_ctrl_c_ends_a_target_of_make_and_all_that_it_started(tmp_path: Path, target: str) -> None:
    mark = str(tmp_path)
    make = subprocess.Popen(
        # To install and to build is no part of this test.
        ["make", "-o", "install", "-o", "plane", target, "ARGS=tests/integration/test_terms.py"],
        cwd=REPOSITORY,
        env=os.environ | {"FAREBOX_TEST_CTRL_C": mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def names() -> set[str]:
        return {name_of(pid) for pid in reaper.marked(mark, "FAREBOX_TEST_CTRL_C")}

    # What a terminal does: everything in the foreground gets the signal.
    wait_for("a control plane runs", lambda: "kube-apiserver" in names(), 120)
    os.killpg(make.pid, signal.SIGINT)
    assert make.wait(60) != 0
    wait_for("nothing is left", lambda: not names(), 60)


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
