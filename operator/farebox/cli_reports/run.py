"""Reads a report from the meter and prints it."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import click

from farebox.cli_reports import render, render_calls
from farebox.cli_reports.client import MeterAccess, meter
from farebox.cli_reports.periods import period
from farebox.domain.keys import ObjectKey
from farebox.errors import ConfigurationError
from farebox.meterapi.calls import MAX_CALLS, Call, CallPage
from farebox.meterapi.client import MeterClient
from farebox.meterapi.schema import to_json


def show_statement(
    account: str, start: str | None, end: str | None, output: str, access: dict[str, Any]
) -> None:
    """Print the statement of an account, by default from the beginning of this month."""

    async def show(client: MeterClient) -> None:
        try:
            key = ObjectKey.parse(account)
        except ValueError as error:
            raise ConfigurationError(f"Invalid account: {error}") from error
        params = _times(start or f"{datetime.now(UTC):%Y-%m}", end)
        if output == "csv":
            click.echo(await client.statement_csv(key, params), nl=False)
            return
        answer = await client.statement(key, params)
        click.echo(render.statement_table(answer) if output == "table" else _json(answer))

    _run(access, show)


def show_usage(
    values: dict[str, str], start: str, end: str | None, output: str, access: dict[str, Any]
) -> None:
    """Print usage. `values` are the parameters of GET /v1/usage without the times."""
    of = _owner(values)

    async def show(client: MeterClient) -> None:
        answer = await client.usage(values | _times(start, end))
        _echo(output, answer, lambda: render.usage_csv(answer), lambda: render.usage_table(of, answer))

    _run(access, show)


def show_calls(
    values: dict[str, str], start: str, end: str | None, limit: int, output: str, access: dict[str, Any]
) -> None:
    """Print at most `limit` calls, the newest first. `values` are the parameters of GET /v1/calls."""

    async def show(client: MeterClient) -> None:
        params = values | _times(start, end)
        calls: list[Call] = []
        cursor: str | None = ""
        while cursor is not None and len(calls) < limit:
            size = {"limit": str(min(limit - len(calls), MAX_CALLS))}
            page = await client.calls(params | size | ({"cursor": cursor} if cursor else {}))
            calls += page.calls
            cursor = page.next
        _echo(
            output,
            CallPage(page.start, page.end, tuple(calls), page.next),
            lambda: render_calls.calls_csv(calls),
            lambda: render_calls.calls_table(_owner(values), calls, has_more=cursor is not None),
        )

    _run(access, show)


def show_call(request_id: str, values: dict[str, str], output: str, access: dict[str, Any]) -> None:
    """Print the call with a request id. `values` has its account or namespace."""

    async def show(client: MeterClient) -> None:
        call = await client.call(request_id, values)
        _echo(output, call, lambda: render_calls.calls_csv([call]), lambda: render_calls.call_text(call))

    _run(access, show)


def show_refusals(
    values: dict[str, str], start: str, end: str | None, output: str, access: dict[str, Any]
) -> None:
    """Print refused calls. `values` are the parameters of GET /v1/refusals without the times."""
    of = f"namespace {values['namespace']}" if "namespace" in values else "all namespaces"

    async def show(client: MeterClient) -> None:
        answer = await client.refusals(values | _times(start, end))
        _echo(
            output,
            answer,
            lambda: render_calls.refusals_csv(answer),
            lambda: render_calls.refusals_table(of, answer),
        )

    _run(access, show)


def _echo(output: str, answer: Any, csv: Callable[[], str], table: Callable[[], str]) -> None:
    """Print an answer of the meter as JSON, CSV or a table."""
    match output:
        case "json":
            click.echo(_json(answer))
        case "csv":
            click.echo(csv(), nl=False)
        case _:
            click.echo(table())


def _owner(values: dict[str, str]) -> str:
    return f"account {values['account']}" if "account" in values else f"namespace {values['namespace']}"


def _times(start: str, end: str | None) -> dict[str, str]:
    now = datetime.now(UTC)
    until = now if end is None else period(end, now).end
    return {"from": period(start, now).start.isoformat(), "to": until.isoformat()}


def _json(answer: object) -> str:
    return json.dumps(json.loads(to_json(answer)), indent=2, ensure_ascii=False)


def _run(access: dict[str, Any], show: Callable[[MeterClient], Awaitable[None]]) -> None:
    async def run() -> None:
        # The token is never an option: every user of the machine can read a command line.
        async with meter(MeterAccess(token=os.environ.get("FAREBOX_TOKEN", ""), **access)) as client:
            await show(client)

    asyncio.run(run())
