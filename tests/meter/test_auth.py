"""Authentication and authorization by the API server, with a cache."""

import asyncio
from typing import Any

import pytest

from farebox.errors import Forbidden, KubeUnreachable
from farebox.meter.auth import Decision, KubeAuthenticator, Permission

AUDIENCE = "farebox-meter"
POST = Permission("create", "usageevents")
GET = Permission("get", "billingaccounts", "billing")
USER = {
    "username": "system:serviceaccount:farebox-system:farebox-gateway",
    "uid": "u-1",
    "groups": ["system:serviceaccounts", "system:authenticated"],
    "extra": {"authentication.kubernetes.io/pod-name": ["gateway-0"]},
}


class ReviewApi:
    """The two review APIs, with one valid token; it records the requests."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.allowed = {POST}
        self.audiences = [AUDIENCE]
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.received = asyncio.Event()

    async def request(self, method: str, path: str, *, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Answer a review as an API server does."""
        assert body is not None
        assert (method, path.rsplit("/", 1)[1]) == ("POST", body["kind"].lower() + "s")
        self.requests.append(body)
        self.received.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        spec = body["spec"]
        if body["kind"] == "TokenReview":
            if spec["token"] != "good":
                return {"status": {"error": "invalid bearer token"}}
            return {"status": {"authenticated": True, "user": USER, "audiences": self.audiences}}
        attributes = spec["resourceAttributes"]
        permission = Permission(attributes["verb"], attributes["resource"], attributes.get("namespace", ""))
        return {"status": {"allowed": permission in self.allowed}}

    def kinds(self) -> list[str]:
        """The kinds of the reviews, in order."""
        return [body["kind"] for body in self.requests]


class Timer:
    """Monotonic seconds that a test controls."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def reviews() -> ReviewApi:
    """The API server."""
    return ReviewApi()


@pytest.fixture
def timer() -> Timer:
    """The cache's clock."""
    return Timer()


@pytest.fixture
def authenticator(reviews: ReviewApi, timer: Timer) -> KubeAuthenticator:
    """An authenticator that caches for 10 seconds."""
    return KubeAuthenticator(reviews, AUDIENCE, 10.0, timer)


async def test_the_access_review_gets_the_whole_identity_of_the_caller(
    authenticator: KubeAuthenticator, reviews: ReviewApi
) -> None:
    assert (await authenticator.review("good", POST)).decision is Decision.ALLOWED
    token, access = (body["spec"] for body in reviews.requests)
    assert token == {"token": "good", "audiences": [AUDIENCE]}
    assert access == {
        "user": USER["username"],
        "uid": USER["uid"],
        "groups": USER["groups"],
        "extra": USER["extra"],
        "resourceAttributes": {"group": "farebox.dev", "verb": "create", "resource": "usageevents"},
    }


async def test_an_invalid_token_is_401_and_a_missing_right_is_403(
    authenticator: KubeAuthenticator,
) -> None:
    forbidden = await authenticator.review("good", GET)
    assert forbidden.decision is Decision.FORBIDDEN
    assert "get billingaccounts.farebox.dev in namespace billing" in forbidden.message
    unknown = await authenticator.review("bad", POST)
    assert unknown.decision is Decision.UNAUTHENTICATED
    assert "invalid bearer token" in unknown.message
    assert "bad" not in unknown.message.replace("invalid bearer token", "")


@pytest.mark.parametrize("audiences", [[], ["https://kubernetes.default.svc"]])
async def test_a_token_for_another_audience_is_not_accepted(
    authenticator: KubeAuthenticator, reviews: ReviewApi, audiences: list[str]
) -> None:
    reviews.audiences = audiences
    assert (await authenticator.review("good", POST)).decision is Decision.UNAUTHENTICATED


async def test_answers_are_cached_until_they_expire(
    authenticator: KubeAuthenticator, reviews: ReviewApi, timer: Timer
) -> None:
    for _ in range(3):
        await authenticator.review("good", POST)
        await authenticator.review("bad", POST)
    assert len(reviews.requests) == 3
    await authenticator.review("good", GET)
    assert reviews.kinds()[3:] == ["SubjectAccessReview"]
    timer.now = 10.0
    reviews.allowed = set()
    assert (await authenticator.review("good", POST)).decision is Decision.FORBIDDEN


async def test_concurrent_callers_share_one_review(
    authenticator: KubeAuthenticator, reviews: ReviewApi
) -> None:
    reviews.gate = asyncio.Event()
    callers = [asyncio.create_task(authenticator.review("good", POST)) for _ in range(20)]
    await reviews.received.wait()
    callers[0].cancel()
    reviews.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert {result.decision for result in results[1:] if not isinstance(result, BaseException)} == {
        Decision.ALLOWED
    }
    assert len(reviews.requests) == 2


@pytest.mark.parametrize("error", [KubeUnreachable("refused"), Forbidden(403, "Forbidden", "no role")])
async def test_an_unreachable_api_server_is_503_and_not_cached(
    authenticator: KubeAuthenticator, reviews: ReviewApi, error: Exception
) -> None:
    reviews.error = error
    assert (await authenticator.review("good", POST)).decision is Decision.UNAVAILABLE
    reviews.error = None
    assert (await authenticator.review("good", POST)).decision is Decision.ALLOWED


async def test_the_cache_is_bounded_and_has_no_tokens(
    authenticator: KubeAuthenticator,
) -> None:
    for number in range(10_050):
        await authenticator.review(f"secret-{number}", POST)
    remembered = authenticator._users._answers
    assert len(remembered) == 10_000
    assert not any("secret" in repr(item) for item in remembered.items())
