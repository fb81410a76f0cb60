"""Nothing of the provider or the operator reaches callers (B29), and no impossible usage the books (B30)."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from farebox.gateway.interface import ImmediateResponse, RequestHead, Route
from farebox.gateway.metering.observations import observe
from farebox.gateway.metering.usage import BilledTokens, billed_tokens
from tests.gateway.envoy_gateway import by_body, chat, forwarding, gateway
from tests.gateway.harness import ACCOUNT, TOKEN, UNIT, account, model
from tests.gateway.hostile_target import stacked


@asynccontextmanager
async def answering(status: int, body: bytes, **headers: str) -> AsyncIterator[str]:
    """An upstream that always answers this; gives its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = [f"HTTP/1.1 {status} Status", *lines, f"content-length: {len(body)}", "connection: close"]
        writer.write("\r\n".join([*head, "", ""]).encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


ANSWER = json.dumps(
    {"choices": [{"message": {"content": "hi"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
).encode()
PRIVATE = {
    "openai_organization": "org-acme",
    "openai_project": "proj_1",
    "set_cookie": "__cf_bm=1",
    "location": "https://elsewhere.example",
    "alt_svc": 'h3=":443"',
    "x_ratelimit_limit_tokens": "30000",
    "x_request_id": "req_of_the_provider",
    "request_id": "req_2",
    "anthropic_organization_id": "org-acme",
    "cf_ray": "8a",
    "x_gw_local_reply": "true",
}


async def test_headers_of_a_provider_do_not_pass(tmp_path: Path) -> None:
    passing = {"content_type": "application/json", "cache_control": "no-store", "x_served_by": "vllm-1"}
    async with (
        answering(200, ANSWER, **PRIVATE, **passing) as upstream,
        gateway(tmp_path, forwarding(upstream), response_headers=("X-Served-By",)) as running,
    ):
        reply = await running.call(body=chat())
        line = await running.line()
    seen = {name.lower().replace("-", "_"): value for name, value in reply.headers.items()}
    assert {name: seen.get(name) for name in passing} == passing
    assert set(seen) & set(PRIVATE) == {"x_request_id"}
    assert seen["x_request_id"] == line.request_id
    assert reply.body == ANSWER


async def test_headers_of_the_decision_are_on_every_answer(tmp_path: Path) -> None:
    limits = {"x-ratelimit-remaining-requests": "59", "x-ratelimit-limit-requests": "60"}
    for status in (200, 404, 500):
        async with answering(status, ANSWER, x_ratelimit_limit_requests="9") as upstream:

            @by_body
            async def decide(
                head: RequestHead, body: bytes | None, upstream: str = upstream
            ) -> Route | ImmediateResponse:
                return Route(upstream, False, head.path, labels={"service": "a/b"}, response_headers=limits)

            directory = tmp_path / str(status)
            directory.mkdir()
            async with gateway(directory, decide) as running:
                reply = await running.call(body=chat())
        assert (reply.status, {name: reply.headers.get(name) for name in limits}) == (status, limits)


def error(message: str, **more: Any) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


KEY = "sk-proj-Ab12Cd34Ef56Gh78Ij90"
REFUSED = (502, "provider_refused")
ERRORS = [
    (401, error(f"Incorrect API key provided: {KEY[:11]}****Ij90.", code="invalid_api_key"), REFUSED),
    (402, error("Insufficient Balance", type="unknown_error"), REFUSED),
    (403, error("Your organization org-Ab12Cd34 may not use this model"), REFUSED),
    (400, error("API key not valid. Please pass a valid API key.", status="INVALID_ARGUMENT"), REFUSED),
    (400, error(f"Incorrect API key provided: {KEY}. You can obtain one at console.example"), REFUSED),
    (429, error("You exceeded your current quota", code="insufficient_quota"), REFUSED),
    (400, error("Your credit balance is too low to access the API"), REFUSED),
    (302, b"", (502, "upstream_redirect")),
    (307, b"<a href='https://login.example'>", (502, "upstream_redirect")),
    (429, error("Rate limit reached for m in organization org-Ab12Cd34"), (429, "upstream_rate_limited")),
    (500, b"<html>" + b"x" * 1000, (500, "upstream_failed")),
    (503, error("Overloaded"), (503, "upstream_failed")),
    (
        529,
        b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}',
        (529, "upstream_failed"),
    ),
]


@pytest.mark.parametrize(("status", "body", "expected"), ERRORS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_errors_about_the_operator_are_replaced_and_logged(
    tmp_path: Path, path: str, status: int, body: bytes, expected: tuple[int, str]
) -> None:
    async with (
        answering(status, body, content_type="application/json", retry_after="7") as upstream,
        gateway(tmp_path, forwarding(upstream)) as running,
    ):
        reply = await running.call(path, chat())
        line = await running.line()
    assert (reply.status, reply.error["code"], reply.error["source"]) == (*expected, "upstream")
    assert reply.error["request_id"] == line.request_id
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["retry-after"] == "7"
    assert (reply.json.get("type") == "error") == (path == "/v1/messages")
    assert b"org-" not in reply.body
    assert b"sk-" not in reply.body
    assert billed_tokens(line) is None
    with capture_logs() as logs:
        observe(line, None)
    if body:
        (logged,) = logs
        assert (logged["event"], logged["status"]) == ("upstream.error", expected[0])
        assert "Ij90" not in logged["error"]
        assert "Ab12" not in logged["error"]


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_errors_about_the_request_pass(tmp_path: Path, status: int) -> None:
    body = error("'messages' is too long for gpt-4o-mini-2024-07-18: 9000 tokens", param="messages")
    async with (
        answering(status, body, content_type="application/json") as upstream,
        gateway(tmp_path, forwarding(upstream)) as running,
    ):
        reply = await running.call(body=chat())
        assert billed_tokens(await running.line()) is None
    assert (reply.status, reply.body) == (status, body)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 10**8), (3, 10**10), (10**8, 1), (3, 6)])
async def test_a_hard_account_pays_at_most_what_was_held(tmp_path: Path, inputs: int, outputs: int) -> None:
    """A model server that reports more than the call can use is not believed (B30)."""
    usage = {"prompt_tokens": inputs, "completion_tokens": outputs}
    body = json.dumps({"choices": [{"message": {"content": "one two three"}}], "usage": usage}).encode()
    async with (
        answering(200, body, content_type="application/json") as upstream,
        stacked(tmp_path, upstream) as stack,
    ):
        stack.harness.put(account("Hard"), model(limits={"maxOutputTokens": 8192, "contextTokens": 32768}))
        stack.harness.report_balance(UNIT)
        reply = await stack.envoy.call(
            body={**chat(), "model": "chat", "max_tokens": 5},
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        assert reply.status == 200
        line = await stack.settle(1)
        paid = billed_tokens(line)
        held = stack.harness.leases.amounts[line.request_id]
        assert UNIT - stack.harness.spend.available(ACCOUNT) <= held
    assert paid is not None
    assert (paid.estimated, paid.implausible) == (True, True)
    assert paid.output_tokens <= 5


async def test_an_answer_without_usage_is_marked_as_estimated(tmp_path: Path) -> None:
    body = json.dumps({"choices": [{"message": {"content": "one two three"}}]}).encode()
    async with (
        answering(200, body, content_type="application/json") as upstream,
        gateway(tmp_path, forwarding(upstream, estimate_input="4")) as running,
    ):
        await running.call(body=chat())
        assert billed_tokens(await running.line()) == BilledTokens(4, 0, 3, estimated=True)
