"""Client headers: which reach an upstream, and how clients of Anthropic's API are answered."""

import json

import pytest

from farebox.gateway.interface import Route
from farebox.gateway.request.headers import forwarded_names, harmless_betas, removed_headers
from tests.gateway.harness import Harness, external, service

SENT = {
    "accept": "application/json",
    "user-agent": "OpenAI/Python",
    "anthropic-version": "2023-06-01",
    "traceparent": "00-1-1-01",
    "x-stainless-os": "Linux",
    "http-referer": "https://app.example",
    "openai-organization": "org-1",
    "x-anything-new": "1",
}


def test_only_headers_of_the_allow_list_are_forwarded() -> None:
    gone = {"x-stainless-os", "http-referer", "openai-organization", "x-anything-new"}
    assert set(removed_headers(SENT, {})) == gone
    assert set(removed_headers(SENT, {}, frozenset({"http-referer"}))) == gone - {"http-referer"}


def test_headers_of_envoy_and_of_the_body_are_never_removed() -> None:
    """Envoy finds no route without x-forwarded-proto, and sets the others itself."""
    kept = ("host", "content-length", "transfer-encoding", "x-forwarded-proto", "x-request-id")
    assert removed_headers(dict.fromkeys(kept, ""), {}) == ()


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "cookie", "x-gw-cluster", "x-forwarded-for"])
def test_a_setting_cannot_forward_credentials(name: str) -> None:
    with pytest.raises(ValueError, match=name.lower()):
        forwarded_names(f"x-title, {name}")


def test_names_of_the_setting_are_read_in_any_case() -> None:
    assert forwarded_names(" X-Title,http-referer , ") == {"x-title", "http-referer"}


@pytest.mark.parametrize(
    ("sent", "forwarded"),
    [
        ("claude-code-20250219,interleaved-thinking-2025-05-14", None),
        ("context-1m-2025-08-07", ""),
        ("files-api-2025-04-14, effort-2025-11-24, mcp-client-2025-04-04", "effort-2025-11-24"),
        ("fast-mode-2026-02-01,", ""),
        ("", ""),
    ],
)
async def test_betas_with_a_price_or_stored_objects_are_not_forwarded(
    sent: str, forwarded: str | None
) -> None:
    expected = sent if forwarded is None else forwarded
    assert harmless_betas(sent) == expected
    harness = Harness()
    harness.put(external(), service(modelRef={"name": "remote"}))
    route = await harness.call(path="/v1/messages", headers={"anthropic-beta": sent})
    assert isinstance(route, Route)
    assert route.set_headers.get("anthropic-beta", "") == expected
    assert ("anthropic-beta" in route.remove_headers) is (expected == "")


async def test_the_setting_forwards_all_betas() -> None:
    harness = Harness()
    harness.handler.request_headers = frozenset({"anthropic-beta"})
    route = await harness.forwarded(headers={"anthropic-beta": "context-1m-2025-08-07"})
    assert "anthropic-beta" not in {*route.set_headers, *route.remove_headers}


@pytest.mark.parametrize(
    ("given", "type_"),
    [
        ({"body": {"model": "nope"}}, "not_found_error"),
        ({"body": b"{"}, "invalid_request_error"),
        ({"headers": {"authorization": None}}, "authentication_error"),
        ({"method": "GET"}, "invalid_request_error"),
        ({"path": "/v1/messages/batches"}, "not_found_error"),
    ],
)
async def test_errors_of_the_messages_api_have_its_form(given: dict[str, object], type_: str) -> None:
    answer = await Harness().call(**({"path": "/v1/messages"} | given))
    assert not isinstance(answer, Route)
    document = json.loads(answer.body)
    assert (document["type"], document["error"]["type"]) == ("error", type_)
    assert document["error"]["message"]
    assert document["error"]["request_id"] == document["request_id"] == "req-1"
