"""GET /v1/usage and statements over sockets: sums, pages, rights and errors."""

import base64
import csv
import io
import json
from typing import Any
from urllib.parse import urlencode

import pytest

from farebox.domain.billing.money import parse_amount
from farebox.meterapi.csv import as_text
from farebox.meterapi.schema import to_json, write_records
from tests.ledger.support import CALL_CHARGE, FACTS, topup
from tests.meter.support import GATEWAY, READER, TENANT, Answer, Api, cloud_event

RECORDS = json.loads(write_records(FACTS))
FROM, TO = "2026-03-01T00:00:00Z", "2026-03-31T00:00:00Z"
STATEMENT = "/v1/accounts/billing/acme/statement"


async def usage_of(api: Api, token: str = READER, **parameters: Any) -> Answer:
    """GET /v1/usage, by default of the account and the month. `from_` is from."""
    if not {"account", "namespace"} & set(parameters):
        parameters["account"] = "billing/acme"
    values = {"from": FROM, "to": TO} | {name.rstrip("_"): value for name, value in parameters.items()}
    return await api.call("GET", f"/v1/usage?{urlencode(values)}", token)


async def statement_of(api: Api, **parameters: Any) -> Answer:
    """The account's statement of the month."""
    values = {"from": FROM, "to": TO} | {name.rstrip("_"): value for name, value in parameters.items()}
    return await api.call("GET", f"{STATEMENT}?{urlencode(values)}", READER)


@pytest.fixture
async def sample_usage(api: Api) -> Api:
    """Three calls of a key, one without a key, a pending one, and a top-up whose reference is a formula."""
    await api.call("POST", "/v1/records", body=RECORDS)
    await api.call("POST", "/v1/topups", body=json.loads(to_json(topup('=1+1, "x"'))))
    keyed = {"inputTokens": 100, "outputTokens": 20, "apiKey": "ci"}
    await api.post_events([cloud_event(str(number), data=keyed) for number in range(3)])
    waits = {"inputTokens": 1, "outputTokens": 1, "model": "other"}
    await api.post_events([cloud_event("plain"), cloud_event("waits", data=waits)])
    return api


async def test_usage_has_tokens_charges_and_pending_calls(sample_usage: Api) -> None:
    answer = await usage_of(sample_usage, groupBy="service,model,apiKey", bucket="day")
    assert answer.body == {
        "from": FROM,
        "to": TO,
        "bucket": "day",
        "groupBy": ["service", "model", "apiKey"],
        "asOf": 4,
        "pending": 1,
        "rows": [
            {
                "start": "2026-03-01T00:00:00Z",
                "service": "team-a/chat",
                "model": "qwen3-8b",
                "apiKey": key,
                "calls": calls,
                "inputTokens": 100 * calls,
                "cachedInputTokens": 0,
                "outputTokens": 20 * calls,
                "reservationInputTokens": 0,
                "reservationOutputTokens": 0,
                "freeQuotaTokens": 0,
                "charge": charge,
                "currency": "USD",
                "cacheWriteInputTokens": 0,
                "estimatedCalls": 0,
                "estimatedTokens": 0,
                "estimatedCharge": "0.00",
            }
            for key, calls, charge in (("", 1, "0.00008"), ("ci", 3, "0.00024"))
        ],
    }
    assert CALL_CHARGE == 80_000


async def test_b19_sums_are_the_same_over_any_grouping_and_paging(sample_usage: Api) -> None:
    for groups in ("", "service", "model", "apiKey", "service,apiKey", "apiKey,model,service"):
        for bucket in ("none", "minute", "hour", "day", "month"):
            total, calls, cursor = 0, 0, {}
            while True:
                page = (await usage_of(sample_usage, groupBy=groups, bucket=bucket, limit=1, **cursor)).body
                total += sum(parse_amount(row["charge"]) for row in page["rows"])
                calls += sum(row["calls"] for row in page["rows"])
                if "next" not in page:
                    break
                cursor = {"cursor": page["next"]}
            assert (total, calls) == (4 * CALL_CHARGE, 4)


async def test_a_namespace_sees_its_own_usage(sample_usage: Api) -> None:
    page = await usage_of(sample_usage, TENANT, namespace="team-a")
    assert (page.body["rows"][0]["calls"], page.body["pending"]) == (4, 1)
    assert (await usage_of(sample_usage, TENANT, namespace="team-a", apiKey="ci")).body["rows"][0][
        "calls"
    ] == 3
    assert (await usage_of(sample_usage, TENANT, namespace="team-a", service="team-a/other")).body[
        "rows"
    ] == []


async def test_usage_of_several_services(sample_usage: Api) -> None:
    services = "team-a/chat,team-a/other"
    page = await usage_of(sample_usage, TENANT, namespace="team-a", service=services, groupBy="service")
    assert [(row["service"], row["calls"]) for row in page.body["rows"]] == [("team-a/chat", 4)]
    many = ",".join(f"team-a/s{number}" for number in range(101))
    answer = await usage_of(sample_usage, TENANT, namespace="team-a", service=many)
    assert (answer.status, answer.reason) == (400, "InvalidParameter")


async def test_a_cursor_keeps_the_times_of_its_first_page(sample_usage: Api) -> None:
    first = await sample_usage.call(
        "GET", f"/v1/usage?account=billing/acme&groupBy=apiKey&limit=1&from={FROM}&to={TO}", READER
    )
    rest = await sample_usage.call(
        "GET", f"/v1/usage?account=billing/acme&groupBy=apiKey&cursor={first.body['next']}", READER
    )
    assert [row["apiKey"] for row in rest.body["rows"]] == ["ci"]
    assert (rest.body["from"], rest.body["to"], rest.body["asOf"]) == (FROM, TO, first.body["asOf"])


def forged(*content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"account": "billing"}, "account must be namespace/name"),
        ({"account": "billing/acme", "namespace": "billing"}, "either account"),
        ({"namespace": ""}, "namespace must be"),
        ({"namespace": "*"}, "namespace must be"),
        ({"namespace": "a/b"}, "namespace must be"),
        ({"account": "/acme"}, "account must be"),
        ({"groupby": "model"}, "groupby is not a parameter"),
        ({"groupBy": "day"}, "groupBy must be any of service, model, apiKey"),
        ({"bucket": "week"}, "bucket must be one of"),
        ({"from_": "yesterday"}, "from cannot be read"),
        ({"from_": "2026-02-30T00:00:00Z"}, "from cannot be read"),
        ({"to": "2026-03-01"}, "to cannot be read"),
        ({"to": FROM}, "to must be after from"),
        ({"from_": "2025-12-30T23:59:59Z"}, "at most 90 days"),
        ({"from_": "1969-12-31T23:59:59Z"}, "1970"),
        ({"from_": "9999-11-30T00:00:00Z", "to": "9999-12-02T00:00:00Z", "bucket": "month"}, "9999"),
        ({"limit": "0"}, "limit must be"),
        ({"limit": "5001"}, "limit must be"),
        ({"service": "chat"}, "service must be namespace/name"),
        ({"model": ""}, "model must have"),
        ({"apiKey": "x" * 254}, "apiKey must have"),
        ({"apiKey": "a\nb"}, "apiKey must have"),
        ({"cursor": ""}, "cursor must be"),
        ({"cursor": "!!"}, "cursor must be"),
        ({"cursor": "bnVsbA"}, "cursor must be"),
        ({"cursor": forged("x", 0, 1, 1, 1, "USD")}, "cursor must be"),
        ({"cursor": forged(*[[]] * 3)}, "cursor must be"),
        ({"cursor": "WyI" * 1000}, "cursor must be"),
    ],
)
async def test_an_invalid_parameter_is_named(api: Api, parameters: dict[str, Any], says: str) -> None:
    answer = await usage_of(api, **parameters)
    assert (answer.status, answer.reason) == (400, "InvalidParameter")
    assert says in answer.body["error"]["message"]


async def test_a_cursor_of_another_report_is_refused(sample_usage: Api) -> None:
    cursor = (await usage_of(sample_usage, groupBy="apiKey", limit=1)).body["next"]
    for other in (
        {"groupBy": "model"},
        {"groupBy": "apiKey", "bucket": "day"},
        {"to": "2026-03-30T00:00:00Z"},
    ):
        answer = await usage_of(sample_usage, **({"groupBy": "apiKey"} | other), cursor=cursor)
        assert (answer.status, answer.reason) == (400, "InvalidParameter")


@pytest.mark.parametrize("key", ["\ud800", "a\0b"])
async def test_a_cursor_with_control_characters_is_refused(sample_usage: Api, key: str) -> None:
    cursor = (await usage_of(sample_usage, groupBy="apiKey", limit=1)).body["next"]
    content = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    assert content[-2:] == ["", "USD"]
    answer = await usage_of(sample_usage, groupBy="apiKey", cursor=forged(*content[:-2], key, "USD"))
    assert (answer.status, answer.reason) == (400, "InvalidParameter")


async def test_a_parameter_given_twice_is_refused(api: Api) -> None:
    answer = await api.call("GET", f"/v1/usage?account=billing/acme&account=x/y&from={FROM}", READER)
    assert "more than once" in answer.body["error"]["message"]


async def test_a_plus_in_a_time_need_not_be_escaped(sample_usage: Api) -> None:
    query = "/v1/usage?account=billing/acme&from=2026-03-01T02:00:00+02:00&to=2026-03-02T00:00:00Z"
    assert (await sample_usage.call("GET", query, READER)).body["from"] == FROM


async def test_a_service_of_another_namespace_is_refused(api: Api) -> None:
    answer = await usage_of(api, TENANT, namespace="team-a", service="team-b/chat")
    assert (answer.status, answer.reason) == (400, "InvalidParameter")


@pytest.mark.parametrize(
    ("token", "path", "status"),
    [
        (READER, "/v1/usage?account=billing/acme", 200),
        (TENANT, "/v1/usage?namespace=team-a", 200),
        (READER, STATEMENT, 200),
        (TENANT, "/v1/usage?account=billing/acme", 403),
        (READER, "/v1/usage?namespace=team-a", 403),
        (READER, "/v1/usage?namespace=billing", 403),
        (TENANT, "/v1/usage?namespace=team-b", 403),
        (TENANT, STATEMENT, 403),
        (READER, "/v1/usage?account=other/acme", 403),
        (READER, "/v1/accounts/other/acme/statement", 403),
        (GATEWAY, STATEMENT, 403),
        (GATEWAY, "/v1/usage?account=billing/acme", 403),
        ("guessed", STATEMENT, 401),
        ("guessed", "/v1/usage?namespace=team-a", 401),
    ],
)
async def test_reports_need_the_right_to_their_owner(
    sample_usage: Api, token: str, path: str, status: int
) -> None:
    sign = "&" if "?" in path else "?"
    assert (await sample_usage.call("GET", f"{path}{sign}from={FROM}&to={TO}", token)).status == status


async def test_a_statement_opens_adds_up_and_closes(sample_usage: Api) -> None:
    body = (await statement_of(sample_usage)).body
    lines = body.pop("lines")
    assert body == {
        "account": "billing/acme",
        "currency": "USD",
        "from": FROM,
        "to": TO,
        "asOf": 4,
        "openingBalance": "0.00",
        "closingBalance": "9.99968",
    }
    assert lines == [
        {
            "kind": "Payment",
            "time": "2026-03-01T12:00:00Z",
            "amount": "10.00",
            "reference": '=1+1, "x"',
            "source": 'billing/=1+1, "x"',
        },
        {"kind": "Usage", "time": FROM, "amount": "-0.00032", "model": "qwen3-8b"},
    ]
    later = (await statement_of(sample_usage, from_="2026-03-02T00:00:00Z")).body
    assert (later["openingBalance"], later["closingBalance"], later["lines"]) == ("9.99968", "9.99968", [])


async def test_a_statement_as_csv_has_the_same_figures_and_no_formula(sample_usage: Api) -> None:
    answer = await statement_of(sample_usage, format="csv")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8; header=present"
    assert 'filename="statement-billing-acme-2026-03-01.csv"' in answer.headers["Content-Disposition"]
    assert answer.body.count("\r\n") == answer.body.count("\n") == 5
    rows = list(csv.DictReader(io.StringIO(answer.body)))
    assert [(row["kind"], row["amount"], row["balance"], row["model"]) for row in rows] == [
        ("OpeningBalance", "", "0.00", ""),
        ("Payment", "10.00", "", ""),
        ("Usage", "-0.00032", "", "qwen3-8b"),
        ("ClosingBalance", "", "9.99968", ""),
    ]
    assert rows[1]["reference"] == '\'=1+1, "x"'


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\tx", "\rx", " =1", "＝1", "＠x"])
def test_a_possible_formula_gets_an_apostrophe(text: str) -> None:
    assert as_text(text) == "'" + text


@pytest.mark.parametrize("text", ["", "pay_1", "a=b", "billing/-x", "1-1"])
def test_other_text_is_unchanged(text: str) -> None:
    assert as_text(text) == text


@pytest.mark.parametrize(
    ("parameters", "status", "says"),
    [
        ({"format": "pdf"}, 400, "format must be one of json, csv"),
        ({"from_": "2025-03-29T00:00:00Z"}, 400, "at most 366 days"),
        ({"since": FROM}, 400, "since is not a parameter"),
    ],
)
async def test_an_invalid_parameter_of_a_statement_is_named(
    sample_usage: Api, parameters: dict[str, Any], status: int, says: str
) -> None:
    answer = await statement_of(sample_usage, **parameters)
    assert answer.status == status
    assert says in answer.body["error"]["message"]


async def test_a_statement_needs_from_and_a_recorded_account(sample_usage: Api) -> None:
    assert "from is missing" in (await sample_usage.call("GET", STATEMENT, READER)).body["error"]["message"]
    answer = await sample_usage.call(
        "GET", f"/v1/accounts/billing/nobody/statement?from={FROM}&to={TO}", READER
    )
    assert (answer.status, answer.reason) == (404, "AccountNotFound")


async def test_to_defaults_to_now(sample_usage: Api) -> None:
    answer = await sample_usage.call(
        "GET", "/v1/usage?account=billing/acme&from=1970-01-01T00:00:00Z", READER
    )
    assert "at most 90 days" in answer.body["error"]["message"]
