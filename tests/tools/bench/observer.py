"""Sees what happens to Deployments and services on the API server, by watches of the benchmark's own.

Cheap on purpose, as it runs beside what it looks at: two regular expressions a Deployment event, and nothing
but a copy for an event of a service.
"""

import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.tools.bench.bare import Bare
from tests.tools.bench.world import DEPLOYMENTS, SERVICES

_NAME = re.compile(rb'"name":"([^"]+)","namespace":')
_DESIRED = re.compile(rb'"spec":\{"replicas":(\d+)')
_REPLICAS = re.compile(rb'"replicas":(\d+)')
_READY = re.compile(rb'"readyReplicas":(\d+)')


@dataclass(frozen=True)
class Seen:
    """A Deployment as it went by."""

    name: str
    desired: int
    replicas: int
    ready: int

    @property
    def arrived(self) -> bool:
        """Whether exactly the desired replicas exist and are ready."""
        return self.desired == self.replicas == self.ready


@dataclass
class Observer:
    """What was seen since `observing`. All times are monotonic seconds.

    Attributes:
        last_service_at: when the last event of a service came.
        scaled_at: when a Deployment was first seen with `desired` replicas.
        arrived_at: when its pods were first seen to be there, or gone.
        statuses: the raw events of services, in order.
    """

    desired: int
    on_arrival: Callable[[str], None] = lambda name: None
    last_service_at: float = 0.0
    statuses: list[bytes] = field(default_factory=list)
    scaled_at: dict[str, float] = field(default_factory=dict)
    arrived_at: dict[str, float] = field(default_factory=dict)
    started_at: float = field(default_factory=time.monotonic)

    def events_by_service(self) -> Counter[str]:
        """How many events each service had."""
        return Counter(_name(line) for line in self.statuses)

    def on_service(self, line: bytes, at: float) -> None:
        """An event of a service."""
        self.last_service_at = at
        self.statuses.append(line)

    def on_deployment(self, line: bytes, at: float) -> None:
        """An event of a Deployment."""
        seen = deployment(line)
        if seen.desired != self.desired:
            return
        self.scaled_at.setdefault(seen.name, at)
        if seen.arrived and seen.name not in self.arrived_at:
            self.arrived_at[seen.name] = at
            self.on_arrival(seen.name)


@asynccontextmanager
async def observing(
    bare: Bare, desired: int, on_arrival: Callable[[str], None] = lambda name: None
) -> AsyncIterator[Observer]:
    """Look at all services and Deployments on their way to `desired` replicas."""
    observer = Observer(desired, on_arrival)
    async with (
        bare.watching(SERVICES, observer.on_service),
        bare.watching(DEPLOYMENTS, observer.on_deployment),
    ):
        observer.started_at = time.monotonic()
        yield observer


def deployment(line: bytes) -> Seen:
    """What matters in a Deployment's JSON as the API server writes it."""
    status = line[line.rfind(b'"status":{') :]
    return Seen(_name(line), _number(_DESIRED, line), _number(_REPLICAS, status), _number(_READY, status))


def _name(line: bytes) -> str:
    found = _NAME.search(line)
    assert found is not None, line[:200]
    return found[1].decode()


def _number(pattern: re.Pattern[bytes], text: bytes) -> int:
    found = pattern.search(text)
    return int(found[1]) if found else 0
