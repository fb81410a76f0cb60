"""The objects of one kind in memory. The newest resourceVersion wins, whichever request returned it. No I/O.

Lists, watches and answers to writes put objects here in any order: a slow watch never undoes what the answer
to a write has reported already.
"""

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog

from farebox.domain.keys import ObjectKey
from farebox.kube.names import key_of

log = structlog.get_logger(__name__)
JSONObject = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """An object before and after: None where it did not or does not exist."""

    kind: str
    key: ObjectKey
    old: T | None
    new: T | None


class Store(Generic[T]):
    """The objects of one kind.

    Args:
        parse: turns the JSON of an object into what is kept of it; raises ValueError for one it cannot read.
        on_change: called with every change, before the method that caused it returns.
    """

    def __init__(
        self,
        kind: str,
        parse: Callable[[JSONObject], T],
        on_change: Callable[[Change[T]], None] = lambda change: None,
    ) -> None:
        self.kind = kind
        self._parse = parse
        self._on_change = on_change
        self._objects: dict[ObjectKey, tuple[int, T]] = {}
        self._deleted: dict[ObjectKey, int] = {}
        self._unreadable: dict[ObjectKey, int] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._objects

    def __iter__(self) -> Iterator[ObjectKey]:
        return iter(self._objects)

    def get(self, key: ObjectKey) -> T | None:
        """Return the object, if it exists."""
        entry = self._objects.get(key)
        return None if entry is None else entry[1]

    def items(self) -> Iterator[tuple[ObjectKey, T]]:
        """Iterate over keys and objects; the store must not change meanwhile."""
        for key, (_, value) in self._objects.items():
            yield key, value

    def values(self) -> Iterator[T]:
        """Iterate over the objects; the store must not change meanwhile."""
        for _, value in self._objects.values():
            yield value

    def version(self, key: ObjectKey) -> int:
        """Return the resourceVersion of the object in the store; 0 when it is absent."""
        entry = self._objects.get(key)
        return 0 if entry is None else entry[0]

    def put(self, raw: JSONObject) -> Change[T] | None:
        """Store an object, unless the store has a newer version or a later deletion; None: no change."""
        key, version = key_of(raw), version_of(raw)
        known = self._objects.get(key)
        if version <= (known[0] if known else self._deleted.get(key, 0)):
            return None
        try:
            value = self._parse(raw)
        except ValueError as error:
            # The CRD's schema refuses such an object. One that exists all the same must not delay the others.
            if self._unreadable.get(key, 0) < version:
                # Once for each version: a list repeats the object at every comparison.
                self._unreadable[key] = version
                log.error("object.unreadable", kind=self.kind, object=str(key), error=str(error))
            return self._on_unreadable(key, version)
        self._deleted.pop(key, None)
        self._unreadable.pop(key, None)
        return self._set(key, known, version, value)

    def assume(self, key: ObjectKey, value: T, version: int) -> Change[T] | None:
        """Store what the answer to a write implies for an existing object, before the watch reports it."""
        known = self._objects.get(key)
        if known is None or version <= known[0]:
            return None
        return self._set(key, known, version, value)

    def remove(self, key: ObjectKey, version: int) -> Change[T] | None:
        """Record a deletion at `version`, unless the object was created again since; None: no change."""
        known = self._objects.get(key)
        if known is not None and known[0] > version:
            return None
        self._deleted[key] = version
        if known is None:
            return None
        del self._objects[key]
        return self._changed(key, known[1], None)

    def remove_absent(self, listed: Set[ObjectKey], version: int) -> list[Change[T]]:
        """Remove what a complete list at `version` lacks, except what is newer and was created after it."""
        self._unreadable = {key: at for key, at in self._unreadable.items() if key in listed}
        absent = [key for key in self._objects if key not in listed]
        return [change for key in absent if (change := self.remove(key, version)) is not None]

    def forget_deletions(self, before: int) -> None:
        """Drop the records of deletions older than `before`: no older version can arrive any more."""
        self._deleted = {key: version for key, version in self._deleted.items() if version >= before}

    def _on_unreadable(self, key: ObjectKey, version: int) -> Change[T] | None:
        """Keep the last version that could be read."""
        return None

    def _set(self, key: ObjectKey, known: tuple[int, T] | None, version: int, value: T) -> Change[T]:
        self._objects[key] = (version, value)
        return self._changed(key, known[1] if known else None, value)

    def _changed(self, key: ObjectKey, old: T | None, new: T | None) -> Change[T]:
        change = Change(self.kind, key, old, new)
        self._on_change(change)
        return change


def version_of(raw: JSONObject) -> int:
    """Return the resourceVersion of an object; the API server promises that newer ones are greater."""
    return int(raw["metadata"]["resourceVersion"])
