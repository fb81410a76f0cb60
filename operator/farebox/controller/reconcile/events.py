"""Events about transitions (events.k8s.io), for `kubectl describe` and `kubectl events`. Best effort.

Each kind has a rate limit of its own: when thousands of services change at once, their account's Event and
the metrics report it. A lost Event affects nothing else.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import structlog

from farebox.api import API_VERSION, AnyObject, APIObject, ConditionStatus, ConditionType
from farebox.controller.queue import TokenBucket
from farebox.domain.conditions import ConditionVerdict
from farebox.errors import KubeError, KubeUnreachable
from farebox.kube.client import JSONObject, KubeClient
from farebox.kube.names import event_path
from farebox.metrics import EVENTS_DROPPED

log = structlog.get_logger(__name__)
EventKind = Literal["Normal", "Warning"]
_CONTROLLER = "farebox.dev/operator"
_MESSAGE_LIMIT = 1024
_WAITING = 256


@dataclass
class Recorder:
    """Sends Events one after another.

    Args:
        rate, burst: Events of one kind a second, and at once. The rest is dropped and counted.
    """

    client: KubeClient
    identity: str
    rate: float = 20.0
    burst: int = 100
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _buckets: dict[str, TokenBucket] = field(default_factory=dict)
    _queue: asyncio.Queue[JSONObject] = field(default_factory=lambda: asyncio.Queue(_WAITING))

    def event(self, regarding: APIObject, kind: EventKind, reason: str, action: str, note: str) -> None:
        """Record an Event of an object: `reason` and `action` are CamelCase words, `note` is a sentence."""
        bucket = self._buckets.setdefault(regarding.KIND, TokenBucket(self.rate, self.burst))
        if not bucket.try_take():
            EVENTS_DROPPED.inc()
            return
        try:
            self._queue.put_nowait(self._body(regarding, kind, reason, action, note))
        except asyncio.QueueFull:
            EVENTS_DROPPED.inc()

    def stalled(
        self,
        regarding: AnyObject,
        verdicts: Iterable[ConditionVerdict],
        action: str = "Reconcile",
        reported: Container[str] = (),
    ) -> None:
        """Record an Event when an object becomes Stalled, or Stalled for another reason: a user has to act.

        Args:
            reported: reasons that have an Event of their own.
        """
        now = next(verdict for verdict in verdicts if verdict.type is ConditionType.STALLED)
        was = regarding.status.condition(ConditionType.STALLED)
        same = was is not None and (was.status, was.reason) == (now.status, now.reason)
        if now.status is ConditionStatus.TRUE and not same and now.reason not in reported:
            self.event(regarding, "Warning", now.reason, action, now.message)

    async def run(self) -> None:
        """Send Events. Never returns."""
        while True:
            body = await self._queue.get()
            await self._send(body)

    async def flush(self) -> None:
        """Send what is queued, without waiting for more."""
        with contextlib.suppress(asyncio.QueueEmpty):
            while True:
                await self._send(self._queue.get_nowait())

    async def _send(self, body: JSONObject) -> None:
        try:
            await self.client.create(event_path(body["metadata"]["namespace"]), body)
        except (KubeError, KubeUnreachable) as error:
            EVENTS_DROPPED.inc()
            log.debug("event.not_sent", error=str(error))

    def _body(self, regarding: APIObject, kind: str, reason: str, action: str, note: str) -> JSONObject:
        metadata = regarding.metadata
        # The API server limits bytes, and accepts no name with a part that ends in a hyphen or a dot.
        note = note.encode()[:_MESSAGE_LIMIT].decode(errors="ignore")
        stem = metadata.name[:200].rstrip("-.")
        # Events about cluster-scoped objects live in "default", as those of Nodes do.
        namespace = metadata.namespace or "default"
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{stem}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            "eventTime": self.clock().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": _CONTROLLER,
            "reportingInstance": self.identity[:128],
            "action": action,
            "reason": reason,
            "type": kind,
            "note": note,
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": regarding.KIND,
                "name": metadata.name,
                "uid": metadata.uid,
                "resourceVersion": metadata.resource_version,
            }
            | ({"namespace": metadata.namespace} if metadata.namespace else {}),
        }
