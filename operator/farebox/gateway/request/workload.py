"""The work of reading requests, shared fairly between keys, and bounded for those that are refused.

Rate limits and money count admitted calls. A call that is refused after its body was read has cost work for
nothing, so it counts on a limit of its own (`RefusedWork`). A long body is read in steps (`parsing`); one at
a time, and one of each key at a time (`Turns`), so that neither many long bodies nor one key delay the rest.
"""

import asyncio
from collections import defaultdict
from collections.abc import Generator
from typing import Final, TypeVar

from farebox.domain.keys import ObjectKey

REFUSED_BURST: Final = 400.0
REFUSED_PER_SECOND: Final = 8.0
BYTES_PER_UNIT: Final = 128 * 1024
"""The work of refusing a request: one unit, and one for each of these bytes of its body."""
_MAX_KEYS: Final = 10_000
_LONG: Final = 256 * 1024

T = TypeVar("T")


class RefusedWork:
    """The work spent on refused calls, by key. It decays by REFUSED_PER_SECOND; times are seconds."""

    def __init__(self) -> None:
        self._keys: dict[ObjectKey, tuple[float, float]] = {}

    def add(self, key: ObjectKey, body_bytes: int, now: float, *, mistake: bool) -> None:
        """Count a refused call.

        Args:
            mistake: whether the request itself is wrong. Otherwise a limit or a balance has refused it, which
                the caller cannot foresee, and only the bytes of a long body count.
        """
        work = float(mistake) + body_bytes // BYTES_PER_UNIT
        if not work:
            return
        if len(self._keys) >= _MAX_KEYS:
            self._keys = {each: value for each, value in self._keys.items() if self._left(value, now) > 0}
        self._keys[key] = (self._left(self._keys.get(key), now) + work, now)

    def retry_after(self, key: ObjectKey, now: float) -> float:
        """Seconds until the key may call again; 0: now."""
        if key not in self._keys:
            return 0.0
        excess = self._left(self._keys[key], now) - REFUSED_BURST
        return max(0.0, excess / REFUSED_PER_SECOND)

    def _left(self, value: tuple[float, float] | None, now: float) -> float:
        if value is None:
            return 0.0
        work, at = value
        return max(0.0, work - (now - at) * REFUSED_PER_SECOND)


class Turns:
    """Reads long bodies one at a time, and those of one key one after another."""

    def __init__(self) -> None:
        self._all = asyncio.Lock()
        self._keys: dict[ObjectKey, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting: dict[ObjectKey, int] = defaultdict(int)

    async def run(self, steps: Generator[None, None, T], key: ObjectKey, body_bytes: int) -> T:
        """Run the steps; other calls are decided between them."""
        if body_bytes <= _LONG:
            return await _run(steps)
        self._waiting[key] += 1
        try:
            async with self._keys[key], self._all:
                return await _run(steps)
        finally:
            self._leave(key)

    def _leave(self, key: ObjectKey) -> None:
        self._waiting[key] -= 1
        if not self._waiting[key]:
            del self._waiting[key], self._keys[key]


async def _run(steps: Generator[None, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await asyncio.sleep(0)
