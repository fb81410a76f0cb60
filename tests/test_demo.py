"""The demo: it shows every phase of the main job, fails where one is wrong, and ends what it kept."""

import io
import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.support.processes import runs
from tests.support.stack import REPOSITORY, Stack
from tests.support.waiting import wait_for
from tests.tools.demo import __main__ as program
from tests.tools.demo.expect import Expect, Seen, strayed, unsettled
from tests.tools.demo.fixture_services import DEMO_LABEL, Calls, FixtureServices
from tests.tools.demo.scenario import Scenario
from tests.tools.demo.timeline import Timeline
from tests.tools.demo.watching import PhaseWatch
from tests.tools.plane import places

UP = "Creating -> Running"
DOWN = "Running -> Stopped"
AGAIN = "Stopped -> Running"
STORY = {
    # step: (team-a/chat, team-a/assistant, billing/bge-m3, account)
    "2": (UP, UP, "NotEnabled", "Active"),
    "3": ("Running", "Running", f"NotEnabled -> {UP}", "Active"),
    "4": ("Running", "Running", "Running", "Active"),
    "5": ("Running", "Running", "Running", "Active"),
    "6": (DOWN, DOWN, DOWN, "Overdue"),
    "7": ("Stopped", "Stopped", "Stopped", "Overdue"),
    "8": (AGAIN, AGAIN, AGAIN, "Active"),
    "9": ("Running", DOWN, "Running", "Active"),
    "10": ("Running", "Stopped", "Running", "Active"),
    "11": ("Running", AGAIN, "Running", "Active"),
}


@pytest.mark.usefixtures("binaries")
def test_demo_shows_every_phase_of_the_main_job_and_can_be_kept_and_ended(tmp_path: Path) -> None:
    run = _demo(tmp_path, KEEP="1")
    try:
        assert run.returncode == 0, run.stdout + run.stderr
        _check_story(run.stdout)
        kubeconfig = re.search(r"export KUBECONFIG=(\S+)", run.stdout)
        assert kubeconfig is not None
        directory = Path(kubeconfig[1]).parent
        assert places.is_alive(directory)
        (note,) = directory.parent.glob("demo-*.json")
        pids = json.loads(note.read_text())["pids"]
        assert all(runs(pid) for pid in pids)
    finally:
        down = _demo(tmp_path, "down")
    assert down.returncode == 0, down.stdout + down.stderr
    assert str(directory) in down.stdout
    assert not directory.exists()
    assert not any(runs(pid) for pid in pids)
    assert "no demo was left running" in _demo(tmp_path, "down").stdout


def _check_story(out: str) -> None:
    assert "\x1b[" not in out
    steps = dict(re.findall(r"^ *[\d.]+ s  (\d+)\. .*\n((?: {10}.*\n)+)", out, re.MULTILINE))
    assert list(steps) == [str(number) for number in range(1, 12)]
    for step, (chat, assistant, default, state) in STORY.items():
        shown = dict(re.findall(r"^ {10}(\S+/\S+) +(\S+(?: -> \S+)*)", steps[step], re.MULTILINE))
        assert shown == {"team-a/chat": chat, "team-a/assistant": assistant, "billing/bge-m3": default}, step
        assert f" USD, {state}\n" in steps[step]
        assert "\n          ok  " in steps[step]
    assert "500,000 of 500,000 tokens used" in steps["4"]
    assert "stream=True" in steps["5"]
    assert "the next call is refused: 402 permission_error: endpoint is inactive: OVERDUE" in steps["6"]
    assert re.search(r"Top up more than 0\.\d+ USD to reactivate the account", " ".join(steps["7"].split()))
    assert "s-team-a-assistant-9675361f  2/2" in steps["8"]
    assert "no differences" in out


@pytest.mark.usefixtures("binaries")
def test_a_step_that_goes_wrong_ends_the_demo_with_a_sentence_and_status_1(tmp_path: Path) -> None:
    # An operator that may write once in a quarter of an hour: it makes one Default service of three.
    run = _demo(tmp_path, "--patience=2", FAREBOX_WRITE_QPS="0.001", FAREBOX_WRITE_BURST="1")
    assert run.returncode == 1, run.stdout + run.stderr
    last = run.stdout.splitlines()[-1]
    assert last.startswith("          WRONG  ")
    assert re.search(r"billing/\S+ is without a phase, not NotEnabled", last)
    assert "\n          ok  " not in run.stdout
    assert not list(tmp_path.glob("farebox-planes-*/plane-*"))


def test_the_demo_leaves_nothing_on_a_cluster_that_others_use(stack: Stack) -> None:
    services = FixtureServices(f"-demo-{uuid.uuid4().hex[:6]}")
    out = io.StringIO()
    with PhaseWatch(stack.cluster) as watch:
        Scenario(stack, services, Timeline(out), watch, patience=180).play()
    services.remove(stack.cluster)
    left = stack.cluster.kubectl("get", "namespaces,mdl", f"--selector={DEMO_LABEL}=true", "--output=name")
    assert left == ""
    wait_for("no backend is left", lambda: services.suffix not in _backends(stack))


def _backends(stack: Stack) -> str:
    return stack.cluster.kubectl("get", "deployments,services", "--namespace=farebox-models", "--output=name")


REPLICAS = "ns/a has Deployment"
EXPECTED = {"ns/a": Expect(("Stopped", "Running"), replicas=2)}


@pytest.mark.parametrize(
    ("seen", "sentences"),
    [
        (Seen(("Stopped", "Running"), (), "d", 2, 2, 2), []),
        (Seen(), ["ns/a is without a phase, not Running", REPLICAS]),
        (Seen(("Stopped",), (), "d", 2, 2, 2), ["ns/a is Stopped, not Running"]),
        (Seen(("Running",), ("Overdue",), "d", 2, 2, 2), ["ns/a has stop reasons [Overdue], not []"]),
        (Seen(("Running",), (), "d", 3, 2, 2), [REPLICAS]),
        (Seen(("Running",), (), "d", 2, 3, 2), [REPLICAS]),
        (Seen(("Running",), (), "d", 2, 2, 1), [REPLICAS]),
    ],
)
def test_each_difference_from_what_a_step_expects_is_a_sentence(seen: Seen, sentences: list[str]) -> None:
    found = unsettled(EXPECTED, {"ns/a": seen})
    assert len(found) == len(sentences)
    assert all(said.startswith(sentence) for said, sentence in zip(found, sentences, strict=True))


def test_a_service_that_comes_to_the_right_end_another_way_is_wrong() -> None:
    astray = Seen(("Stopped", "Running", "Stopped", "Running"), (), "d", 2, 2, 2)
    assert unsettled(EXPECTED, {"ns/a": astray}) == []
    assert strayed(EXPECTED, {"ns/a": astray}) == [
        "ns/a went Stopped -> Running -> Stopped -> Running; it should have gone Stopped -> Running"
    ]
    stays = {"ns/a": Expect(("Stopped",))}
    assert strayed(stays, {"ns/a": Seen(("Stopped",))}) == []
    assert strayed(stays, {"ns/a": astray})[0].endswith("it should have stayed Stopped")


def test_calls_cost_what_the_samples_price_list_says() -> None:
    services = FixtureServices()
    # 6,000 x 0.500 + 2,000 x 0.050 + 1,000 x 1.500, per million: 0.0046 USD a call.
    assert services.cost(Calls(10, "x/y", "qwen3-8b", 8_000, 1_000, 2_000)) == 46_000_000
    # Beyond 32,768 tokens of input the second tier prices the whole call.
    assert services.cost(Calls(1, "x/y", "qwen3-8b", 100_000, 0)) == 80_000_000


def test_a_shop_on_a_shared_cluster_renames_models_and_namespaces_everywhere() -> None:
    services = FixtureServices("-demo-1")
    documents = [
        document
        for name in ("namespaces.yaml", "catalogue.yaml", "billing.yaml", "team-a.yaml")
        for document in services.documents(name)
    ]
    assert all(document["metadata"]["labels"][DEMO_LABEL] == "true" for document in documents)
    text = json.dumps(documents)
    for name in ("billing", "team-a", "qwen3-8b", "llama-3.3-70b", "bge-m3"):
        assert f'"{name}"' not in text
        assert f'"{name}-demo-1"' in text


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("out", "env", "coloured"),
    [
        (_Terminal(), {"TERM": "xterm"}, True),
        (_Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (_Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_colours_are_for_terminals_alone(out: io.StringIO, env: dict[str, str], coloured: bool) -> None:
    Timeline(out, env).wrong("something")
    assert ("\x1b[" in out.getvalue()) is coloured


def test_what_keeps_the_demo_from_starting_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLUSTER", "moon")
    assert program.main([]) == 1
    assert "CLUSTER=moon is not one of plane, kind, current" in capsys.readouterr().out


def _demo(temporary: Path, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run the demo as a user does; kept ones of the developer are not touched: they are in another TMPDIR."""
    ours = {"CLUSTER": "plane", "TMPDIR": str(temporary), "KEEP": "", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "tests.tools.demo", "--patience=60", *arguments],
        cwd=REPOSITORY, env=os.environ | ours | env, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
