"""A meter on a real port with callers that tests define, and builders of CloudEvents."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from farebox.ledger.engine import Ledger
from farebox.meter.app import create_app
from farebox.meter.auth import Decision, Permission, Review
from farebox.meter.metrics import MeterMetrics
from farebox.meter.requests import Meter
from tests.ledger.databases import Database
from tests.ledger.support import CHAT, START, Clock, opened

OPERATOR, GATEWAY, READER = "operator-token", "gateway-token", "reader-token"
TENANT, ADMIN = "tenant-token", "admin-token"
RIGHTS = {
    OPERATOR: {("create", "ledgerrecords", ""), ("watch", "billingaccounts", "")},
    TENANT: {("get", "inferenceservices", "team-a")},
    ADMIN: {("get", "inferenceservices", "")},
    GATEWAY: {("create", "usageevents", "")},
    READER: {("get", "billingaccounts", "billing")},
}


class FixedTokens:
    """An Authenticator that knows the tokens above and their rights."""

    async def review(self, token: str, permission: Permission) -> Review:
        """See Authenticator."""
        if token not in RIGHTS:
            return Review(Decision.UNAUTHENTICATED, "unknown token")
        if tuple(permission) not in RIGHTS[token]:
            return Review(Decision.FORBIDDEN, f"may not {permission}")
        return Review(Decision.ALLOWED)


@dataclass
class Answer:
    """An answer of the meter."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """The reason of an error."""
        return str(self.body["error"]["reason"])


class Api:
    """A caller of the meter."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def call(
        self,
        method: str,
        path: str,
        token: str | None = OPERATOR,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Answer:
        """One request; a body that is not bytes is sent as JSON."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = content_type
        async with self._session.request(method, self.url + path, data=data, headers=headers) as response:
            is_json = response.content_type == "application/json"
            body = await (response.json() if is_json else response.text())
            return Answer(response.status, body, response.headers)

    async def post_events(self, events: Any, token: str = GATEWAY) -> Answer:
        """Usage, as a batch of CloudEvents."""
        return await self.call("POST", "/v1/events", token, events, "application/cloudevents-batch+json")


@asynccontextmanager
async def serving(meter: Meter) -> AsyncIterator[str]:
    """Serve a meter on a free port; yields its URL."""
    runner = web.AppRunner(create_app(meter), shutdown_timeout=10)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield site.name
    finally:
        await runner.cleanup()


@dataclass
class Running:
    """A meter that serves a ledger."""

    api: Api
    url: str
    ledger: Ledger
    meter: Meter


@asynccontextmanager
async def running(database: Database, clock: Clock) -> AsyncIterator[Running]:
    """Run a meter with FixedTokens and a caller."""
    async with opened(database, clock) as ledger, aiohttp.ClientSession() as session:
        meter = Meter(FixedTokens(), MeterMetrics(), ledger)
        async with serving(meter) as url:
            yield Running(Api(url, session), url, ledger, meter)


def cloud_event(name: str = "1", **changes: Any) -> dict[str, Any]:
    """A call of the service of tests.ledger.support, as a CloudEvent."""
    data = {"inputTokens": 100, "outputTokens": 20}
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": name,
        "source": "gateway-0",
        "type": "dev.farebox.usage.v1",
        "subject": str(CHAT),
        "time": START.isoformat(),
        "data": data,
    }
    return event | changes
