"""The operator and the meter in one process with an SQLite ledger, and a gateway as a child process.

The operator accesses the ledger directly; the meter's HTTP API receives usage. This never runs beside an
installed Farebox, because two ledgers would disagree about every balance.
"""

import asyncio
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from farebox.controller.operator import Operator
from farebox.errors import ConfigurationError, NotFound
from farebox.kube.client import KubeClient
from farebox.kube.names import core_path, deployment_path
from farebox.ledger.engine import ADVANCE_SECONDS, Ledger
from farebox.meter.app import create_app
from farebox.meter.auth import KubeAuthenticator
from farebox.meter.metrics import MeterMetrics
from farebox.meter.requests import Meter
from farebox.ports import listen
from farebox.up.gateway import GatewayToken, gateway
from farebox.up.settings import UpSettings

OPERATOR_DEPLOYMENT: Final = "farebox-operator"
SHUTDOWN_SECONDS: Final = 5.0
"""The time that running requests to the API have at the end."""

log = structlog.get_logger(__name__)


async def run(settings: UpSettings) -> None:
    """Run until a signal arrives, or the operator or the gateway ends.

    Raises:
        ConfigurationError: namespaces or kinds are missing, Farebox is installed in the cluster, or a port is
            in use.
    """
    client = await KubeClient.connect(settings.kubeconfig)
    try:
        await _check_cluster(client, settings)
        _make_directory(settings.ledger_url)
        metrics = MeterMetrics()
        ledger = await Ledger.open(
            settings.ledger_url,
            on_commit=metrics.commit_seconds.observe,
            advance_seconds=ADVANCE_SECONDS,
        )
        try:
            await _serve(settings, client, ledger, metrics)
        finally:
            await ledger.close()
    finally:
        await client.close()


async def _serve(settings: UpSettings, client: KubeClient, ledger: Ledger, metrics: MeterMetrics) -> None:
    """Run the API, the gateway and the operator; if the operator or the gateway ends, all end."""
    authenticator = GatewayToken(
        KubeAuthenticator(client, settings.token_audience, settings.review_cache_seconds)
    )
    app = create_app(Meter(authenticator, metrics, ledger))
    runner = web.AppRunner(app, shutdown_timeout=SHUTDOWN_SECONDS, access_log=None)
    await runner.setup()
    try:
        await listen(runner, settings.listen_host, settings.meter_port, "FAREBOX_METER_PORT")
        log.info(
            "farebox.up",
            cluster=client.configuration.host,
            ledger=settings.ledger_url,
            usage=f"http://{settings.listen_host}:{settings.meter_port}/v1/events",
            health=f"http://{settings.listen_host}:{settings.listen_port}/healthz",
        )
        async with gateway(settings, authenticator.token) as ended:
            await _until_either_ends(Operator(settings, client, ledger), ended)
    finally:
        await runner.cleanup()


async def _until_either_ends(operator: Operator, gateway_ended: asyncio.Task[None]) -> None:
    """Wait for the first of them to end. Raises its error, if it has one."""
    operating = asyncio.create_task(operator.run())
    await asyncio.wait({operating, gateway_ended}, return_when=asyncio.FIRST_COMPLETED)
    if not operating.done():
        operating.cancel()
        await asyncio.gather(operating, return_exceptions=True)
        gateway_ended.result()
    else:
        operating.result()


async def _check_cluster(client: KubeClient, settings: UpSettings) -> None:
    """Check the namespaces, and that Farebox is not installed. Raises ConfigurationError."""
    for namespace in (settings.system_namespace, settings.backend_namespace):
        try:
            await client.get(core_path("namespaces", name=namespace))
        except NotFound as error:
            raise ConfigurationError(
                f"namespace {namespace} is missing in the cluster at {client.configuration.host}; "
                "run: kubectl apply -f manifests/base/namespaces.yaml"
            ) from error
    try:
        installed = await client.get(deployment_path(settings.system_namespace, OPERATOR_DEPLOYMENT))
    except NotFound:
        return
    if installed["spec"].get("replicas", 1) > 0:
        raise ConfigurationError(
            f"Farebox is installed in the cluster at {client.configuration.host}, and two ledgers would "
            f"disagree: scale Deployment {settings.system_namespace}/{OPERATOR_DEPLOYMENT} to 0 replicas, or "
            "use another cluster"
        )


def _make_directory(ledger_url: str) -> None:
    """Create the directory of an SQLite file, accessible only to its owner; other URLs need none."""
    prefix = "sqlite:///"
    if ledger_url.startswith(prefix):
        Path(ledger_url.removeprefix(prefix)).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
