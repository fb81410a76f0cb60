"""Leader election by a Lease (B21): one replica acts, the others wait.

The elector of the `kubernetes` package keeps leading after it lost the Lease (docs/decisions/004). The rules
of this one: a holder that could not renew for `renew_deadline` seconds of its own clock stops acting before
another replica may take over. A replica trusts no other machine's clock, only for how long it saw the Lease
unchanged. Every write carries the resourceVersion that it is based on. Every error counts as a failure.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from farebox.errors import Conflict, KubeError, KubeUnreachable, NotFound
from farebox.kube.client import JSONObject, KubeClient
from farebox.kube.names import BOOKMARK_ANNOTATION, lease_path

log = structlog.get_logger(__name__)


class _TakenByAnother(Exception):
    """The Lease that this replica held has another holder."""


@dataclass
class Elector:
    """Takes and keeps a Lease for `identity`.

    Args:
        duration: seconds without a renewal after which others may take the Lease.
        clock: monotonic seconds.
        bookmark: returns what the holder stores in the Lease for its successors; None: keep what is stored.
        inherited_bookmark: what the last holder had stored when this one took the Lease; "" for nothing.
    """

    client: KubeClient
    namespace: str
    name: str
    identity: str
    duration: float = 10.0
    clock: Callable[[], float] = time.monotonic
    bookmark: Callable[[], str | None] = lambda: None
    leading: asyncio.Event = field(default_factory=asyncio.Event)
    inherited_bookmark: str = ""
    _observed: tuple[str, float] | None = None
    _lease: JSONObject | None = None
    _renewed: float = 0.0
    _lost: bool = False

    @property
    def renew_deadline(self) -> float:
        """Seconds without a renewal after which a holder has lost: a third of the duration is the margin."""
        return self.duration * 2 / 3

    @property
    def period(self) -> float:
        """Seconds between two attempts."""
        return self.duration / 6

    def healthy(self) -> bool:
        """Return whether the last renewal is recent enough to act; False for a replica that lost the Lease.

        A standby is healthy.
        """
        if not self.leading.is_set():
            return not self._lost
        return self.clock() - self._renewed < self.renew_deadline

    async def run(self) -> None:
        """Take the Lease, set `leading`, keep renewing; return when the Lease is lost.

        The caller must stop acting at once: the process exits and starts again as a standby.
        """
        while not await self._attempt():  # noqa: ASYNC110 - the Lease is in the cluster, there is no local event
            await asyncio.sleep(self.period)
        log.info("lease.acquired", lease=self.name, identity=self.identity)
        self.leading.set()
        while (left := self._renewed + self.renew_deadline - self.clock()) > 0:
            await asyncio.sleep(min(self.period, left))
            try:
                async with asyncio.timeout(self._renewed + self.renew_deadline - self.clock()):
                    await self._attempt()
            except (TimeoutError, _TakenByAnother):
                break
        self._lost = True
        self.leading.clear()
        log.error("lease.lost", lease=self.name, identity=self.identity)

    async def read_bookmark(self) -> str:
        """Return the bookmark in the Lease; "" if the Lease has no bookmark."""
        try:
            lease = await self.client.request("GET", lease_path(self.namespace, self.name))
        except NotFound:
            return ""
        return _bookmark(lease)

    async def release(self) -> None:
        """Give the Lease back, so that a standby need not wait until it expires."""
        if not self.leading.is_set() or self._lease is None:
            return
        self.leading.clear()
        try:
            await self._write(self._lease, holder="", transitions=_transitions(self._lease))
        except (KubeError, KubeUnreachable) as error:
            log.warning("lease.release_failed", error=str(error))

    async def _attempt(self) -> bool:
        """Try to take or renew the Lease; returns whether this replica certainly holds it."""
        started = self.clock()
        try:
            held = await self._take_or_renew()
        except (KubeError, KubeUnreachable) as error:
            if not isinstance(error, Conflict):
                log.warning("lease.attempt_failed", error=str(error))
            self._lease = None
            return False
        if held:
            # Measured before the request: the renewal cannot be older.
            self._renewed = started
        return held

    async def _take_or_renew(self) -> bool:
        if self._lease is not None and self.leading.is_set():
            self._lease = await self._write(self._lease, self.identity, _transitions(self._lease))
            return True
        path = lease_path(self.namespace, self.name)
        try:
            lease = await self.client.request("GET", path, timeout=self.period * 2)
        except NotFound:
            self._lease = await self._create()
            return True
        holder = lease["spec"].get("holderIdentity") or ""
        if holder != self.identity and self.leading.is_set():
            # Another replica led in between, so this one must not continue.
            raise _TakenByAnother
        if holder and holder != self.identity and not self._expired(lease):
            return False
        transitions = _transitions(lease) + (holder != self.identity)
        if not self.leading.is_set():
            self.inherited_bookmark = _bookmark(lease)
        self._lease = await self._write(lease, self.identity, transitions)
        return True

    def _expired(self, lease: JSONObject) -> bool:
        """Return whether the Lease was unchanged here for the duration that its holder promised."""
        version = lease["metadata"]["resourceVersion"]
        if self._observed is None or self._observed[0] != version:
            self._observed = (version, self.clock())
            return False
        promised = float(lease["spec"].get("leaseDurationSeconds") or self.duration)
        return self.clock() - self._observed[1] >= promised

    async def _create(self) -> JSONObject:
        body = self._body(self.identity, 0)
        body["metadata"] = {"name": self.name, "namespace": self.namespace}
        return await self.client.request(
            "POST", lease_path(self.namespace), body=body, timeout=self.period * 2
        )

    async def _write(self, lease: JSONObject, holder: str, transitions: int) -> JSONObject:
        body = self._body(holder, transitions)
        body["metadata"] = lease["metadata"]
        bookmark = self.bookmark()
        if bookmark is not None:
            annotations = lease["metadata"].get("annotations") or {}
            body["metadata"] = {
                **lease["metadata"],
                "annotations": annotations | {BOOKMARK_ANNOTATION: bookmark},
            }
        if holder == (lease["spec"].get("holderIdentity") or ""):
            body["spec"]["acquireTime"] = lease["spec"].get("acquireTime") or body["spec"]["acquireTime"]
        return await self.client.request(
            "PUT", lease_path(self.namespace, self.name), body=body, timeout=self.period * 2
        )

    def _body(self, holder: str, transitions: int) -> JSONObject:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": max(1, round(self.duration)),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }


def _transitions(lease: JSONObject) -> int:
    return int(lease["spec"].get("leaseTransitions") or 0)


def _bookmark(lease: JSONObject) -> str:
    return str((lease["metadata"].get("annotations") or {}).get(BOOKMARK_ANNOTATION, ""))
