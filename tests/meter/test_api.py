"""The meter's HTTP API over real sockets: answers, permissions, and errors that say what to do (B23)."""

import asyncio
import gzip
import json
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from yarl import URL

from farebox.domain.billing.money import Nano, format_amount
from farebox.meterapi.schema import to_json, write_records
from tests.ledger.support import CALL_CHARGE, FACTS, TIERS, price, topup
from tests.meter.support import GATEWAY, OPERATOR, READER, Api, Running, cloud_event

RECORDS = json.loads(write_records(FACTS))
TOPUP = json.loads(to_json(topup()))
PATHS = [
    ("POST", "/v1/events", GATEWAY),
    ("POST", "/v1/records", OPERATOR),
    ("POST", "/v1/topups", OPERATOR),
    ("POST", "/v1/refusals", GATEWAY),
    ("GET", "/v1/changes", OPERATOR),
    ("GET", "/v1/events/pending", OPERATOR),
    ("GET", "/v1/accounts/billing/acme", READER),
]


async def test_usage_is_charged_and_the_account_shows_it(api: Api) -> None:
    assert (await api.call("POST", "/v1/records", body=RECORDS)).body == {"refused": []}
    posted = await api.call("POST", "/v1/topups", body=TOPUP)
    assert posted.body["balanceAfter"] == "10.00"
    assert posted.body["account"]["state"] == "Active"
    answer = await api.post_events([cloud_event("1"), cloud_event("1"), cloud_event("2")])
    assert answer.body == {"accepted": 2, "duplicate": 1, "pending": 0, "rejected": []}
    account = await api.call("GET", "/v1/accounts/billing/acme", READER)
    assert account.body == {
        "account": "billing/acme",
        "currency": "USD",
        "balance": "9.99984",
        "creditLimit": "0.00",
        "available": "9.99984",
        "state": "Active",
        "sequence": 3,
    }
    assert 10_000_000_000 - 2 * CALL_CHARGE == 9_999_840_000


async def test_a_single_structured_event_is_accepted(api: Api) -> None:
    await api.call("POST", "/v1/records", body=RECORDS)
    answer = await api.call(
        "POST", "/v1/events", GATEWAY, cloud_event(), "application/cloudevents+json; charset=utf-8"
    )
    assert answer.body["accepted"] == 1


async def test_an_event_is_charged_once_across_content_modes(api: Api, meter: Running) -> None:
    await api.call("POST", "/v1/records", body=RECORDS)
    event = cloud_event("é 1")
    attributes = {f"Ce-{name}": quote(value) for name, value in event.items() if name != "data"}
    headers = {"Authorization": f"Bearer {GATEWAY}"} | attributes
    for answer in ((1, 0), (0, 1)):
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{meter.url}/v1/events", json=event["data"], headers=headers) as response,
        ):
            body = await response.json()
        assert (response.status, body["accepted"], body["duplicate"]) == (200, *answer)
    assert (await api.post_events([event])).body["duplicate"] == 1


async def test_a_client_disconnect_is_counted_as_400(api: Api, meter: Running) -> None:
    address = URL(meter.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    head = f"POST /v1/events HTTP/1.1\r\nHost: meter\r\nAuthorization: Bearer {GATEWAY}\r\n"
    kind = "Content-Type: application/cloudevents-batch+json\r\n"
    writer.write(f"{head}{kind}Content-Length: 100\r\nExpect: 100-continue\r\n\r\n".encode())
    assert b"100 Continue" in await reader.readline()
    writer.write(b"[")
    writer.transport.abort()
    counted = 'farebox_meter_request_seconds_count{method="POST",route="/v1/events",status='
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        found: list[str] = []
        while not found:
            async with session.get(f"{meter.url}/metrics") as response:
                found = [line for line in (await response.text()).splitlines() if line.startswith(counted)]
    assert found == [f'{counted}"400"}} 1.0']


async def test_invalid_events_are_rejected_one_by_one_with_their_index(api: Api) -> None:
    await api.call("POST", "/v1/records", body=RECORDS)
    answer = await api.post_events(
        [
            cloud_event("future", time="2999-01-01T00:00:00Z"),
            cloud_event("good"),
            cloud_event("no-subject", subject="chat"),
            cloud_event("cached", data={"inputTokens": 1, "cachedInputTokens": 2, "outputTokens": 0}),
        ]
    )
    assert answer.status == 200
    assert answer.body["accepted"] == 1
    assert [(item["index"], item["id"], item["reason"]) for item in answer.body["rejected"]] == [
        (0, "future", "TimeInFuture"),
        (2, "no-subject", "InvalidEvent"),
        (3, "cached", "InvalidUsage"),
    ]
    assert all(item["message"] for item in answer.body["rejected"])


async def test_pending_usage_is_counted_and_listed(api: Api) -> None:
    answer = await api.post_events([cloud_event(str(number)) for number in range(3)])
    assert (answer.body["accepted"], answer.body["pending"]) == (3, 3)
    first = (await api.call("GET", "/v1/events/pending?limit=2")).body
    rest = (await api.call("GET", f"/v1/events/pending?after={first['next']}&limit=2")).body
    listed = [*first["events"], *rest["events"]]
    assert [item["id"] for item in listed] == ["0", "1", "2"]
    assert {(item["reason"], item["waitingFor"]) for item in listed} == {("BindingNotFound", "team-a/chat")}
    assert rest["next"] is None
    assert "farebox_ledger_pending_events 3.0" in (await api.call("GET", "/metrics")).body


async def test_metrics_count_events_by_result(api: Api) -> None:
    await api.post_events([cloud_event("waits"), cloud_event("bad", id="")])
    await api.call("POST", "/v1/records", body=RECORDS)
    await api.post_events([cloud_event("waits"), cloud_event("fine")])
    metrics = (await api.call("GET", "/metrics")).body
    for result in ("charged", "pending", "duplicate", "rejected"):
        assert f'farebox_meter_events_total{{result="{result}"}} 1.0' in metrics
    assert "farebox_ledger_head 3.0" in metrics
    assert 'farebox_meter_request_seconds_count{method="POST",route="/v1/events",status="200"} 2.0' in metrics
    assert "farebox_ledger_commit_seconds_count" in metrics


def test_an_older_meter_takes_prices_without_cache_writes() -> None:
    """It refuses fields that it does not know, so an unset price is absent and not null."""
    plain = write_records([price()])
    dear = write_records([price(tiers=[replace(tier, cache_write=Nano(1_250)) for tier in TIERS])])
    assert b"cacheWrite" not in plain
    assert json.loads(dear)["prices"][0]["tiers"][0]["cacheWrite"] == "1.250"


async def test_b41_cache_writes_are_charged_at_their_price(api: Api) -> None:
    tiers = [tier | {"cacheWrite": "1.250"} for tier in RECORDS["prices"][0]["tiers"]]
    records = RECORDS | {"prices": [RECORDS["prices"][0] | {"tiers": tiers}]}
    assert (await api.call("POST", "/v1/records", body=records)).body == {"refused": []}
    data = {"inputTokens": 100, "cacheWriteInputTokens": 30, "outputTokens": 20}
    await api.post_events([cloud_event(data=data)])
    answer = await api.call("GET", "/v1/accounts/billing/acme", READER)
    assert answer.body["balance"] == format_amount(-(70 * 500 + 30 * 1_250 + 20 * 1_500))
    assert (await api.call("POST", "/v1/records", body=records)).body == {"refused": []}


async def test_b26_metrics_say_how_much_of_a_model_is_estimated(api: Api) -> None:
    await api.call("POST", "/v1/records", body=RECORDS)
    known = {"inputTokens": 100, "outputTokens": 20, "model": "qwen3-8b"}
    cut = known | {"estimated": True, "outputTokens": 7}
    await api.post_events([cloud_event("1", data=known), cloud_event("2", data=cut)])
    await api.post_events([cloud_event("2", data=cut), cloud_event("3", data=cut)])
    await api.post_events([cloud_event("4", data=known | {"model": "unknown-model"})])
    metrics = (await api.call("GET", "/metrics")).body
    for labels, calls, tokens in (
        ('model="qwen3-8b",estimated="false"', 1, 120),
        ('model="qwen3-8b",estimated="true"', 2, 214),
        ('model="",estimated="false"', 1, 120),
    ):
        estimated, model = sorted(labels.split(","))
        assert f"farebox_meter_calls_total{{{estimated},{model}}} {calls}.0" in metrics
        assert f"farebox_meter_tokens_total{{{estimated},{model}}} {tokens}.0" in metrics
    assert "unknown-model" not in metrics


async def test_refused_topups_are_409_with_a_reason(api: Api) -> None:
    answer = await api.call("POST", "/v1/topups", body=TOPUP)
    assert (answer.status, answer.reason) == (409, "AccountNotFound")
    await api.call("POST", "/v1/records", body=RECORDS)
    assert (await api.call("POST", "/v1/topups", body=TOPUP)).body["duplicate"] is False
    assert (await api.call("POST", "/v1/topups", body=TOPUP)).body["duplicate"] is True
    answer = await api.call("POST", "/v1/topups", body=TOPUP | {"amount": "11"})
    assert (answer.status, answer.reason) == (409, "ReferenceConflict")


async def test_an_invalid_record_does_not_block_the_others(api: Api) -> None:
    broken = {
        "accounts": [{"account": "x", "currency": "USD", "creditLimit": "0"}, *RECORDS["accounts"]],
        "prices": [RECORDS["prices"][0] | {"tiers": []}, *RECORDS["prices"]],
        "bindings": [RECORDS["bindings"][0] | {"effectiveAt": "soon"}, *RECORDS["bindings"]],
    }
    refused = (await api.call("POST", "/v1/records", body=broken)).body["refused"]
    assert {(item["kind"], item["index"], item["reason"]) for item in refused} == {
        ("accounts", 0, "InvalidRecord"),
        ("bindings", 0, "InvalidRecord"),
        ("prices", 0, "InvalidPrice"),
    }
    assert (await api.post_events([cloud_event()])).body["pending"] == 0


@pytest.mark.parametrize(("method", "path", "token"), PATHS)
async def test_a_caller_needs_the_right_of_the_route(api: Api, method: str, path: str, token: str) -> None:
    anonymous = await api.call(method, path, None)
    assert (anonymous.status, anonymous.reason) == (401, "Unauthenticated")
    assert anonymous.headers["WWW-Authenticate"] == 'Bearer realm="farebox-meter"'
    assert (await api.call(method, path, "guessed")).status == 401
    for other in {GATEWAY, OPERATOR, READER} - {token}:
        answer = await api.call(method, path, other)
        assert (answer.status, answer.reason) == (403, "Forbidden")
    assert (await api.call(method, path, token)).status not in (401, 403)


async def test_a_missing_token_is_reported_before_other_errors(api: Api) -> None:
    for path in ("/v1/usage", "/v1/usage?account=x", "/v1/accounts/a/b/statement?format=x"):
        assert (await api.call("GET", path, None)).status == 401


async def test_an_unknown_method_or_path_names_the_alternative(api: Api) -> None:
    answer = await api.call("GET", "/v1/events")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert answer.body["error"]["message"] == "/v1/events does not accept GET: use POST"
    nothing = await api.call("GET", "/v1/event")
    assert nothing.body["error"]["message"] == "Nothing at /v1/event: see docs/meter-api.md"


async def test_a_right_is_limited_to_its_namespace(api: Api) -> None:
    assert (await api.call("GET", "/v1/accounts/elsewhere/acme", READER)).status == 403


@pytest.mark.parametrize(
    ("method", "path", "body", "content_type", "status", "reason"),
    [
        ("POST", "/v1/topups", b"{", "application/json", 400, "InvalidBody"),
        ("POST", "/v1/topups", TOPUP | {"amount": 10}, "application/json", 400, "InvalidBody"),
        ("POST", "/v1/topups", TOPUP | {"amount": "1e3"}, "application/json", 400, "InvalidBody"),
        ("POST", "/v1/topups", TOPUP | {"kind": "Gift"}, "application/json", 400, "InvalidBody"),
        ("POST", "/v1/topups", TOPUP | {"reference": "a\u0000b"}, "application/json", 400, "InvalidBody"),
        ("POST", "/v1/topups", TOPUP, "text/plain", 415, "UnsupportedMediaType"),
        ("POST", "/v1/records", b"[]", "application/json", 400, "InvalidBody"),
        ("POST", "/v1/records", {"account": []}, "application/json", 400, "InvalidBody"),
        ("GET", "/v1/changes?after=-1", None, "", 400, "InvalidParameter"),
        ("GET", "/v1/changes?after=9" + "9" * 30, None, "", 400, "InvalidParameter"),
        ("GET", "/v1/changes?wait=inf", None, "", 400, "InvalidParameter"),
        ("GET", "/v1/changes?wait=nan", None, "", 400, "InvalidParameter"),
        ("GET", "/v1/changes?limit=0", None, "", 400, "InvalidParameter"),
        ("GET", "/v1/nothing", None, "", 404, "NotFound"),
        ("DELETE", "/v1/changes", None, "", 405, "MethodNotAllowed"),
    ],
)
async def test_errors_have_a_status_a_reason_and_a_message(
    api: Api, method: str, path: str, body: Any, content_type: str, status: int, reason: str
) -> None:
    answer = await api.call(method, path, OPERATOR, body, content_type)
    assert (answer.status, answer.reason) == (status, reason)
    assert answer.body["error"]["message"]


@pytest.mark.parametrize(
    ("body", "content_type", "status", "reason"),
    [
        (b"no json", "application/cloudevents-batch+json", 400, "InvalidJSON"),
        (b"{}", "application/cloudevents-batch+json", 400, "InvalidBatch"),
        (b"[]", "application/json", 415, "UnsupportedMediaType"),
        (b"[" + b"1," * 10_000 + b"1]", "application/cloudevents-batch+json", 413, "TooManyEvents"),
        (b" " * (16 * 1024 * 1024 + 1), "application/cloudevents-batch+json", 413, "BodyTooLarge"),
    ],
)
async def test_a_body_that_is_not_a_batch_is_refused(
    api: Api, body: bytes, content_type: str, status: int, reason: str
) -> None:
    answer = await api.call("POST", "/v1/events", GATEWAY, body, content_type)
    assert (answer.status, answer.reason) == (status, reason)


async def test_a_compressed_body_above_the_limit_is_refused(meter: Running) -> None:
    headers = {
        "Authorization": f"Bearer {GATEWAY}",
        "Content-Type": "application/cloudevents-batch+json",
        "Content-Encoding": "gzip",
    }
    packed = gzip.compress(b" " * (64 * 1024 * 1024))
    assert len(packed) < 100_000
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{meter.url}/v1/events", data=packed, headers=headers) as response,
    ):
        assert response.status in (400, 413)


@pytest.mark.parametrize(
    "changes",
    [
        {"reference": "x" * 254},
        {"reference": ""},
        {"source": "x" * 513},
        {"account": "billing/" + "x" * 254},
        {"account": "x" * 64 + "/acme"},
        {"amount": "99999999999"},
    ],
)
async def test_fields_of_a_top_up_are_bounded(api: Api, changes: dict[str, str]) -> None:
    answer = await api.call("POST", "/v1/topups", body=TOPUP | changes)
    assert (answer.status, answer.reason) == (400, "InvalidBody")
    assert next(iter(changes)) in answer.body["error"]["message"]


async def test_an_unrecorded_account_is_404(api: Api) -> None:
    answer = await api.call("GET", "/v1/accounts/billing/nobody", READER)
    assert (answer.status, answer.reason) == (404, "AccountNotFound")


async def test_a_long_poll_returns_with_the_next_change(api: Api) -> None:
    waiting = asyncio.create_task(api.call("GET", "/v1/changes?after=0&wait=60"))
    assert (await api.call("GET", "/v1/changes?after=0")).body["accounts"] == []
    await api.call("POST", "/v1/records", body=RECORDS)
    page = (await asyncio.wait_for(waiting, 50)).body
    assert [account["account"] for account in page["accounts"]] == ["billing/acme"]
    assert (page["head"], page["complete"]) == (1, True)
    assert page["accounts"][0]["state"] == "Overdue"


async def test_probes_need_no_token_and_readiness_depends_on_the_ledger(api: Api, meter: Running) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await api.call("GET", path, None)).status == 200
    ledger, meter.meter.ledger = meter.meter.ledger, None
    assert (await api.call("GET", "/readyz", None)).status == 503
    assert (await api.call("GET", "/healthz", None)).status == 200
    answer = await api.call("POST", "/v1/topups", body=TOPUP)
    assert (answer.status, answer.reason) == (503, "NotReady")
    meter.meter.ledger = ledger


async def test_a_batch_at_the_limit_is_accepted(api: Api) -> None:
    await api.call("POST", "/v1/records", body=RECORDS)
    body = json.dumps([cloud_event(str(number)) for number in range(10_000)]).encode()
    answer = await api.call("POST", "/v1/events", GATEWAY, body, "application/cloudevents-batch+json")
    assert answer.body["accepted"] == 10_000
