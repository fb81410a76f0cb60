"""Ask the meter for a statement or for usage, and print the answer."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import click

from farebox.cli_reports import tables
from farebox.cli_reports.client import MeterAccess, MeterReader, dumped, token_of
from farebox.cli_reports.periods import period


def show_statement(
    account: str, start: str | None, end: str | None, output: str, access: dict[str, Any]
) -> None:
    """Print the statement of an account; from the beginning of this month, if nothing else is said."""

    async def run(reader: MeterReader) -> None:
        parameters = _times(start or f"{datetime.now(UTC):%Y-%m}", end)
        if output == "csv":
            click.echo(await reader.statement_csv(account, parameters), nl=False)
            return
        answer = await reader.statement(account, parameters)
        click.echo(tables.statement_table(answer) if output == "table" else _json(dumped(answer)))

    _ask(access, run)


def show_usage(
    values: dict[str, str], start: str, end: str | None, output: str, access: dict[str, Any]
) -> None:
    """Print usage; `values` are the parameters of the meter's API but for the time."""
    of = f"account {values['account']}" if "account" in values else f"namespace {values['namespace']}"

    async def run(reader: MeterReader) -> None:
        answer = await reader.usage(values | _times(start, end))
        match output:
            case "json":
                click.echo(_json(dumped(answer)))
            case "csv":
                click.echo(tables.usage_csv(answer), nl=False)
            case _:
                click.echo(tables.usage_table(of, answer))

    _ask(access, run)


def _times(start: str, end: str | None) -> dict[str, str]:
    now = datetime.now(UTC)
    until = now if end is None else period(end, now).end
    return {"from": period(start, now).start.isoformat(), "to": until.isoformat()}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _ask(access: dict[str, Any], run: Callable[[MeterReader], Awaitable[None]]) -> None:
    async def asking() -> None:
        # Never an option: a command line can be read by everybody on the machine.
        chosen = MeterAccess(token=os.environ.get("FAREBOX_TOKEN", ""), **access)
        async with MeterReader(chosen, await token_of(chosen)) as reader:
            await run(reader)

    asyncio.run(asking())
