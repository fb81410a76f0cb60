"""POST and GET /v1/refusals over sockets, by hand and with MeterClient (B32)."""

from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest

from farebox.errors import LedgerRefused
from farebox.meterapi.client import MeterClient
from farebox.meterapi.refusals import MAX_COUNTS, RefusalCount
from tests.ledger.support import START
from tests.meter.support import ADMIN, GATEWAY, READER, TENANT, Answer, Api, Running

COUNT = {
    "minute": "2026-03-01T12:00:00Z",
    "namespace": "team-a",
    "service": "chat",
    "apiKey": "ci",
    "code": "rate_limit_exceeded",
    "status": 429,
    "count": 3,
}
PERIOD = {"from": "2026-03-01T00:00:00Z", "to": "2026-03-02T00:00:00Z"}


async def post(api: Api, *refusals: Any, token: str = GATEWAY) -> Answer:
    """POST /v1/refusals."""
    body = {"source": "gateway-0/1", "refusals": refusals}
    return await api.call("POST", "/v1/refusals", token, body)


async def read(api: Api, token: str = TENANT, **parameters: str) -> Answer:
    """GET /v1/refusals of the day."""
    return await api.call("GET", f"/v1/refusals?{urlencode(PERIOD | parameters)}", token)


async def test_b32_refused_calls_are_counted_by_service_key_and_code(api: Api) -> None:
    unknown = COUNT | {"service": None, "apiKey": None, "code": "model_not_found", "status": 404, "count": 1}
    assert (await post(api, COUNT, unknown)).body == {"stored": 2}
    assert (await post(api, COUNT)).body == {"stored": 1}
    answer = await read(api, namespace="team-a", bucket="minute")
    assert answer.body == {
        **PERIOD,
        "bucket": "minute",
        "rows": [
            {"start": COUNT["minute"], **{name: COUNT[name] for name in COUNT if name != "minute"}},
            {
                "start": COUNT["minute"],
                "namespace": "team-a",
                "code": "model_not_found",
                "status": 404,
                "count": 1,
            },
        ],
    }
    answer = await read(api, namespace="team-a", service="team-a/chat", apiKey="ci", code=COUNT["code"])
    assert [row["count"] for row in answer.body["rows"]] == [3]


async def test_a_namespace_reads_its_own_and_an_admin_reads_all(api: Api) -> None:
    no_key = COUNT | {"namespace": "", "service": None, "apiKey": None, "code": "invalid_api_key"}
    await post(api, COUNT, no_key)
    assert len((await read(api, namespace="team-a")).body["rows"]) == 1
    assert len((await read(api, ADMIN)).body["rows"]) == 2
    assert (await read(api, TENANT)).status == 403
    assert (await read(api, TENANT, namespace="team-b")).status == 403
    assert (await read(api, READER, namespace="team-a")).status == 403
    assert (await post(api, COUNT, token=TENANT)).status == 403


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"minute": "soon"}, "refusals.0.minute"),
        ({"count": 0}, "refusals.0.count"),
        ({"status": 1000}, "refusals.0.status"),
        ({"code": ""}, "refusals.0.code"),
        ({"namespace": "x" * 64}, "refusals.0.namespace"),
        ({"service": "a\tb"}, "refusals.0.service"),
        ({"reason": "x"}, "refusals.0.reason: is not a known field"),
    ],
)
async def test_an_invalid_count_is_named(api: Api, change: Any, named: str) -> None:
    answer = await post(api, COUNT | change)
    assert (answer.status, answer.reason) == (400, "InvalidBody")
    assert named in answer.body["error"]["message"]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"bucket": "month"}, "bucket"),
        ({"service": "team-a/chat"}, "namespace"),
        ({"namespace": "team-a", "service": "team-b/chat"}, "team-b/chat"),
        ({"namespace": "team-a", "service": "team-a/a,team-a/b"}, "one service"),
        ({"namespace": "Team"}, "namespace"),
        ({"model": "x"}, "model is not a parameter"),
        ({"from": "2026-01-01T00:00:00Z"}, "36 days"),
    ],
)
async def test_an_invalid_parameter_is_named(api: Api, parameters: dict[str, str], named: str) -> None:
    token = TENANT if parameters.get("namespace") == "team-a" else ADMIN
    answer = await read(api, token, **parameters)
    assert (answer.status, answer.reason) == (400, "InvalidParameter")
    assert named in answer.body["error"]["message"]


async def test_the_client_reports_and_reads_refusals(meter: Running) -> None:
    many = [
        RefusalCount(START, "team-a", "chat", f"key-{number}", "quota_exceeded", 429, 1)
        for number in range(MAX_COUNTS + 1)
    ]
    async with MeterClient(meter.url, GATEWAY) as gateway:
        assert await gateway.report_refusals("gateway-0/1", []) == 0
        assert await gateway.report_refusals("gateway-0/1", many) == len(many)
        ahead = RefusalCount(START + timedelta(hours=1), "team-a", None, None, "x", 400, 1)
        with pytest.raises(LedgerRefused, match="future"):
            await gateway.report_refusals("gateway-0/1", [ahead])
    async with MeterClient(meter.url, TENANT) as tenant:
        report = await tenant.refusals({"namespace": "team-a", "apiKey": "key-7", **PERIOD})
        assert [(row.service, row.api_key, row.count) for row in report.rows] == [("chat", "key-7", 1)]
        with pytest.raises(LedgerRefused) as refused:
            await tenant.refusals({"namespace": "team-b", **PERIOD})
        assert refused.value.reason == "Forbidden"
