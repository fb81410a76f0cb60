"""GET /v1/calls and /v1/calls/{requestId} over sockets, by hand and with MeterClient (B32)."""

import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from farebox.errors import LedgerRefused
from farebox.meterapi.client import MeterClient
from farebox.meterapi.schema import write_records
from tests.ledger.support import FACTS
from tests.meter.support import ADMIN, GATEWAY, OPERATOR, READER, TENANT, Answer, Api, Running, cloud_event

RECORDS = json.loads(write_records(FACTS))
PERIOD = {"from": "2026-03-01T00:00:00Z", "to": "2026-03-02T00:00:00Z"}
ODD_ID = "a/b?c=1 ü%"
"""A request id that only another sender than the gateway makes up."""


async def read(api: Api, token: str = TENANT, **parameters: Any) -> Answer:
    """GET /v1/calls of the day, by default of the namespace."""
    if not {"account", "namespace"} & set(parameters):
        parameters["namespace"] = "team-a"
    return await api.call("GET", f"/v1/calls?{urlencode(PERIOD | parameters)}", token)


@pytest.fixture
async def calls(api: Api) -> Api:
    """A charged call with everything known, two plain ones, and one that waits for its model."""
    await api.call("POST", "/v1/records", body=RECORDS)
    data = {"inputTokens": 100, "outputTokens": 20}
    whole = data | {
        "apiKey": "ci",
        "requestId": "r-1",
        "status": 200,
        "cachedInputTokens": 40,
        "cacheWriteInputTokens": 10,
        "estimated": True,
        "durationMs": 1840,
        "firstByteMs": 210,
    }
    await api.post_events(
        [
            cloud_event("1", data=whole, time="2026-03-01T11:00:00Z"),
            cloud_event("2", data=data | {"requestId": ODD_ID}),
            cloud_event("3", data=data),
            cloud_event("4", data=data | {"model": "gone", "requestId": "r-4"}, time="2026-03-01T10:00:00Z"),
        ]
    )
    return api


async def test_a_call_is_looked_up_by_its_request_id(calls: Api) -> None:
    answer = await calls.call("GET", "/v1/calls/r-1?namespace=team-a", TENANT)
    assert answer.body == {
        "source": "gateway-0",
        "id": "1",
        "requestId": "r-1",
        "time": "2026-03-01T11:00:00Z",
        "receivedAt": "2026-03-01T12:00:00Z",
        "service": "team-a/chat",
        "model": "qwen3-8b",
        "apiKey": "ci",
        "status": 200,
        "inputTokens": 100,
        "cachedInputTokens": 40,
        "cacheWriteInputTokens": 10,
        "outputTokens": 20,
        "estimated": True,
        "durationMs": 1840,
        "firstByteMs": 210,
        "reservationInputTokens": 0,
        "reservationOutputTokens": 0,
        "freeQuotaTokens": 0,
        "account": "billing/acme",
        "trial": False,
        "price": {
            "version": 1,
            "effectiveAt": "2026-03-01T12:00:00Z",
            "upToInputTokens": 1000,
            "input": "0.500",
            "cachedInput": "0.050",
            "cacheWrite": "0.500",
            "output": "1.500",
        },
        "charge": "0.000062",
        "currency": "USD",
    }
    same = await calls.call("GET", "/v1/calls/r-1?account=billing/acme", READER)
    assert same.body == answer.body
    pending = await calls.call("GET", "/v1/calls/r-4?namespace=team-a", TENANT)
    assert (pending.body["pendingReason"], pending.body["waitingFor"]) == ("ModelNotBound", "team-a/chat")
    assert not {"charge", "account", "price"} & set(pending.body)
    odd = await calls.call("GET", f"/v1/calls/{quote(ODD_ID, safe='')}?namespace=team-a", TENANT)
    assert odd.body["id"] == "2"


async def test_calls_are_paged_newest_first(calls: Api) -> None:
    seen, cursor = [], {}
    for _ in range(2):
        page = (await read(calls, limit=2, **cursor)).body
        seen += [item["id"] for item in page["calls"]]
        cursor = {"cursor": page.get("next")}
    assert (seen, cursor["cursor"]) == (["3", "2", "1", "4"], None)
    assert (page["from"], page["to"]) == (PERIOD["from"], PERIOD["to"])
    assert [item["id"] for item in (await read(calls, estimated="true")).body["calls"]] == ["1"]
    assert [item["id"] for item in (await read(calls, apiKey="ci", status=200)).body["calls"]] == ["1"]
    assert [item["id"] for item in (await read(calls, READER, account="billing/acme")).body["calls"]] == [
        *("3", "2", "1", "4")
    ]


async def test_the_rights_are_those_of_usage_reports(calls: Api) -> None:
    for path in ("/v1/calls/r-1?", f"/v1/calls?{urlencode(PERIOD)}&"):
        assert (await calls.call("GET", path + "namespace=team-a", TENANT)).status == 200
        assert (await calls.call("GET", path + "account=billing/acme", READER)).status == 200
        for token in (READER, GATEWAY, OPERATOR, ADMIN):
            assert (await calls.call("GET", path + "namespace=team-a", token)).status == 403
        assert (await calls.call("GET", path + "account=billing/acme", TENANT)).status == 403
        assert (await calls.call("GET", path + "namespace=team-b", TENANT)).status == 403
        assert (await calls.call("GET", path, TENANT)).status == 400
        assert (await calls.call("GET", path, None)).status == 401


async def test_a_call_that_is_not_stored_is_404_with_a_reason(calls: Api) -> None:
    for request_id in ("r-2", "%00", "x" * 300):
        answer = await calls.call("GET", f"/v1/calls/{request_id}?namespace=team-a", TENANT)
        assert (answer.status, answer.reason) == (404, "CallNotFound")
    assert "of namespace team-a" in answer.body["error"]["message"]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"estimated": "yes"}, "estimated"),
        ({"status": "2xx"}, "status"),
        ({"limit": 1001}, "limit"),
        ({"requestId": "r-1"}, "requestId is not a parameter"),
        ({"service": "team-b/chat"}, "team-b/chat"),
        ({"cursor": "x"}, "cursor"),
        ({"to": "2026-12-31T00:00:00Z"}, "90 days"),
    ],
)
async def test_an_invalid_parameter_is_named(api: Api, parameters: dict[str, Any], named: str) -> None:
    answer = await read(api, **parameters)
    assert (answer.status, answer.reason) == (400, "InvalidParameter")
    assert named in answer.body["error"]["message"]


async def test_a_cursor_of_another_list_is_refused(calls: Api) -> None:
    cursor = (await read(calls, limit=1)).body["next"]
    assert (await read(calls, limit=1, cursor=cursor)).status == 200
    for other in ({"apiKey": "ci"}, {"estimated": "true"}, {"from": "2026-03-01T01:00:00Z"}):
        assert (await read(calls, cursor=cursor, **other)).status == 400


async def test_the_client_reads_calls(calls: Api, meter: Running) -> None:
    async with MeterClient(meter.url, TENANT) as tenant:
        page = await tenant.calls({"namespace": "team-a", "limit": "3", **PERIOD})
        assert [item.id for item in page.calls] == ["3", "2", "1"]
        rest = await tenant.calls({"namespace": "team-a", "cursor": page.next or ""})
        assert [item.id for item in rest.calls] == ["4"]
        found = await tenant.call("r-1", {"namespace": "team-a"})
        assert found == page.calls[2]
        assert (await tenant.call(ODD_ID, {"namespace": "team-a"})).id == "2"
        with pytest.raises(LedgerRefused, match="is stored") as refused:
            await tenant.call("r-9", {"namespace": "team-a"})
        assert refused.value.reason == "CallNotFound"
