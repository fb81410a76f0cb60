"""`farebox statement`, `usage`, `calls` and `refusals` against a meter: tables, CSV, useful errors."""

import asyncio
import csv
import io
import json
import os
import sys
from pathlib import Path

import pytest

from farebox.meterapi.schema import to_json, write_records
from tests.ledger.support import FACTS, topup
from tests.meter.support import GATEWAY, READER, TENANT, Api, Running, cloud_event

MARCH = ("--from", "2026-03", "--to", "2026-03")


async def farebox(url: str, *arguments: str, token: str = READER) -> tuple[int, str, str]:
    """Run the program; returns its exit code, output and errors."""
    env = {**os.environ, "FAREBOX_METER_URL": url, "FAREBOX_TOKEN": token}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "farebox", *arguments, env=env,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


@pytest.fixture
async def sample_usage(meter: Running) -> Running:
    """A top-up and five calls of two keys."""
    api: Api = meter.api
    await api.call("POST", "/v1/records", body=json.loads(write_records(FACTS)))
    await api.call("POST", "/v1/topups", body=json.loads(to_json(topup())))
    for key, calls in (("ci", 2), ("prod", 3)):
        data = {"inputTokens": 1_000, "outputTokens": 20, "apiKey": key}
        await api.post_events([cloud_event(f"{key}-{number}", data=data) for number in range(calls)])
    return meter


async def test_a_statement_is_a_table(sample_usage: Running) -> None:
    code, output, errors = await farebox(sample_usage.url, "statement", "billing/acme", *MARCH)
    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        "Statement of billing/acme in USD, 2026-03-01 00:00 to 2026-04-01 00:00 UTC",
        "",
        "DATE              WHAT                             AMOUNT",
        "2026-03-01 00:00  Opening balance                 0.00",
        "2026-03-01 12:00  Payment pay_1 (billing/pay_1)  10.00",
        "2026-03-01        Usage of qwen3-8b              -0.00265",
        "2026-04-01 00:00  Closing balance                 9.99735",
        "",
        "KIND         TOTAL",
        "Payments  10.00",
        "Usage     -0.00265",
    ]


async def test_usage_is_a_table_with_totals(sample_usage: Running) -> None:
    arguments = ("usage", "--account", "billing/acme", "--group-by", "apiKey", "--bucket", "day", *MARCH)
    code, output, errors = await farebox(sample_usage.url, *arguments)
    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        "Usage of account billing/acme, 2026-03-01 00:00 to 2026-04-01 00:00 UTC",
        "",
        "DAY         API-KEY  CALLS  INPUT  CACHED  OUTPUT  RESERVED-IN  RESERVED-OUT  FREE   CHARGE",
        "2026-03-01  ci           2  2,000       0      40            0             0     0  0.00106  USD",
        "2026-03-01  prod         3  3,000       0      60            0             0     0  0.00159  USD",
        "TOTAL                    5  5,000       0     100            0             0     0  0.00265  USD",
    ]


async def test_usage_as_csv_and_json_has_the_same_figures(sample_usage: Running) -> None:
    arguments = ("usage", "-n", "team-a", "--group-by", "apiKey", *MARCH, "-o")
    _, text, _ = await farebox(sample_usage.url, *arguments, "csv", token=TENANT)
    _, document, _ = await farebox(sample_usage.url, *arguments, "json", token=TENANT)
    rows = [{name: str(value) for name, value in row.items()} for row in json.loads(document)["rows"]]
    assert list(csv.DictReader(io.StringIO(text))) == rows
    assert [row["calls"] for row in rows] == ["2", "3"]


async def test_the_csv_of_a_statement_is_the_meters_csv(sample_usage: Running) -> None:
    _, output, _ = await farebox(sample_usage.url, "statement", "billing/acme", *MARCH, "-o", "csv")
    assert output.splitlines()[-1].startswith("2026-04-01T00:00:00Z,ClosingBalance,,9.99735,USD,")


@pytest.mark.parametrize(
    ("arguments", "token", "says"),
    [
        (("statement", "billing"), READER, "not of the form namespace/name"),
        (("statement", "other/acme"), READER, "may not get billingaccounts.farebox.dev in namespace other"),
        (("statement", "billing/acme"), "guessed", "kubectl create token"),
        (("statement", "billing/acme"), "", "give --service-account"),
        (("statement", "billing/acme", "--from", "soon"), READER, "write today, yesterday"),
        (("statement", "billing/acme", "--token-file", "/nowhere"), READER, "Cannot read the token"),
        (("statement", "billing/acme", "--meter", "http://127.0.0.1:1"), READER, "port-forward"),
        (("usage",), READER, "either --account"),
        (("usage", "-n", "team-a", "--group-by", "day"), TENANT, "groupBy must be any of"),
        (("calls",), READER, "either --account"),
        (("calls", "r-9", "-n", "team-a"), TENANT, "No call 'r-9' of namespace team-a is stored"),
        (("calls", "r-9", "-n", "team-a", "--status", "200"), TENANT, "no filters"),
        (("calls", "-n", "team-b"), TENANT, "may not get inferenceservices"),
        (("refusals",), TENANT, "in all namespaces"),
    ],
)
async def test_errors_are_one_line_that_says_what_to_do(
    meter: Running, arguments: tuple[str, ...], token: str, says: str
) -> None:
    code, output, errors = await farebox(meter.url, *arguments, token=token)
    assert code != 0
    assert output == ""
    assert says in errors
    assert "Traceback" not in errors


async def test_a_token_can_come_from_a_file(sample_usage: Running, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{READER}\n")
    arguments = ("statement", "billing/acme", *MARCH, "--token-file", str(file))
    assert (await farebox(sample_usage.url, *arguments, token=""))[0] == 0


@pytest.fixture
async def sample_calls(meter: Running) -> Running:
    """Two calls, one of which writes a cache and is estimated, and refused calls."""
    api: Api = meter.api
    await api.call("POST", "/v1/records", body=json.loads(write_records(FACTS)))
    data = {"inputTokens": 1_000, "outputTokens": 20, "requestId": "r-1", "apiKey": "ci", "status": 200}
    cut = data | {"requestId": "r-2", "cacheWriteInputTokens": 300, "estimated": True, "durationMs": 1_840}
    later = "2026-03-01T12:00:01Z"
    await api.post_events([cloud_event("1", data=data), cloud_event("2", data=cut, time=later)])
    refusal = {"minute": later, "namespace": "team-a", "service": "chat", "apiKey": "ci", "code": "x"}
    counts = {"source": "gateway-0", "refusals": [refusal | {"status": 429, "count": 1_234}]}
    await api.call("POST", "/v1/refusals", GATEWAY, counts)
    return meter


async def test_b26_usage_shows_how_much_is_estimated(sample_calls: Running) -> None:
    arguments = ("usage", "-n", "team-a", "--group-by", "apiKey", *MARCH)
    _, output, _ = await farebox(sample_calls.url, *arguments, token=TENANT)
    header, *rows = output.splitlines()[2:]
    assert header.split()[-6:] == ["RESERVED-OUT", "FREE", "EST-CALLS", "EST-TOKENS", "EST-CHARGE", "CHARGE"]
    assert "CACHE-WRITE" in header
    assert rows[0].split() == [
        *("ci", "2", "2,000", "0", "300", "40", "0", "0", "0"),
        *("1", "1,020", "0.00053", "0.00106", "USD"),
    ]
    assert rows[-1].split()[1:] == rows[0].split()[1:]


async def test_b26_a_statement_shows_how_much_is_estimated(sample_calls: Running) -> None:
    _, output, _ = await farebox(sample_calls.url, "statement", "billing/acme", *MARCH)
    assert "Usage of qwen3-8b (estimated: 1 call, 1,020 tokens, -0.00053)  -0.00106" in output
    _, text, _ = await farebox(sample_calls.url, "statement", "billing/acme", *MARCH, "-o", "csv")
    usage = next(row for row in csv.DictReader(io.StringIO(text)) if row["kind"] == "Usage")
    assert (usage["estimatedCalls"], usage["estimatedTokens"], usage["estimatedAmount"]) == (
        "1",
        "1020",
        "-0.00053",
    )


async def test_b32_calls_are_listed_newest_first(sample_calls: Running) -> None:
    code, output, errors = await farebox(sample_calls.url, "calls", "-n", "team-a", *MARCH, token=TENANT)
    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        "Calls of namespace team-a",
        "",
        "TIME                 REQUEST  SERVICE      API-KEY  STATUS  INPUT  OUTPUT  EST     MS   CHARGE",
        "2026-03-01 12:00:01  r-2      team-a/chat  ci       200     1,000      20  yes  1,840  0.00053  USD",
        "2026-03-01 12:00:00  r-1      team-a/chat  ci       200     1,000      20   no      -  0.00053  USD",
    ]
    arguments = ("calls", "--account", "billing/acme", *MARCH, "--reported", "--status", "200")
    _, output, _ = await farebox(sample_calls.url, *arguments)
    assert [line.split()[2] for line in output.splitlines()[3:]] == ["r-1"]
    _, output, _ = await farebox(sample_calls.url, *arguments[:3], *MARCH, "--limit", "1")
    assert output.splitlines()[-1] == "More calls are older: raise --limit 1, or set --to"


async def test_b32_a_call_is_looked_up(sample_calls: Running) -> None:
    code, output, errors = await farebox(sample_calls.url, "calls", "r-2", "-n", "team-a", token=TENANT)
    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        "Request:     r-2",
        "Ended:       2026-03-01 12:00:01.000000 UTC",
        "Service:     team-a/chat",
        "Model:       qwen3-8b",
        "API key:     ci",
        "Status:      200",
        "Duration:    1,840 ms",
        "Input:       1,000 tokens (300 written to the cache)",
        "Output:      20 tokens",
        "Tokens are:  estimated",
        "Price:       input 0.500, cachedInput 0.050, cacheWrite 0.500, output 1.500 USD per million tokens;"
        " version 1 since 2026-03-01 12:00, up to 1,000 input tokens",
        "Account:     billing/acme",
        "Charge:      0.00053 USD",
        "Event:       gateway-0 2",
    ]


async def test_calls_as_csv_and_json_have_the_same_figures(sample_calls: Running) -> None:
    arguments = ("calls", "-n", "team-a", *MARCH, "-o")
    _, text, _ = await farebox(sample_calls.url, *arguments, "csv", token=TENANT)
    _, document, _ = await farebox(sample_calls.url, *arguments, "json", token=TENANT)
    rows, calls = list(csv.DictReader(io.StringIO(text))), json.loads(document)["calls"]
    for row, call in zip(rows, calls, strict=True):
        price = call.pop("price")
        assert (row["priceVersion"], row["priceCacheWrite"]) == (str(price["version"]), price["cacheWrite"])
        for name, value in call.items():
            assert row[name] == (str(value).lower() if isinstance(value, bool) else str(value)), name
    _, one, _ = await farebox(sample_calls.url, "calls", "r-1", "-n", "team-a", "-o", "csv", token=TENANT)
    assert list(csv.DictReader(io.StringIO(one))) == rows[1:]


async def test_b32_refused_calls_are_a_table(sample_calls: Running) -> None:
    arguments = ("refusals", "-n", "team-a", "--from", "2026-03-01", "--to", "2026-03-02", "--bucket", "hour")
    code, output, errors = await farebox(sample_calls.url, *arguments, token=TENANT)
    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        "Refused calls of namespace team-a, 2026-03-01 00:00 to 2026-03-03 00:00 UTC",
        "",
        "HOUR              NAMESPACE  SERVICE  API-KEY  CODE  STATUS  CALLS",
        "2026-03-01 12:00  team-a     chat     ci       x     429     1,234",
    ]
    _, text, _ = await farebox(sample_calls.url, *arguments, "-o", "csv", token=TENANT)
    _, document, _ = await farebox(sample_calls.url, *arguments, "-o", "json", token=TENANT)
    rows = [{name: str(value) for name, value in row.items()} for row in json.loads(document)["rows"]]
    assert list(csv.DictReader(io.StringIO(text))) == rows
