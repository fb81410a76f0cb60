"""What the operator makes of the API server's answer to a Secret, and that the key is in no message of it."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import Configuration

from farebox.api import APIKey
from farebox.controller.queue import Priority, TokenBucket
from farebox.controller.reconcile.apply import ClusterWriter
from farebox.controller.reconcile.resources import api_key_secret
from farebox.controller.state.cache import Cache
from farebox.domain.apikey_status import SecretOutcome, new_credential
from farebox.errors import Conflict, Forbidden, KubeError, NotFound
from farebox.kube.client import KubeClient

TOKEN = new_credential(bytes(range(32))).token
KEY = APIKey.model_validate(
    {
        "metadata": {"name": "app", "namespace": "team-a", "uid": "u-1"},
        "spec": {"services": {"all": True}},
    }
)
SECRET = api_key_secret(KEY, TOKEN)


class Answering:
    """A server with scripted answers, which quotes the whole request in its error, as a webhook may."""

    def __init__(self) -> None:
        self.status, self.reason = 201, ""
        self.requests: list[tuple[str, Any]] = []

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append((request.path_qs, body))
        if self.status < 400:
            return web.json_response(body, status=self.status)
        message = f"no: {json.dumps(body)} with {base64.b64decode(body['data']['api-key']).decode()}"
        return web.json_response({"reason": self.reason, "message": message}, status=self.status)


@pytest.fixture
async def server() -> AsyncIterator[tuple[Answering, ClusterWriter]]:
    answering = Answering()
    app = web.Application()
    app.router.add_post("/{path:.*}", answering.handle)
    async with TestServer(app) as running:
        host = str(running.make_url("")).rstrip("/")
        async with KubeClient(Configuration(host=host)) as client:
            bucket = TokenBucket(100, 100)
            yield answering, ClusterWriter(client, Cache(), bucket, lambda: True, lambda change: None)


def key_shows(text: str) -> bool:
    return TOKEN in text or SECRET["data"]["api-key"] in text


async def test_a_probe_stores_nothing_and_asks_the_same(server: tuple[Answering, ClusterWriter]) -> None:
    answering, writer = server
    assert (await writer.probe_secret(SECRET, Priority.HIGH)).outcome is SecretOutcome.CREATED
    assert (await writer.create_secret(SECRET, Priority.HIGH)).outcome is SecretOutcome.CREATED
    path = "/api/v1/namespaces/team-a/secrets"
    assert answering.requests == [(f"{path}?dryRun=All", SECRET), (path, SECRET)]


@pytest.mark.parametrize(
    ("status", "reason", "outcome"),
    [
        (409, "AlreadyExists", SecretOutcome.EXISTS),
        (403, "Forbidden", SecretOutcome.REFUSED),
        (422, "Invalid", SecretOutcome.REFUSED),
        (400, "BadRequest", SecretOutcome.REFUSED),
    ],
)
async def test_a_final_no_is_an_answer_without_the_key(
    server: tuple[Answering, ClusterWriter], status: int, reason: str, outcome: SecretOutcome
) -> None:
    answering, writer = server
    answering.status, answering.reason = status, reason
    answer = await writer.create_secret(SECRET, Priority.HIGH)
    assert answer.outcome is outcome
    assert "[secret]" in answer.message
    assert not key_shows(answer.message)


@pytest.mark.parametrize(
    ("status", "reason", "error"),
    [
        (409, "Conflict", Conflict),
        (401, "Unauthorized", Forbidden),
        (404, "NotFound", NotFound),
        (500, "InternalError", KubeError),
    ],
)
async def test_b20_an_error_that_leaves_the_outcome_open_is_retried(
    server: tuple[Answering, ClusterWriter], status: int, reason: str, error: type[KubeError]
) -> None:
    answering, writer = server
    answering.status, answering.reason = status, reason
    with pytest.raises(error) as raised:
        await writer.create_secret(SECRET, Priority.HIGH)
    assert raised.value.status == status
    assert not key_shows(str(raised.value))
    assert not key_shows(raised.value.message)
    assert raised.value.__suppress_context__
