"""The handler: what goes to an upstream and how, what is refused in which words, what follows (B13-B18)."""

import asyncio
import json
import logging
from datetime import timedelta
from typing import Any

import pytest

from farebox.domain.admission.addresses import parse_networks
from farebox.domain.admission.estimates import ADDED_TOKENS
from farebox.domain.billing.coverage import CallTokens
from farebox.domain.billing.money import Nano
from farebox.gateway.interface import ImmediateResponse, Route, UsageRedaction
from farebox.gateway.ratelimit.fallback import EvenShareCounters
from farebox.gateway.ratelimit.memory import MemoryCounters
from tests.gateway.harness import (
    ACCOUNT,
    NOW,
    OTHER_TOKEN,
    TOKEN,
    UNIT,
    Harness,
    account,
    api_key,
    external,
    model,
    service,
    serving,
)


@pytest.fixture
async def harness() -> Harness:
    return Harness()


async def test_a_call_goes_to_the_models_shared_backend(harness: Harness) -> None:
    forward = await harness.forwarded()
    assert (forward.upstream, forward.tls, forward.path) == (
        "m-qwen3-8b.test:8000",
        False,
        "/v1/chat/completions",
    )
    assert forward.body is not None
    assert json.loads(forward.body)["model"] == "Qwen/Qwen3-8B"
    assert {
        "service": "team-a/chat",
        "model": "qwen3-8b",
        "api_key": "ci",
        "max_output": "100",
    }.items() <= forward.labels.items()
    assert int(forward.labels["estimate_input"]) > 0


async def test_a_dedicated_service_has_its_own_backend(harness: Harness) -> None:
    harness.put(service(dedicated=True))
    assert (await harness.forwarded()).upstream.startswith("s-team-a-chat-")


async def test_a_stream_of_a_backend_reports_usage_in_every_event(harness: Harness) -> None:
    forward = await harness.forwarded({"model": "chat", "stream": True})
    assert json.loads(forward.body or b"")["stream_options"] == {
        "include_usage": True,
        "continuous_usage_stats": True,
    }
    assert (forward.dialect, forward.choices, forward.usage_by_choice) == ("chat", 1, True)
    assert forward.redaction is UsageRedaction.ALL


@pytest.mark.parametrize("where", ["deployment", "external"])
@pytest.mark.parametrize("when", ["EachEvent", "LastEvent", "Never"])
async def test_stream_usage_of_the_model_decides_when_a_stream_reports_usage(
    harness: Harness, where: str, when: str
) -> None:
    template = {"spec": {"containers": [{"name": "server", "image": "tgi"}]}}
    given = {"deployment": {"template": template}, "external": {"baseURL": "https://api.example.com/v1"}}
    harness.put(model(serving={where: {**given[where], "streamUsage": when}}))
    asked = {"model": "chat", "stream": True, "stream_options": {"include_usage": True}}
    forward = await harness.forwarded(asked)
    each = when == "EachEvent"
    options = json.loads(forward.body or b"")["stream_options"]
    assert options == {"include_usage": True} | ({"continuous_usage_stats": True} if each else {})
    assert forward.usage_by_choice is each
    assert forward.redaction is (UsageRedaction.EACH_EVENT if each else UsageRedaction.NOTHING)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/v1/completions", "/v1/completions"),
        ("/v1/embeddings", "/v1/embeddings"),
        ("/v1/responses", "/v1/responses"),
        ("/v1/messages", "/v1/messages"),
        ("/v1/messages?beta=true", "/v1/messages"),
    ],
)
async def test_every_endpoint_is_forwarded(harness: Harness, path: str, sent: str) -> None:
    assert (await harness.forwarded({"model": "chat"}, path=path)).path == sent


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/chat/completions/", "//v1/chat/completions", "/v1/chat%2fcompletions", "/v1/files",
     "/v1/responses/r1", "/V1/chat/completions", "/metrics", ""],
)  # fmt: skip
async def test_other_paths_are_unknown_urls(harness: Harness, path: str) -> None:
    status, error, _ = await harness.refused(path=path)
    assert (status, error["type"], error["code"]) == (404, "invalid_request_error", "unknown_url")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "CONNECT"])
async def test_other_methods_are_refused(harness: Harness, method: str) -> None:
    status, error, headers = await harness.refused(method=method)
    assert (status, error["code"], headers["allow"]) == (405, "method_not_allowed", "POST")


# Who calls.


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": None},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": TOKEN},
        {"authorization": f"Bearer {OTHER_TOKEN}"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Bearer {TOKEN}, Bearer {TOKEN}"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": f"Bearer {TOKEN}", "x-api-key": OTHER_TOKEN},
        {"authorization": "Bearer ", "x-api-key": OTHER_TOKEN},
        {"authorization": f"Bearer {TOKEN}", "x-api-key": f" {OTHER_TOKEN} "},
    ],
)
async def test_calls_without_a_known_key_are_refused(harness: Harness, headers: dict[str, Any]) -> None:
    status, error, answer = await harness.refused(headers=headers)
    assert (status, error["type"], error["source"]) == (401, "authentication_error", "client")
    assert answer["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"bearer   {TOKEN} "},
        {"authorization": None, "x-api-key": TOKEN},
        {"authorization": f"Bearer {TOKEN}", "x-api-key": TOKEN},
        {"authorization": f"Bearer {TOKEN}", "x-api-key": "dummy"},
        {"authorization": "Bearer sk-of-another-tool", "x-api-key": TOKEN},
        {"authorization": "", "x-api-key": TOKEN},
    ],
)
async def test_the_key_may_come_in_either_header(harness: Harness, headers: dict[str, Any]) -> None:
    assert isinstance(await harness.call(headers=headers), Route)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        (api_key(disabled=True), 401, "api_key_disabled"),
        (api_key(expiresAt="2026-03-01T12:00:30Z"), 401, "api_key_expired"),
        (api_key(allowedCIDRs=["192.0.2.0/24"]), 403, "address_not_allowed"),
        (api_key(services={"names": ["other"]}), 403, "service_not_allowed"),
        (service(access={"allowedCIDRs": ["192.0.2.0/24"]}), 403, "address_not_allowed"),
        (api_key(allowedCIDRs=["999.0.0.0/8"]), 403, "address_not_allowed"),
    ],
)
async def test_a_change_acts_on_the_next_call(
    harness: Harness, change: dict[str, Any], status: int, code: str
) -> None:
    assert isinstance(await harness.call(), Route)
    harness.put(change)
    refused, error, _ = await harness.refused()
    assert (refused, error["code"]) == (status, code)
    harness.put(api_key(), service())
    assert isinstance(await harness.call(), Route)


async def test_a_deleted_key_is_unknown(harness: Harness) -> None:
    harness.delete_key("team-a", "ci")
    assert (await harness.refused())[0] == 401


async def test_a_recreated_key_replaces_the_old_one(harness: Harness) -> None:
    harness.put(api_key(token=OTHER_TOKEN))
    assert (await harness.refused())[0] == 401
    assert isinstance(await harness.call(headers={"authorization": f"Bearer {OTHER_TOKEN}"}), Route)


async def test_a_hash_in_two_objects_is_an_unknown_key(harness: Harness) -> None:
    harness.put(api_key("copied", "team-b"), api_key())
    assert (await harness.refused())[0] == 401
    harness.delete_key("team-b", "copied")
    assert isinstance(await harness.call(), Route)


async def test_a_key_that_cannot_be_read_is_unknown(harness: Harness) -> None:
    harness.put(api_key(services="everything"))
    assert (await harness.refused())[0] == 401


async def test_x_forwarded_for_is_trusted_only_from_trusted_proxies() -> None:
    spoofed = {"headers": {"x-forwarded-for": "192.0.2.9"}, "peer": "10.0.0.7"}
    for trusted, admitted in (((), False), (parse_networks(["10.0.0.0/8"]) or (), True)):
        harness = Harness(trusted=trusted)
        harness.put(api_key(allowedCIDRs=["192.0.2.0/24"]))
        assert isinstance(await harness.call(**spoofed), Route) is admitted
        repeated = await harness.call(**spoofed, repeated=frozenset({"x-forwarded-for"}))
        assert isinstance(repeated, ImmediateResponse)


# Endpoints, models and bodies of requests.


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b'{"model":"chat","model":"other"}', "duplicate_key"),
        (b'{"model":"chat","stream":"yes"}', "invalid_type"),
        (b"[]", "invalid_type"),
        (b"{}", "missing_model"),
        (b'{"model":"chat","max_tokens":9000}', "max_tokens_above_ceiling"),
    ],
)
async def test_invalid_bodies_are_client_errors(harness: Harness, body: bytes, code: str) -> None:
    status, error, _ = await harness.refused(body)
    assert (status, error["type"], error["code"], error["source"]) == (
        400,
        "invalid_request_error",
        code,
        "client",
    )


async def test_a_call_without_a_body_is_refused(harness: Harness) -> None:
    answer = await harness.decide(harness.head(), None)
    assert isinstance(answer, ImmediateResponse)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "missing_body")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"path": "/v1/files"}, "unknown_url"),
        ({"method": "GET"}, "method_not_allowed"),
        ({"headers": {"content-type": "text/plain"}}, "unsupported_type"),
        ({"headers": {"authorization": None}}, "invalid_api_key"),
        ({"headers": {"authorization": f"Bearer {OTHER_TOKEN}"}}, "invalid_api_key"),
    ],
)
async def test_errors_in_the_head_are_answered_before_the_body_comes(
    harness: Harness, given: dict[str, Any], code: str
) -> None:
    answer = harness.handler.handle(harness.head(**given))
    assert isinstance(answer, ImmediateResponse)
    assert json.loads(answer.body)["error"]["code"] == code


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ({"disabled": True}, "api_key_disabled"),
        ({"expiresAt": "2026-03-01T12:00:40Z"}, "api_key_expired"),
        ({"allowedCIDRs": ["192.0.2.0/24"]}, "address_not_allowed"),
        ({"services": {"names": ["other"]}}, "service_not_allowed"),
    ],
)
async def test_b14_a_key_that_changes_while_the_body_comes_is_checked_again(
    harness: Harness, key: dict[str, Any], code: str
) -> None:
    """B14: within a second of the change, however long a body takes."""
    decide = harness.handler.handle(harness.head())
    assert not isinstance(decide, ImmediateResponse)
    harness.put(api_key(**key))
    harness.clock.pass_(20)
    answer = await decide(b'{"model": "chat"}')
    assert isinstance(answer, ImmediateResponse)
    assert json.loads(answer.body)["error"]["code"] == code
    assert harness.spend.available(ACCOUNT) == 5 * UNIT


async def test_a_key_that_is_deleted_while_the_body_comes_is_unknown(harness: Harness) -> None:
    decide = harness.handler.handle(harness.head())
    assert not isinstance(decide, ImmediateResponse)
    harness.delete_key("team-a", "ci")
    answer = await decide(b'{"model": "chat"}')
    assert isinstance(answer, ImmediateResponse)
    assert answer.status == 401


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"headers": {"content-encoding": "gzip"}}, "unsupported_encoding"),
        ({"headers": {"content-type": "text/plain"}}, "unsupported_type"),
        ({"headers": {"content-type": "application/json; charset=utf-16"}}, "unsupported_type"),
        ({"headers": {"content-type": "application/json, text/plain"}}, "unsupported_type"),
        ({"repeated": frozenset({"authorization"})}, "ambiguous_header"),
        ({"repeated": frozenset({"content-type"})}, "ambiguous_header"),
        ({"repeated": frozenset({"content-length"})}, "ambiguous_header"),
    ],
)
async def test_ambiguous_headers_are_refused(harness: Harness, given: dict[str, Any], code: str) -> None:
    status, error, _ = await harness.refused(**given)
    assert (status, error["code"]) == (400, code)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON;charset=UTF-8",
        "application/json;",
        "application/json; charset=utf8",
        None,
    ],
)
async def test_the_json_content_type_is_accepted_in_every_spelling(
    harness: Harness, content_type: str | None
) -> None:
    assert isinstance(await harness.call(headers={"content-type": content_type}), Route)


async def test_private_headers_and_headers_of_the_clients_identity_are_removed(harness: Harness) -> None:
    headers = {
        "x-gw-upstream": "evil:80",
        "x-gw-cluster": "evil",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-forwarded-for": "1.2.3.4",
        "x-forwarded-proto": "http",
        "x-farebox-service": "x",
        "cookie": "c",
        "x-api-key": TOKEN,
        "user-agent": "openai",
        "accept-encoding": "gzip",
    }
    forward = await harness.forwarded(headers=headers)
    gone = set(headers) - {"user-agent", "accept-encoding", "x-forwarded-proto"} | {"authorization"}
    assert set(forward.remove_headers) == gone
    assert forward.set_headers == {"accept-encoding": "identity"}
    assert not set(forward.set_headers) & set(forward.remove_headers)


# Services.


@pytest.mark.parametrize("name", ["other", "qwen3-8b", "Chat", "team-a/chat", "../chat", "chat "])
async def test_an_unknown_model_is_not_found(harness: Harness, name: str) -> None:
    status, error, _ = await harness.refused({"model": name})
    assert (status, error["type"], error["code"]) == (404, "model_not_found", "model_not_found")


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ({}, "CREATING"),
        ({"phase": "Creating", "conditions": serving("False", "Creating")}, "CREATING"),
        (
            {"phase": "Stopped", "stopReasons": ["Overdue"], "conditions": serving("False", "Overdue")},
            "OVERDUE",
        ),
        ({"phase": "Stopped", "stopReasons": ["ModelRetired", "Overdue"]}, "MODEL_RETIRED"),
        ({"phase": "Stopped", "conditions": serving("False", "Resuming")}, "RESUMING"),
        ({"phase": "Stopped", "conditions": serving("True")}, "SERVING"),
        ({"phase": "Running", "conditions": serving("False", "NoReplicaReady")}, "NO_REPLICA_READY"),
        ({"phase": "Running", "conditions": serving("Unknown", "FactsUnknown")}, "FACTS_UNKNOWN"),
        ({"phase": "NotEnabled", "stopReasons": ["PostpaidDisabled"]}, "POSTPAID_DISABLED"),
    ],
)
async def test_a_service_that_does_not_serve_reports_its_reason(
    harness: Harness, status: dict[str, Any], word: str
) -> None:
    harness.put(service(status=status))
    refused, error, _ = await harness.refused()
    assert (refused, error["type"], error["code"]) == (402, "permission_error", "endpoint_inactive")
    assert error["message"] == f"endpoint is inactive: {word}"
    assert error["source"] == "gateway"


async def test_the_spec_acts_before_the_status(harness: Harness) -> None:
    harness.put(service(postpaid=False))
    assert (await harness.refused())[1]["message"] == "endpoint is inactive: POSTPAID_DISABLED"


async def test_calls_before_the_cluster_is_read_get_503(harness: Harness) -> None:
    harness.handler.ready.clear()
    assert (await harness.refused())[0] == 503


# Money.


async def test_the_first_call_after_the_balance_is_spent_is_refused(harness: Harness) -> None:
    harness.report_balance(1)
    first = await harness.forwarded()
    status, error, _ = await harness.refused()
    assert (status, error["message"]) == (402, "endpoint is inactive: OVERDUE")
    await harness.end(first, (20, 0, 100), "req-1")
    assert (await harness.refused())[0] == 402
    harness.report_balance(UNIT, 2)
    assert isinstance(await harness.call(), Route)


async def test_the_cost_of_a_call_counts_until_the_meter_has_it(harness: Harness) -> None:
    forward = await harness.forwarded()
    await harness.end(forward, (1000, 400, 100), "req-1")
    cost = 600 * 500 + 400 * 50 + 100 * 1500
    assert harness.spend.available(ACCOUNT) == 5 * UNIT - cost
    harness.settlement.acknowledged(["req-1"])
    harness.clock.pass_(1)
    harness.report_balance(5 * UNIT - cost, 2)
    assert harness.spend.available(ACCOUNT) == 5 * UNIT - cost


async def test_a_call_that_failed_costs_nothing(harness: Harness) -> None:
    forward = await harness.forwarded()
    await harness.end(forward, None, "req-1")
    assert harness.spend.available(ACCOUNT) == 5 * UNIT


async def test_64_clients_race_for_the_last_money_of_a_hard_account(harness: Harness) -> None:
    harness.put(account("Hard"))
    await harness.forwarded()
    hold = harness.leases.amounts["req-1"]
    harness.settlement.settle("req-1", NOW, {}, None)
    harness.report_balance(10 * hold + 1, 2)
    answers = await asyncio.gather(*(harness.call() for _ in range(64)))
    assert sum(isinstance(answer, Route) for answer in answers) == 10
    codes = {
        json.loads(answer.body)["error"]["code"]
        for answer in answers
        if isinstance(answer, ImmediateResponse)
    }
    assert codes == {"insufficient_balance"}


async def test_a_hard_account_sends_its_output_bound_to_the_upstream(harness: Harness) -> None:
    harness.put(account("Hard"))
    forward = await harness.forwarded({"model": "chat", "n": 2})
    assert json.loads(forward.body or b"")["max_tokens"] == 8192
    assert harness.leases.amounts[f"req-{harness.requests}"] == (25 + ADDED_TOKENS) * 500 + 2 * 8192 * 1500
    kept = await harness.forwarded({"model": "chat", "max_tokens": 5})
    assert json.loads(kept.body or b"")["max_tokens"] == 5


async def test_a_bound_equal_to_the_context_is_not_sent(harness: Harness) -> None:
    """A model server refuses an output limit as large as its context: no prompt fits beside it."""
    harness.put(account("Hard"), model(limits={"contextTokens": 4096}))
    forward = await harness.forwarded({"model": "chat"})
    assert set(json.loads(forward.body or b"")) == {"model", "cache_salt"}
    assert harness.leases.amounts[f"req-{harness.requests}"] > 4096 * 1500


async def test_the_hold_covers_every_input_of_a_list(harness: Harness) -> None:
    harness.put(account("Hard"), model(limits={"contextTokens": 10, "maxOutputTokens": 5}))
    texts = ["word " * 9] * 20
    await harness.forwarded({"model": "chat", "prompt": texts}, path="/v1/completions")
    assert harness.leases.amounts[f"req-{harness.requests}"] == 20 * (10 * 500 + 5 * 1500)
    await harness.forwarded({"model": "chat", "input": texts}, path="/v1/embeddings")
    assert harness.leases.amounts[f"req-{harness.requests}"] == 20 * 10 * 500


async def test_an_unreachable_meter_stops_paid_calls_after_the_maximum_age(harness: Harness) -> None:
    harness.clock.pass_(299)
    assert isinstance(await harness.call(), Route)
    harness.clock.pass_(1)
    status, error, _ = await harness.refused()
    assert (status, error["type"], error["code"]) == (503, "unavailable_error", "balance_unknown")
    harness.report_balance(5 * UNIT)
    assert isinstance(await harness.call(), Route)


async def test_the_balance_of_an_unreported_account_is_unknown(harness: Harness) -> None:
    harness.spend.forget()
    harness.spend.update([], [], True, harness.clock.monotonic())
    assert (await harness.refused())[1]["code"] == "balance_unknown"


RESERVATION = {
    "reservation": {"inputTPM": 100, "outputTPM": 200, "days": 30},
    "status": {
        "phase": "Running",
        "conditions": serving(),
        "reservation": {
            "state": "Active",
            "periodStart": (NOW - timedelta(days=1)).isoformat(),
            "periodEnd": (NOW + timedelta(days=1)).isoformat(),
        },
    },
}


async def test_a_reservation_serves_its_minute_while_overdue(harness: Harness) -> None:
    harness.put(service(**RESERVATION))
    harness.report_balance(-5, 2)
    assert isinstance(await harness.call(), Route)
    assert isinstance(await harness.call(), Route)
    status, error, headers = await harness.refused()
    assert (status, error["message"]) == (429, "rate limit exceeded on dimension: reservation_output")
    assert headers["retry-after"] == "30"
    harness.clock.pass_(30)
    assert isinstance(await harness.call(), Route)
    harness.report_balance(UNIT, 3)
    for _ in range(5):
        assert isinstance(await harness.call(), Route), "the excess is paid"


# Limits.


async def test_requests_a_minute(harness: Harness) -> None:
    harness.put(service(limits={"rpm": 2}))
    assert isinstance(await harness.call(), Route)
    harness.clock.pass_(10)
    assert isinstance(await harness.call(), Route)
    status, error, headers = await harness.refused()
    assert (status, error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert error["message"] == "rate limit exceeded on dimension: rpm"
    assert headers["retry-after"] == "51"
    assert headers["x-ratelimit-limit-requests"] == "2"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "1m1s"
    assert "x-ratelimit-limit-tokens" not in headers
    harness.clock.pass_(51)
    assert isinstance(await harness.call(), Route)


async def test_b31_a_forwarded_call_says_what_its_limits_have_left(harness: Harness) -> None:
    assert (await harness.forwarded()).response_headers == {}, "no limits, no headers"
    harness.put(service(limits={"rpm": 3, "tpm": 10_000}), api_key(quota={"tokens": 500, "period": "Day"}))
    first, second = await harness.forwarded(), await harness.forwarded()
    needed = int(first.labels["estimate_input"]) + 100
    assert first.response_headers == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "1m1s",
        # The quota has less left than the limit of the service.
        "x-ratelimit-limit-tokens": "500",
        "x-ratelimit-remaining-tokens": str(500 - needed),
        "x-ratelimit-reset-tokens": "11h59m30s",
    }
    assert second.response_headers["x-ratelimit-remaining-requests"] == "1"
    assert second.response_headers["x-ratelimit-remaining-tokens"] == str(500 - 2 * needed)


async def test_b31_an_error_after_the_limits_were_read_says_what_is_left(harness: Harness) -> None:
    credentials = {"credentialsSecretRef": {"name": "provider"}}
    harness.put(external(**credentials), service(modelRef={"name": "remote"}, limits={"rpm": 3}))
    status, error, headers = await harness.refused()
    assert (status, error["code"]) == (503, "credentials_unavailable")
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert "retry-after" not in headers
    assert "x-should-retry" not in headers


async def test_b31_each_replica_reports_its_own_share_of_a_limit() -> None:
    harness = Harness(counters=EvenShareCounters(2))
    harness.put(service(limits={"rpm": 10}))
    headers = (await harness.forwarded()).response_headers
    assert headers["x-ratelimit-limit-requests"] == "5"
    assert headers["x-ratelimit-remaining-requests"] == "4"


async def test_tokens_a_minute_are_corrected_by_the_actual_use(harness: Harness) -> None:
    harness.put(service(limits={"rpm": 100, "tpm": 200}))
    first = await harness.forwarded()
    status, error, headers = await harness.refused()
    assert (status, error["message"]) == (429, "rate limit exceeded on dimension: tpm")
    assert headers["x-ratelimit-limit-tokens"] == "200"
    assert headers["x-ratelimit-remaining-requests"] == "99"
    await harness.end(first, (5, 0, 5), "req-1")
    assert isinstance(await harness.call(), Route)


async def test_a_refused_call_holds_and_counts_nothing(harness: Harness) -> None:
    harness.put(account("Hard"), service(limits={"rpm": 1}))
    await harness.forwarded()
    left = harness.spend.available(ACCOUNT)
    for _ in range(5):
        assert (await harness.refused())[0] == 429
        assert not harness.leases.holds(f"req-{harness.requests}")
    assert harness.spend.available(ACCOUNT) == left
    assert harness.leases.holds("req-1")


@pytest.mark.parametrize("period", ["Day", "Month", "Lifetime"])
async def test_a_keys_quota(harness: Harness, period: str) -> None:
    harness.put(api_key(quota={"tokens": 150, "period": period}))
    await harness.forwarded()
    status, error, headers = await harness.refused()
    assert (status, error["message"]) == (
        429,
        f"rate limit exceeded on dimension: key_quota_{period.lower()}",
    )
    assert ("retry-after" in headers) is (period != "Lifetime")
    assert headers.get("x-should-retry") == (None if period != "Lifetime" else "false")


async def test_a_keys_quota_spans_services_and_leaves_other_keys_alone(harness: Harness) -> None:
    harness.put(api_key(quota={"tokens": 150, "period": "Day"}), service("second"))
    harness.put(api_key("other", token=OTHER_TOKEN))
    await harness.forwarded()
    assert (await harness.refused({"model": "second", "max_tokens": 100}))[0] == 429
    assert isinstance(await harness.call(headers={"authorization": f"Bearer {OTHER_TOKEN}"}), Route)


async def test_services_on_one_model_have_separate_limits(harness: Harness) -> None:
    harness.put(model(limits={"rpm": 1}), service("second"))
    await harness.forwarded()
    assert (await harness.refused())[0] == 429
    assert isinstance(await harness.call({"model": "second"}), Route)


async def test_a_call_of_an_earlier_process_is_settled_by_its_labels() -> None:
    counters = MemoryCounters()
    before = Harness(counters=counters)
    before.put(service(limits={"tpm": 200}))
    forward = await before.forwarded()
    after = Harness(counters=counters, clock=before.clock)
    after.put(service(limits={"tpm": 200}))
    assert (await after.refused())[0] == 429
    await after.end(forward, (1, 0, 1), "req-1")
    assert isinstance(await after.call(), Route)


async def test_calls_that_ended_before_this_process_started_are_not_corrected_again() -> None:
    counters = MemoryCounters()
    before = Harness(counters=counters)
    before.put(service(limits={"tpm": 200}))
    forward = await before.forwarded()
    await before.end(forward, (50, 0, 50), "req-1")
    ended_at = before.clock()
    before.clock.pass_(1)
    after = Harness(counters=counters, clock=before.clock)
    after.put(service(limits={"tpm": 200}))
    after.settlement.settle("req-1", ended_at, forward.labels, CallTokens(input=50, output=50))
    await after.settlement.correct()
    status, _, headers = await after.refused({"model": "chat", "max_tokens": 100, "user": "y"})
    assert (status, headers["x-ratelimit-remaining-tokens"]) == (429, "100")


# Providers.


async def test_a_provider_gets_its_token_and_not_the_callers(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.tokens.known["openai"] = "sk-secret"
    harness.put(
        external(credentialsSecretRef={"name": "openai", "key": "token"}),
        service(modelRef={"name": "remote"}),
    )
    with caplog.at_level(logging.DEBUG):
        forward = await harness.forwarded({"model": "chat", "stream": True})
    assert (forward.upstream, forward.tls, forward.path) == (
        "api.example.com:443",
        True,
        "/v1/chat/completions",
    )
    assert forward.set_headers["authorization"] == "Bearer sk-secret"
    assert "authorization" not in forward.remove_headers
    assert json.loads(forward.body or b"")["stream_options"] == {"include_usage": True}
    assert not forward.usage_by_choice
    assert "sk-secret" not in json.dumps(dict(forward.labels)) + caplog.text
    assert TOKEN not in repr(forward)


async def test_anthropics_endpoint_gets_the_token_in_both_headers(harness: Harness) -> None:
    harness.tokens.known["a"] = "sk-ant"
    harness.put(external(credentialsSecretRef={"name": "a"}), service(modelRef={"name": "remote"}))
    forward = await harness.forwarded({"model": "chat"}, path="/v1/messages")
    assert forward.set_headers["x-api-key"] == "sk-ant"
    assert forward.path == "/v1/messages"


@pytest.mark.parametrize(
    ("base_url", "upstream", "tls", "path"),
    [
        ("http://10.0.0.1:8080/api/v1/", "10.0.0.1:8080", False, "/api/v1/embeddings"),
        ("https://api.example.com", "api.example.com:443", True, "/embeddings"),
        ("http://[2001:db8::1]/v1", "[2001:db8::1]:80", False, "/v1/embeddings"),
    ],
)
async def test_a_providers_base_url(
    harness: Harness, base_url: str, upstream: str, tls: bool, path: str
) -> None:
    harness.put(external(base_url=base_url), service(modelRef={"name": "remote"}))
    forward = await harness.forwarded({"model": "chat", "input": "x"}, path="/v1/embeddings")
    assert (forward.upstream, forward.tls, forward.path) == (upstream, tls, path)
    assert "authorization" in forward.remove_headers


async def test_without_credentials_a_provider_is_not_called_and_everything_is_released(
    harness: Harness,
) -> None:
    harness.put(
        external(credentialsSecretRef={"name": "gone"}),
        service(modelRef={"name": "remote"}, limits={"tpm": 200}),
        account("Hard"),
    )
    for _ in range(3):
        status, error, _ = await harness.refused()
        assert (status, error["code"]) == (503, "credentials_unavailable")
        assert "gone" not in error["message"]
        await harness.settlement.correct()
    assert harness.spend.available(ACCOUNT) == 5 * UNIT


# Models.


async def models(harness: Harness, path: str = "/v1/models", **given: Any) -> tuple[int, Any]:
    answer = harness.handler.handle(harness.head(path, "GET", **given))
    assert isinstance(answer, ImmediateResponse)
    return answer.status, json.loads(answer.body)


async def test_the_list_of_models_has_the_services_that_the_key_may_call(harness: Harness) -> None:
    harness.put(
        service("b"),
        service("a", postpaid=False, status={"phase": "NotEnabled", "stopReasons": ["PostpaidDisabled"]}),
        service("elsewhere", "team-b"),
        service("closed", access={"allowedCIDRs": ["192.0.2.0/24"]}),
    )
    status, answer = await models(harness)
    assert status == 200
    assert [(each["id"], each["active"]) for each in answer["data"]] == [
        ("a", False),
        ("b", True),
        ("chat", True),
    ]
    harness.put(api_key(services={"names": ["b", "no-more"]}))
    assert [each["id"] for each in (await models(harness))[1]["data"]] == ["b"]
    assert (await models(harness, "/v1/models/b"))[1]["id"] == "b"
    assert (await models(harness, "/v1/models/chat"))[0] == 403


async def test_a_model_that_may_not_be_called_is_refused_as_a_call_of_it_is(harness: Harness) -> None:
    harness.put(service("closed", access={"allowedCIDRs": ["192.0.2.0/24"]}), service("elsewhere", "team-b"))
    for name in ("closed", "elsewhere", "nothing"):
        status, error, _ = await harness.refused({"model": name})
        shown, answer = await models(harness, f"/v1/models/{name}")
        assert (shown, answer["error"]["code"]) == (status, error["code"])


async def test_a_model_was_created_when_its_service_was(harness: Harness) -> None:
    made = service("chat")
    made["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z"
    harness.put(made)
    assert (await models(harness, "/v1/models/chat"))[1]["created"] == 1769904000


async def test_models_ask_for_a_key(harness: Harness) -> None:
    assert (await models(harness, headers={"authorization": None}))[0] == 401
    answer = harness.handler.handle(harness.head("/v1/models", "POST"))
    assert isinstance(answer, ImmediateResponse)
    assert answer.status == 405


async def test_running_calls_reduce_the_available_balance(harness: Harness) -> None:
    forward = await harness.forwarded()
    committed = int(forward.labels["estimate_input"]) * 500
    assert harness.spend.available(ACCOUNT) == Nano(5 * UNIT - committed)


async def test_b28_the_models_setting_for_images_reaches_the_end_of_a_call(harness: Harness) -> None:
    assert "image_tokens" not in (await harness.forwarded()).labels
    harness.put(model(requests={"imageTokens": 700}))
    assert (await harness.forwarded()).labels["image_tokens"] == "700"
