"""`python -m tests.tools.plane build | up | down | list`: the control plane by hand."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from . import places
from .binaries import ensure_built
from .errors import PlaneError
from .plane import Plane, supervisor_of

STOP_SECONDS = 15.0


def main() -> int:
    """Run one command; 0 if it worked, 1 with a sentence on stderr if not."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.plane", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="build the binaries, unless they are cached")
    build.set_defaults(run=_build)
    up = commands.add_parser("up", help="run a control plane until Ctrl-C")
    up.add_argument("--nodes", type=int, default=3, help="simulated nodes (default: 3)")
    up.add_argument("--directory", type=Path, help="keep its data here, and continue it next time")
    up.add_argument("--detach", action="store_true", help="leave it running and return")
    up.set_defaults(run=_up)
    down = commands.add_parser("down", help="stop a control plane that was left running")
    down.add_argument("directory", type=Path)
    down.set_defaults(run=_down)
    running = commands.add_parser("list", help="directories of the running control planes")
    running.set_defaults(run=_list)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except PlaneError as error:
        print(f"plane: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _build(_: argparse.Namespace) -> None:
    print(ensure_built().directory)


def _up(arguments: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    started = time.monotonic()
    with Plane.start(arguments.directory, arguments.nodes) as plane:
        print(f"plane: {plane.server} is ready after {time.monotonic() - started:.1f} s", file=sys.stderr)
        print(f"export KUBECONFIG={plane.kubeconfig}", flush=True)
        if arguments.detach:
            plane.detach()
            print(
                f"plane: stop it with `python -m tests.tools.plane down {plane.directory}`", file=sys.stderr
            )
            # Not through __exit__, which would stop it.
            sys.stdout.flush()
            os._exit(0)
        print("plane: Ctrl-C stops it", file=sys.stderr)
        while not (failure := plane.explain_failure()):
            time.sleep(1.0)
        raise PlaneError(failure.strip())


def _down(arguments: argparse.Namespace) -> None:
    directory = arguments.directory.absolute()
    if not places.is_alive(directory):
        raise PlaneError(f"no plane runs in {directory}")
    os.kill(supervisor_of(directory), signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while places.is_alive(directory):
        if time.monotonic() > deadline:
            raise PlaneError(f"the plane in {directory} does not stop")
        time.sleep(0.05)


def _list(_: argparse.Namespace) -> None:
    for directory in places.alive():
        print(directory)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
