"""The commands that report: statement, usage, calls, refusals. Options only: `run` is imported when used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from farebox.cli_reports import TIME_FORMS

DEFAULT_METER: Final = "http://127.0.0.1:8090"

_Command = Callable[..., None]
_ACCESS: Final = (
    click.option("--meter", envvar="FAREBOX_METER_URL", default=DEFAULT_METER, show_default=True),
    click.option("--token-file", type=click.Path(path_type=Path), help="Default: FAREBOX_TOKEN, the token."),
    click.option("--service-account", metavar="NS/NAME", help="Create a token for it with your kubeconfig."),
    click.option("--audience", envvar="FAREBOX_TOKEN_AUDIENCE", default="farebox-meter", show_default=True),
    click.option("--kubeconfig", envvar="FAREBOX_KUBECONFIG", type=click.Path(path_type=Path)),
    click.option(
        "-o", "--output", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True
    ),
)


def _with_access(command: _Command) -> _Command:
    for option in reversed(_ACCESS):
        command = option(command)
    return command


@click.command()
@click.argument("account", metavar="NAMESPACE/NAME")
@click.option("--from", "start", help=f"{TIME_FORMS}. Default: this month.")
@click.option("--to", "end", help="The same; a day or a month counts to its end. Default: now.")
@_with_access
def statement(account: str, start: str | None, end: str | None, output: str, **access: Any) -> None:
    """Opening balance, lines and closing balance of an account, by the time of posting (UTC)."""
    from farebox.cli_reports.run import show_statement

    show_statement(account, start, end, output, access)


_FILTERS: Final = (
    click.option("--account", metavar="NAMESPACE/NAME", help="What this account pays for."),
    click.option("--namespace", "-n", help="The services in this namespace."),
    click.option("--service", metavar="NAMESPACE/NAME", help="Only this service."),
    click.option("--model", help="Only this model."),
    click.option("--api-key", help="Only this key."),
)
_NAMES: Final = {"api_key": "apiKey", "group_by": "groupBy"}


def _with_filters(command: _Command) -> _Command:
    for option in reversed(_FILTERS):
        command = option(command)
    return command


def _parameters(options: dict[str, Any], *names: str) -> dict[str, str]:
    """Take these options, under the names that the API gives them; without those that are not set."""
    values = {_NAMES.get(name, name): options.pop(name) for name in names}
    return {name: str(value) for name, value in values.items() if value is not None and value != ""}


def _check_owner(values: dict[str, str]) -> None:
    if ("account" in values) == ("namespace" in values):
        raise click.UsageError("give either --account NAMESPACE/NAME or --namespace NAME")


@click.command()
@_with_filters
@click.option("--group-by", default="service,model", show_default=True, help="Any of service,model,apiKey.")
@click.option(
    "--bucket",
    type=click.Choice(["none", "minute", "hour", "day", "month"]),
    default="none",
    show_default=True,
)
@click.option("--from", "start", default="7d", show_default=True, help=f"{TIME_FORMS}.")
@click.option("--to", "end", help="The same; a day or a month counts to its end. Default: now.")
@_with_access
def usage(start: str, end: str | None, output: str, **options: Any) -> None:
    """Calls, tokens and charges of an account or a namespace, by the time of the calls (UTC)."""
    names = ("account", "namespace", "service", "model", "api_key", "group_by", "bucket")
    values = _parameters(options, *names)
    _check_owner(values)
    from farebox.cli_reports.run import show_usage

    show_usage(values, start, end, output, options)


@click.command()
@click.argument("request_id", required=False)
@_with_filters
@click.option("--status", type=click.IntRange(0, 999), help="Only answers with this HTTP status.")
@click.option("--estimated/--reported", default=None, help="Only calls with, or without, estimated tokens.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)
@click.option("--from", "start", default="24h", show_default=True, help=f"{TIME_FORMS}.")
@click.option("--to", "end", help="The same; a day or a month counts to its end. Default: now.")
@_with_access
def calls(request_id: str | None, start: str, end: str | None, output: str, **options: Any) -> None:
    """Calls of an account or a namespace, the newest first; with REQUEST_ID all that is stored of one."""
    limit, estimated = options.pop("limit"), options.pop("estimated")
    values = _parameters(options, "account", "namespace", "service", "model", "api_key", "status")
    _check_owner(values)
    if estimated is not None:
        values["estimated"] = str(estimated).lower()
    from farebox.cli_reports.run import show_call, show_calls

    if request_id is None:
        show_calls(values, start, end, limit, output, options)
    elif values.keys() - {"account", "namespace"}:
        raise click.UsageError("a look-up by REQUEST_ID takes --account or --namespace, and no filters")
    else:
        show_call(request_id, values, output, options)


@click.command()
@click.option("--namespace", "-n", help="The calls of keys in this namespace. Default: all calls.")
@click.option("--service", metavar="NAMESPACE/NAME", help="Only this service; it needs --namespace.")
@click.option("--api-key", help="Only this key.")
@click.option("--code", help="Only this code, such as rate_limit_exceeded.")
@click.option(
    "--bucket", type=click.Choice(["none", "minute", "hour", "day"]), default="none", show_default=True
)
@click.option("--from", "start", default="24h", show_default=True, help=f"{TIME_FORMS}.")
@click.option("--to", "end", help="The same; a day or a month counts to its end. Default: now.")
@_with_access
def refusals(start: str, end: str | None, output: str, **options: Any) -> None:
    """Calls that the gateway refused, counted by service, key and code."""
    values = _parameters(options, "namespace", "service", "api_key", "code", "bucket")
    from farebox.cli_reports.run import show_refusals

    show_refusals(values, start, end, output, options)
