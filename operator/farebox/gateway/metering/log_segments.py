"""The log of usage on the disk: the file that Envoy writes, those it wrote before, and how far they are done.

The file that is written is `usage.log`; when it is full it becomes `usage.log.<number>`, and Envoy is told to
open a new one. Numbers grow; a position is a number and an offset, and stays right when its file is renamed.
This module reads, renames and deletes files; it never talks to Envoy or to the meter.
"""

import contextlib
import fcntl
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

READ_BYTES: Final = 256 * 1024


class Position(NamedTuple):
    """A place in the log: the file's number, and the offset of a line's beginning."""

    number: int
    offset: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines of the log, without the last newline, and the place behind them."""

    lines: tuple[bytes, ...]
    ends: tuple[Position, ...]
    """The place behind each line."""
    end: Position


class Checkpoint:
    """How far the log is done, in a file that is whole at any moment."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Position | None:
        """The place, or None if there is none (then all files that there are have to be done)."""
        try:
            content = json.loads(self._path.read_bytes())
            return Position(int(content["number"]), int(content["offset"]))
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return None

    def save(self, position: Position) -> None:
        """Keep the place: it is on the disk when this returns. Raises OSError."""
        new = self._path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(json.dumps(position._asdict()).encode())
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def may_be_written(log_file: Path) -> bool:
    """Whether a process still has a file of this log open for writing; true where the system cannot tell.

    Processes of other containers count: the kernel says it, by refusing a lease on the file.
    """
    return any(_is_open_for_writing(path) for path in log_file.parent.glob(f"{log_file.name}*"))


def _is_open_for_writing(path: Path) -> bool:
    if sys.platform != "linux":
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # Who opens the file while the lease is held makes the kernel send a signal: this one does nothing.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


class LogSegments:
    """The files of one log, of which Envoy writes the last."""

    def __init__(self, log_file: Path, done: Position | None) -> None:
        """`done` is the bookmark: files before it are of no use any more."""
        self._log_file = log_file
        numbers = self._numbers()
        oldest = numbers[0] if numbers else 1
        self._active = max(done.number if done else oldest, numbers[-1] + 1 if numbers else 1)
        self.start = done or Position(min(oldest, self._active), 0)
        self._open: tuple[int, int] | None = None
        self.delete_before(self.start.number)

    @property
    def awaits_envoy(self) -> bool:
        """Envoy has not opened the file anew after a rotation (or has not been started yet)."""
        return not self._log_file.exists()

    def read(self, position: Position) -> Chunk:
        """The next lines: none if there are no more yet.

        A line that is not finished is left for later, but for one in a file that nobody writes any more.
        """
        finished = self._is_finished(position.number)
        data = self._bytes_at(position)
        end = data.rfind(b"\n") + 1
        if not data:
            if finished:
                return Chunk((), (), Position(position.number + 1, 0))
            return Chunk((), (), Position(position.number, 0) if self._was_cut(position) else position)
        if end == 0 and not finished:
            return Chunk((), (), position)
        block = data[:end] if end else data
        lines = tuple(block.removesuffix(b"\n").split(b"\n"))
        ends = []
        offset = position.offset
        for line in lines:
            offset += len(line) + 1
            ends.append(Position(position.number, offset))
        behind = Position(position.number, position.offset + len(block))
        ends[-1] = behind
        return Chunk(lines, tuple(ends), behind)

    def bytes_behind(self, position: Position) -> int:
        """How much of the log is behind a place."""
        paths = [self._path(number) for number in self._numbers() if number >= position.number]
        size = -position.offset
        for path in (*paths, self._log_file):
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
        return max(0, size)

    def rotate_if_over(self, size: int) -> bool:
        """Put the file away if it has more bytes than `size`; Envoy has to be told then."""
        try:
            if self._log_file.stat().st_size <= size:
                return False
        except FileNotFoundError:
            return False
        self._log_file.rename(self._path(self._active))
        self._active += 1
        return True

    def delete_before(self, number: int) -> None:
        """Remove the files that are done."""
        for found in self._numbers():
            if found < number:
                self._path(found).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file that is being read."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _is_finished(self, number: int) -> bool:
        """Envoy opens the new file after it has closed the old one: where there is a newer, no line comes."""
        return number < self._active and (self._log_file.exists() or number + 1 < self._active)

    def _was_cut(self, position: Position) -> bool:
        """Somebody emptied or deleted the file: what comes is at its beginning."""
        if self._open is None or self._open[0] != position.number:
            return False
        found = os.fstat(self._open[1])
        if found.st_nlink == 0:
            self.close()
            return True
        return found.st_size < position.offset

    def _bytes_at(self, position: Position) -> bytes:
        descriptor = self._descriptor(position.number)
        if descriptor is None:
            return b""
        size = READ_BYTES
        while True:
            data = os.pread(descriptor, size, position.offset)
            if len(data) < size or b"\n" in data:
                return data
            size *= 2

    def _descriptor(self, number: int) -> int | None:
        """The open file of that number. A descriptor follows a rename."""
        if self._open is not None and self._open[0] == number:
            return self._open[1]
        path = self._log_file if number == self._active else self._path(number)
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self._open = (number, os.open(path, os.O_RDONLY))
            return self._open[1]
        return None

    def _path(self, number: int) -> Path:
        return self._log_file.with_name(f"{self._log_file.name}.{number:08d}")

    def _numbers(self) -> list[int]:
        prefix = self._log_file.name + "."
        names = (path.name.removeprefix(prefix) for path in self._log_file.parent.glob(f"{prefix}*"))
        return sorted(int(name) for name in names if name.isdecimal())
