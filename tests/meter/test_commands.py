"""`farebox statement` and `farebox usage` against a meter: tables, CSV, errors that say what to do."""

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
from tests.meter.support import READER, TENANT, Api, Running, cloud_event

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
