"""The usage log on disk: the file that Envoy writes, the rotated files, and the checkpoint.

Envoy writes `usage.log`. A full file is renamed to `usage.log.<number>`, and Envoy reopens `usage.log`.
Numbers increase. A position is a number and an offset, so it stays valid when its file is renamed. This
module reads, renames and deletes files; it never communicates with Envoy or the meter.
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
    """A position in the log: the number of a file, and the offset of the start of a line."""

    number: int
    offset: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Complete lines of the log without their newlines, the end of each line, and the end of the chunk."""

    lines: tuple[bytes, ...]
    ends: tuple[Position, ...]
    end: Position


class Checkpoint:
    """The position up to which the log is acknowledged, in a file that is replaced atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Position | None:
        """The saved position. None if no position is saved: every file has to be sent."""
        try:
            content = json.loads(self._path.read_bytes())
            return Position(int(content["number"]), int(content["offset"]))
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return None

    def save(self, position: Position) -> None:
        """Save the position; it is on disk when this returns. Raises OSError."""
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
    """Whether a process still has a file of this log open for writing; True if the system cannot tell.

    It includes processes of other containers, because the kernel refuses a lease on a file that is open.
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
        # If a process opens the file during the lease, the kernel sends a signal. SIGURG has no effect.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


class LogSegments:
    """The files of one log; Envoy writes the last of them."""

    def __init__(self, log_file: Path, done: Position | None) -> None:
        """`done` is the checkpoint; files before it are deleted."""
        self._log_file = log_file
        numbers = self._numbers()
        oldest = numbers[0] if numbers else 1
        self._active = max(done.number if done else oldest, numbers[-1] + 1 if numbers else 1)
        self.start = done or Position(min(oldest, self._active), 0)
        self._open: tuple[int, int] | None = None
        self.delete_before(self.start.number)

    @property
    def awaits_envoy(self) -> bool:
        """Whether Envoy has still to reopen the log after a rotation, or to start."""
        return not self._log_file.exists()

    def read(self, position: Position) -> Chunk:
        """The next lines, or none if there are no new lines.

        A partial line is left for later, unless its file is no longer written.
        """
        finished = self._is_finished(position.number)
        data = self._bytes_at(position)
        end = data.rfind(b"\n") + 1
        if not data:
            if finished:
                return Chunk((), (), Position(position.number + 1, 0))
            return Chunk((), (), Position(position.number, 0) if self._was_truncated(position) else position)
        if end == 0 and not finished:
            return Chunk((), (), position)
        block = data[:end] if end else data
        lines = tuple(block.removesuffix(b"\n").split(b"\n"))
        ends = []
        offset = position.offset
        for line in lines:
            offset += len(line) + 1
            ends.append(Position(position.number, offset))
        ends[-1] = Position(position.number, position.offset + len(block))
        return Chunk(lines, tuple(ends), ends[-1])

    def bytes_after(self, position: Position) -> int:
        """The size of the log after a position."""
        paths = [self._path(number) for number in self._numbers() if number >= position.number]
        size = -position.offset
        for path in (*paths, self._log_file):
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
        return max(0, size)

    def rotate_if_over(self, size: int) -> bool:
        """Rename the file if it is larger than `size`. Envoy must then reopen its log."""
        try:
            if self._log_file.stat().st_size <= size:
                return False
        except FileNotFoundError:
            return False
        self._log_file.rename(self._path(self._active))
        self._active += 1
        return True

    def delete_before(self, number: int) -> None:
        """Delete the files with smaller numbers."""
        for found in self._numbers():
            if found < number:
                self._path(found).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file that is being read."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _is_finished(self, number: int) -> bool:
        """Whether no more lines come: Envoy opens a new file only after it has closed the old one."""
        return number < self._active and (self._log_file.exists() or number + 1 < self._active)

    def _was_truncated(self, position: Position) -> bool:
        """Whether the file was truncated or deleted, so that new lines start at offset 0."""
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
        """The open file with this number. A descriptor stays valid after a rename."""
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
