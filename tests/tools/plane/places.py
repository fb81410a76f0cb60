"""Directories of planes: makes and locks them, and removes what crashed ones left.

A plane is alive exactly while its supervisor holds a lock (flock) on the directory itself. That needs no
process ids, which come again after a restart of the machine; and a lock file in the directory would go before
the rest of it, so that a plane being removed would look gone.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import PlaneError


def common_directory() -> Path:
    """Where planes without a directory of their own live: one per user, in $TMPDIR."""
    place = Path(tempfile.gettempdir()) / f"farebox-planes-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.stat().st_uid != os.getuid() or place.is_symlink():
        raise PlaneError(f"{place} belongs to somebody else; set TMPDIR to a directory of your own")
    return place


def new_temporary() -> tuple[Path, int]:
    """A fresh directory with its lock held, after removing those of planes that are gone."""
    common = common_directory()
    with _exclusive(common / ".lock"):
        for place in common.iterdir():
            if place.is_dir() and not is_alive(place):
                shutil.rmtree(place, ignore_errors=True)
        place = Path(tempfile.mkdtemp(prefix="plane-", dir=common))
        return place, _lock(place)


def given(place: Path) -> tuple[Path, int]:
    """A directory that the caller named, made if need be, with its lock held."""
    place = place.absolute()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place, _lock(place)


def is_alive(place: Path) -> bool:
    """Whether a plane runs in this directory."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def alive() -> list[Path]:
    """Directories of the running planes of this user, among those without a directory of their own."""
    common = common_directory()
    with _exclusive(common / ".lock"):
        return sorted(place for place in common.iterdir() if place.is_dir() and is_alive(place))


def _lock(place: Path) -> int:
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise PlaneError(f"a plane runs in {place} already; stop it, or name another directory") from None
    return descriptor


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
