"""The printed timeline: seconds, what was done, what came of it. Colours only on a terminal."""

import os
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

WIDTH = 110
INDENT = " " * 10
_COLOURS = {"title": "1", "command": "36", "ok": "32", "wrong": "31", "quiet": "2"}


class Timeline:
    """Writes lines to `out`.

    Args:
        out: where to; colours are used if it is a terminal and NO_COLOR is not set.
        clock: monotonic seconds; the timeline starts when it is made.
    """

    def __init__(
        self,
        out: TextIO,
        env: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out
        self._colours = out.isatty() and not env.get("NO_COLOR") and env.get("TERM") != "dumb"
        self._clock = clock
        self._start = clock()

    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def say(self, text: str = "") -> None:
        """A line without a time."""
        self._print(text)

    def event(self, text: str) -> None:
        """A line with the seconds since the start."""
        self._print(f"{self.seconds():6.1f} s  {text}")

    def step(self, title: str) -> None:
        """The line that opens a step."""
        self._print("")
        self._print(f"{self.seconds():6.1f} s  {self._painted(title, 'title')}")

    def command(self, text: str) -> None:
        """What was typed, or sent; further lines of it are indented as they are."""
        for line in text.splitlines():
            self._print(INDENT + self._painted(line, "command"))

    def detail(self, text: str) -> None:
        """One more sentence of a step; a long one takes several lines."""
        for line in textwrap.wrap(text, WIDTH - len(INDENT), subsequent_indent="  "):
            self._print(INDENT + line)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Rows in aligned columns; the first one is the heading."""
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for number, row in enumerate(rows):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            line = "  ".join(cells).rstrip()
            self._print(INDENT + (self._painted(line, "quiet") if number == 0 else line))

    def ok(self, text: str) -> None:
        """A step came out as it should."""
        self._print(f"{INDENT}{self._painted('ok', 'ok')}  {text}")

    def wrong(self, text: str) -> None:
        """A step did not."""
        self._print(f"{INDENT}{self._painted('WRONG', 'wrong')}  {text}")

    def _painted(self, text: str, style: str) -> str:
        return f"\x1b[{_COLOURS[style]}m{text}\x1b[0m" if self._colours else text

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)
