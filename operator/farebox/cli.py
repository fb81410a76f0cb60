"""The command line of all processes (`farebox --help` lists them). It parses and wires, nothing else.

Each command imports its modules when it runs, so that `farebox crds` does not load a web server.
"""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from farebox import __version__
from farebox.cli_reports import commands as reports
from farebox.errors import FareboxError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="farebox")
def cli() -> None:
    """Sells LLM inference on your own Kubernetes cluster."""


cli.add_command(reports.statement)
cli.add_command(reports.usage)
cli.add_command(reports.calls)
cli.add_command(reports.refusals)


def main() -> None:
    """The entry point. A FareboxError is printed as one line, without a traceback."""
    try:
        cli()
    except FareboxError as error:
        click.echo(f"farebox: {error}", err=True)
        sys.exit(1)


@cli.command()
def operator() -> None:
    """Turn kinds, balances and Deployments into phases and replicas. Settings: FAREBOX_* variables."""
    from farebox.controller.operator import Operator
    from farebox.kube.client import KubeClient
    from farebox.logs import configure
    from farebox.meterapi.client import MeterClient
    from farebox.settings import OperatorSettings

    settings = OperatorSettings.load()
    configure(settings.log_level, settings.log_format)

    async def run() -> None:
        client = await KubeClient.connect(settings.kubeconfig)
        ledger = MeterClient(settings.meter_url, settings.meter_token_file)
        try:
            await Operator(settings, client, ledger).run()
        finally:
            await ledger.close()
            await client.close()

    _run(run())


@cli.command()
def meter() -> None:
    """Serve the ledger: usage, top-ups, balances, the feed of changes. Settings: FAREBOX_* variables."""
    from farebox.logs import configure
    from farebox.meter.server import run
    from farebox.settings import MeterSettings

    settings = MeterSettings.load()
    configure(settings.log_level, settings.log_format)
    _run(_until_signal(lambda stop: run(settings, stop)))


@cli.command()
@click.option("--write-envoy-config", is_flag=True, help="Write Envoy's configuration and exit.")
@click.option("--parent", default=0, help="Process ID of the parent; exit when it is gone. 0: do not check.")
def gateway(write_envoy_config: bool, parent: int) -> None:
    """Decide each call for Envoy, and report its usage. Settings: FAREBOX_* variables."""
    from farebox.gateway import process
    from farebox.gateway.envoy.process import write_config
    from farebox.logs import configure
    from farebox.settings import GatewaySettings

    settings = GatewaySettings.load()
    configure(settings.log_level, settings.log_format)
    if write_envoy_config:
        click.echo(write_config(process.envoy_settings(settings)))
    else:
        _run(_until_signal(lambda stop: process.run(settings, stop), parent))


@cli.command()
@click.option("--concurrency", default=2, show_default=True, help="Worker threads.")
def envoy(concurrency: int) -> None:
    """Run Envoy in place of this process, with the configuration in FAREBOX_GATEWAY_DIRECTORY."""
    import os

    from farebox.gateway.envoy.bootstrap import command
    from farebox.gateway.envoy.process import config_path, find
    from farebox.gateway.process import envoy_settings
    from farebox.settings import GatewaySettings

    arguments = command(find(), config_path(envoy_settings(GatewaySettings.load())), concurrency)
    os.execv(arguments[0], arguments)


@cli.command()
def up() -> None:
    """Run all of Farebox on a laptop: your kubeconfig, an SQLite file, loopback. Calls need an Envoy."""
    from farebox.logs import configure
    from farebox.up import UpSettings, run

    settings = UpSettings.load()
    configure(settings.log_level, settings.log_format)
    _run(run(settings))


@cli.command()
@click.option("--host", default="0.0.0.0", show_default=True)
@click.option("--port", default=8000, show_default=True)
@click.option("--model", default="simulated", show_default=True, help="The model's name; * accepts any.")
@click.option("--ttft-ms", default=20.0, show_default=True, help="Milliseconds to the first token.")
@click.option("--tokens-per-second", default=200.0, show_default=True, help="0: no limit.")
def simulator(host: str, port: int, model: str, ttft_ms: float, tokens_per_second: float) -> None:
    """Stand in for a model server: OpenAI-compatible, with real token counts, without a GPU."""
    from farebox.logs import configure
    from farebox.simulator import run

    configure("INFO", "json")
    _run(
        _until_signal(
            lambda stop: run(
                host=host,
                port=port,
                model=model,
                ttft_ms=ttft_ms,
                tokens_per_second=tokens_per_second,
                stop=stop,
            )
        )
    )


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@click.option("--check", is_flag=True, help="Change nothing; fail if the files differ.")
def crds(directory: Path | None, check: bool) -> None:
    """Print the CustomResourceDefinitions, or write them to DIRECTORY."""
    from farebox.api import schema

    if directory is None:
        click.echo("".join(schema.render_all().values()), nl=False)
    elif check:
        if differences := schema.check(directory):
            raise FareboxError("; ".join(differences) + f". Run: farebox crds {directory}")
    else:
        schema.write(directory)


@cli.group()
def ledger() -> None:
    """Work on a ledger's database."""


@ledger.command()
@click.argument("destination", type=click.Path(path_type=Path))
@click.option(
    "--url", envvar="FAREBOX_LEDGER_URL", default="sqlite:////var/lib/farebox/ledger.db", show_default=True
)
def backup(destination: Path, url: str) -> None:
    """Copy an SQLite ledger to the new file DESTINATION and verify the copy. A meter may run meanwhile."""
    from farebox.ledger.audit.backup import backup as run_backup

    report = run_backup(url, destination)
    click.echo(f"{destination}: {report}")
    if not report.ok:
        sys.exit(1)


@ledger.command()
@click.option(
    "--url", envvar="FAREBOX_LEDGER_URL", default="sqlite:////var/lib/farebox/ledger.db", show_default=True
)
def verify(url: str) -> None:
    """Recompute every balance from the first entry. Fails on any difference."""
    from farebox.ledger.audit.verify import verify as run_verify

    report = run_verify(url)
    click.echo(str(report))
    if not report.ok:
        sys.exit(1)


def _run(main_coroutine: Coroutine[Any, Any, None]) -> None:
    import uvloop

    try:
        uvloop.run(main_coroutine)
    except KeyboardInterrupt:
        sys.exit(130)


async def _until_signal(serve: Any, parent: int = 0) -> None:
    """Run a server until SIGTERM, SIGINT, or the end of process `parent`. It then finishes running work."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    watching = asyncio.create_task(_stop_with(parent, stop)) if parent else None
    try:
        await serve(stop)
    finally:
        if watching is not None:
            watching.cancel()


async def _stop_with(parent: int, stop: asyncio.Event) -> None:
    import structlog

    from farebox.parent_watchdog import until_orphaned

    await until_orphaned(parent)
    structlog.get_logger(__name__).warning("parent.gone", parent=parent)
    stop.set()
