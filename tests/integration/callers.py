"""Callers of the gateway: API keys as tenants make them, and the official clients."""

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from openai import APIStatusError, OpenAI

from farebox.domain.billing.money import parse_amount
from farebox.kube.names import core_path
from tests.integration.tenants import SECONDS, Tenant
from tests.support.api import manifest, path_of
from tests.support.gateway import Gateway
from tests.support.waiting import wait_for

PRICES = [{"input": "1.000", "cachedInput": "0.100", "output": "2.000"}]
QUESTION = [{"role": "user", "content": "How do I count the tokens of a call?"}]


def make_key(tenant: Tenant, name: str = "app", **spec: Any) -> str:
    """Create an APIKey, wait for its Secret, and return the token."""
    body = {"services": {"all": True}} | spec
    tenant.api.create(path_of("APIKey", tenant.namespace), manifest("APIKey", name, body, tenant.namespace))

    def token() -> str:
        status = tenant.status(name, "APIKey")
        assert status.get("secretName"), status
        secret = tenant.api.get(core_path("secrets", tenant.namespace, status["secretName"]))
        return base64.b64decode(secret["data"]["api-key"]).decode()

    return wait_for(f"the Secret of APIKey {name}", token, SECONDS)


def edit_key(tenant: Tenant, name: str = "app", **spec: Any) -> None:
    """Change an APIKey's spec."""
    tenant.api.patch(path_of("APIKey", tenant.namespace, name), {"spec": spec})


def client(gateway: Gateway, token: str) -> OpenAI:
    """The official client; it retries nothing, so that every answer is seen."""
    return OpenAI(base_url=f"{gateway.url}/v1", api_key=token, max_retries=0, timeout=60)


class Caller:
    """A tenant with a service `chat` that runs, and a key."""

    def __init__(self, tenant: Tenant, gateway: Gateway, reader: str, **model: Any) -> None:
        self.tenant = tenant
        self.gateway = gateway
        self._reader = reader
        prices = {"currency": tenant.currency, "tiers": PRICES}
        self.model = tenant.model(**({"servedName": "Org/Model-8B", "prices": prices} | model))
        self._served: list[Any] = []

    def start(self, balance: str = "10", service: dict[str, Any] | None = None, **account: Any) -> OpenAI:
        """Account, service and key; returns when calls are served."""
        self.tenant.account(balance=balance, **account)
        self.tenant.service("chat", self.model, **(service or {}))
        self.tenant.wait_running("chat", 1)
        self.token = make_key(self.tenant)
        made = client(self.gateway, self.token)
        self.wait_served(made)
        return made

    def say(self, caller: OpenAI, **options: Any) -> Any:
        """One short call."""
        asked = {"model": "chat", "max_tokens": 8, "messages": QUESTION} | options
        answer = caller.chat.completions.create(**asked)
        self._served.append(answer)
        return answer

    def wait_served(self, caller: OpenAI, **options: Any) -> Any:
        """Wait until a call is served; returns the answer."""

        def look() -> Any:
            try:
                return self.say(caller, **options)
            except APIStatusError as error:
                raise AssertionError(str(error)) from error

        return wait_for("calls are served", look, SECONDS)

    def balance(self) -> int:
        """In nano-units, as the ledger has it."""
        path = f"/v1/accounts/{self.tenant.namespace}/acme"
        answer = self.tenant.stack.call_meter("GET", path, token=self._reader)
        return parse_amount(answer["balance"])

    def usage(self) -> list[dict[str, Any]]:
        """All that was metered of the tenant, one row for each key."""
        since, until = (f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%dT00:00:00Z}" for days in (-1, 2))
        query = f"account={self.tenant.namespace}/acme&groupBy=apiKey,service&from={since}&to={until}"
        path = f"/v1/usage?{query}"
        rows: list[dict[str, Any]] = self.tenant.stack.call_meter("GET", path, token=self._reader)["rows"]
        return rows

    def calls(self) -> int:
        """How many calls were metered."""
        return sum(row["calls"] for row in self.usage())

    def wait_metered(self, others: int = 0) -> int:
        """Wait until exactly the calls that `say` made, and `others`, were metered; returns how many."""

        def look() -> int:
            found, served = self.calls(), len(self._served) + others
            assert found == served, f"{found} of {served}"
            return found

        return wait_for("all calls that were served are metered", look, SECONDS)

    def wait_spent(self, since: int, nano: int) -> None:
        """Wait until exactly this amount has been charged since a balance, and no further charge follows."""
        wait_for(f"{nano} nano-units are charged", lambda: self._spent(since, nano), SECONDS)

    def _spent(self, since: int, nano: int) -> bool:
        found = since - self.balance()
        assert found == nano, found
        return True

    def wait_refused(self, caller: OpenAI, status: int, *words: str, **options: Any) -> dict[str, Any]:
        """Wait until a call is refused so; returns the error."""

        def look() -> dict[str, Any]:
            error = refused(lambda: self.say(caller, **options))
            assert error["status"] == status, error
            assert all(word in error["message"] for word in words), error
            return error

        return wait_for(f"calls are refused with {status}", look, SECONDS)


def refused(attempt: Callable[[], Any]) -> dict[str, Any]:
    """The error of a refused call in OpenAI's form, with its HTTP status."""
    try:
        answer = attempt()
    except APIStatusError as caught:
        error = caught
    else:
        raise AssertionError(f"it was served: {answer!r}")
    body = error.body
    assert isinstance(body, dict), body
    assert {"type", "code", "message", "source", "request_id"} <= body.keys(), body
    return {**body, "status": error.status_code, "headers": error.response.headers}
