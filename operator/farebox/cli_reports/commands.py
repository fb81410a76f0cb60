"""The commands `farebox statement` and `farebox usage`: options only. `run` is imported when it is needed."""

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


@click.command()
@click.option("--account", metavar="NAMESPACE/NAME", help="The usage that this account pays for.")
@click.option("--namespace", "-n", help="The usage of the services in this namespace.")
@click.option("--service", metavar="NAMESPACE/NAME", help="Only this service.")
@click.option("--model", help="Only this model.")
@click.option("--api-key", help="Only this key.")
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
    names = {"api_key": "apiKey", "group_by": "groupBy"}
    parameters = ("account", "namespace", "service", "model", "api_key", "group_by", "bucket")
    values = {names.get(name, name): options.pop(name) for name in parameters}
    if (values["account"] is None) == (values["namespace"] is None):
        raise click.UsageError("give either --account NAMESPACE/NAME or --namespace NAME")
    from farebox.cli_reports.run import show_usage

    show_usage({name: value for name, value in values.items() if value}, start, end, output, options)
