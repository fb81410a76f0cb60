"""Who calls the meter, and whether he may: asked of the API server, remembered for a few seconds.

TokenReview says who, SubjectAccessReview whether. Without an answer from the API server nobody gets in, and
the caller is told to come again (503). Tokens are never kept: the cache knows their keyed hashes only.
"""

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from farebox.errors import KubeError, KubeUnreachable

GROUP: Final = "farebox.dev"
_MAX_REMEMBERED: Final = 10_000

T = TypeVar("T")


class Permission(NamedTuple):
    """What a caller must be allowed in Kubernetes; without a namespace, in the whole cluster."""

    verb: str
    resource: str
    namespace: str = ""

    def __str__(self) -> str:
        where = f" in namespace {self.namespace}" if self.namespace else " in all namespaces"
        return f"{self.verb} {self.resource}.{GROUP}{where}"


class Decision(Enum):
    """What the review came to, with the HTTP status that says so."""

    ALLOWED = 200
    UNAUTHENTICATED = 401
    FORBIDDEN = 403
    UNAVAILABLE = 503


@dataclass(frozen=True, slots=True)
class Review:
    """The decision on a call, and a sentence for the caller."""

    decision: Decision
    message: str = ""


class Authenticator(Protocol):
    """Decides on calls by their bearer tokens."""

    async def review(self, token: str, permission: Permission) -> Review:
        """Whether the bearer may do it. Never raises."""


class KubeRequests(Protocol):
    """What is used of `KubeClient`."""

    async def request(self, method: str, path: str, *, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send one request; raises KubeError or KubeUnreachable."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """The token is nobody's."""

    why: str


class KubeAuthenticator:
    """Authenticator by TokenReview and SubjectAccessReview."""

    def __init__(
        self,
        client: KubeRequests,
        audience: str,
        cache_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Answers, good or bad, are used again for `cache_seconds`."""
        self._client = client
        self._audience = audience
        self._salt = secrets.token_bytes(32)
        self._users: _Remembered[dict[str, Any] | _Refusal] = _Remembered(cache_seconds, monotonic)
        self._rights: _Remembered[bool] = _Remembered(cache_seconds, monotonic)

    async def review(self, token: str, permission: Permission) -> Review:
        """See Authenticator."""
        name = hashlib.blake2b(token.encode(errors="surrogateescape"), key=self._salt).digest()
        try:
            user = await self._users.get(name, lambda: self._token_review(token))
            if isinstance(user, _Refusal):
                return Review(Decision.UNAUTHENTICATED, f"the token is not accepted: {user.why}")
            allowed = await self._rights.get(
                (name, permission), lambda: self._access_review(user, permission)
            )
        except (KubeError, KubeUnreachable) as error:
            return Review(Decision.UNAVAILABLE, f"the API server cannot be asked who you are: {error}")
        if not allowed:
            who = user.get("username", "the user")
            message = f"{who} may not {permission}: ask a cluster admin for a role that allows it"
            return Review(Decision.FORBIDDEN, message)
        return Review(Decision.ALLOWED)

    async def _token_review(self, token: str) -> dict[str, Any] | _Refusal:
        answer = await self._client.request(
            "POST",
            "/apis/authentication.k8s.io/v1/tokenreviews",
            body={
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": token, "audiences": [self._audience]},
            },
        )
        status = answer.get("status", {})
        # An API server whose authenticator knows no audiences leaves them out: not proved, so not accepted.
        if not status.get("authenticated") or self._audience not in status.get("audiences", ()):
            return _Refusal(status.get("error") or f"it must be valid and for audience {self._audience}")
        user: dict[str, Any] = status.get("user", {})
        return user

    async def _access_review(self, user: dict[str, Any], permission: Permission) -> bool:
        attributes = {"group": GROUP, "verb": permission.verb, "resource": permission.resource}
        if permission.namespace:
            attributes["namespace"] = permission.namespace
        answer = await self._client.request(
            "POST",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            body={
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {
                    "resourceAttributes": attributes,
                    "user": user.get("username", ""),
                    "uid": user.get("uid", ""),
                    "groups": user.get("groups", []),
                    "extra": user.get("extra", {}),
                },
            },
        )
        return answer.get("status", {}).get("allowed") is True


class _Remembered(Generic[T]):
    """Answers for a while. Those who ask the same at once share one question; failures are not kept."""

    def __init__(self, seconds: float, monotonic: Callable[[], float]) -> None:
        self._seconds = seconds
        self._monotonic = monotonic
        self._answers: OrderedDict[Hashable, tuple[float, T]] = OrderedDict()
        self._asking: dict[Hashable, asyncio.Task[T]] = {}

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer remembered under `key`, or a new one."""
        known = self._answers.get(key)
        if known is not None and self._monotonic() - known[0] < self._seconds:
            return known[1]
        task = self._asking.get(key)
        if task is None:
            task = asyncio.create_task(self._ask(key, ask))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._asked(key, done))
        # A caller who goes away must not take the answer from the others.
        return await asyncio.shield(task)

    async def _ask(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        answer = await ask()
        self._answers[key] = (self._monotonic(), answer)
        self._answers.move_to_end(key)
        if len(self._answers) > _MAX_REMEMBERED:
            self._answers.popitem(last=False)
        return answer

    def _asked(self, key: Hashable, done: "asyncio.Task[T]") -> None:
        del self._asking[key]
        if not done.cancelled():
            # Read, so that a failure nobody waits for any more is not reported as lost.
            done.exception()
