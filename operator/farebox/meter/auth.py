"""Authenticates and authorizes callers of the meter through the API server, with a short-lived cache.

A TokenReview identifies the caller, a SubjectAccessReview decides on the permission. When the API server is
unreachable, every call is refused with 503. The cache has keyed hashes of tokens, never a token.
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
_MAX_CACHED: Final = 10_000

T = TypeVar("T")


class Permission(NamedTuple):
    """The right that a caller needs in Kubernetes. Without a namespace, it is needed in the whole cluster."""

    verb: str
    resource: str
    namespace: str = ""

    def __str__(self) -> str:
        where = f" in namespace {self.namespace}" if self.namespace else " in all namespaces"
        return f"{self.verb} {self.resource}.{GROUP}{where}"


class Decision(Enum):
    """The result of a review; the value is its HTTP status."""

    ALLOWED = 200
    UNAUTHENTICATED = 401
    FORBIDDEN = 403
    UNAVAILABLE = 503


@dataclass(frozen=True, slots=True)
class Review:
    """The decision on a call, and its explanation for the caller."""

    decision: Decision
    message: str = ""


class Authenticator(Protocol):
    """Authorizes calls by their bearer tokens."""

    async def review(self, token: str, permission: Permission) -> Review:
        """Decide whether the bearer has the permission. Never raises."""


class KubeRequests(Protocol):
    """The part of `KubeClient` that this module uses."""

    async def request(self, method: str, path: str, *, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send one request. Raises KubeError or KubeUnreachable."""


@dataclass(frozen=True, slots=True)
class _InvalidToken:
    """The API server does not accept the token."""

    why: str


class KubeAuthenticator:
    """An Authenticator that uses TokenReview and SubjectAccessReview."""

    def __init__(
        self,
        client: KubeRequests,
        audience: str,
        cache_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Every answer is cached for `cache_seconds`."""
        self._client = client
        self._audience = audience
        self._salt = secrets.token_bytes(32)
        self._users: _Cache[dict[str, Any] | _InvalidToken] = _Cache(cache_seconds, monotonic)
        self._rights: _Cache[bool] = _Cache(cache_seconds, monotonic)

    async def review(self, token: str, permission: Permission) -> Review:
        """See Authenticator."""
        name = hashlib.blake2b(token.encode(errors="surrogateescape"), key=self._salt).digest()
        try:
            user = await self._users.get(name, lambda: self._token_review(token))
            if isinstance(user, _InvalidToken):
                return Review(Decision.UNAUTHENTICATED, f"The token is not accepted: {user.why}")
            allowed = await self._rights.get(
                (name, permission), lambda: self._access_review(user, permission)
            )
        except (KubeError, KubeUnreachable) as error:
            return Review(Decision.UNAVAILABLE, f"The API server cannot review the token: {error}")
        if not allowed:
            who = user.get("username", "The user")
            message = f"{who} may not {permission}: ask a cluster admin for a role with this right"
            return Review(Decision.FORBIDDEN, message)
        return Review(Decision.ALLOWED)

    async def _token_review(self, token: str) -> dict[str, Any] | _InvalidToken:
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
        # An authenticator without support for audiences leaves them out. Then the audience is unproven.
        if not status.get("authenticated") or self._audience not in status.get("audiences", ()):
            return _InvalidToken(status.get("error") or f"it must be valid and for audience {self._audience}")
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


class _Cache(Generic[T]):
    """Caches answers for a time. Concurrent callers share one request; failures are not cached."""

    def __init__(self, seconds: float, monotonic: Callable[[], float]) -> None:
        self._seconds = seconds
        self._monotonic = monotonic
        self._answers: OrderedDict[Hashable, tuple[float, T]] = OrderedDict()
        self._requests: dict[Hashable, asyncio.Task[T]] = {}

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        """The cached answer for `key`, or a new one."""
        known = self._answers.get(key)
        if known is not None and self._monotonic() - known[0] < self._seconds:
            return known[1]
        task = self._requests.get(key)
        if task is None:
            task = asyncio.create_task(self._ask(key, ask))
            self._requests[key] = task
            task.add_done_callback(lambda done: self._asked(key, done))
        # A cancelled caller must not cancel the request that the others wait for.
        return await asyncio.shield(task)

    async def _ask(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        answer = await ask()
        self._answers[key] = (self._monotonic(), answer)
        self._answers.move_to_end(key)
        if len(self._answers) > _MAX_CACHED:
            self._answers.popitem(last=False)
        return answer

    def _asked(self, key: Hashable, done: "asyncio.Task[T]") -> None:
        del self._requests[key]
        if not done.cancelled():
            # Retrieve the exception: asyncio logs one that no caller waits for any more.
            done.exception()
