"""The operator and the meter in one process, with the ledger in one SQLite file, and a gateway beside it.

The operator talks to the ledger directly; the meter's HTTP API is there for usage to be posted. It never runs
beside an installed Farebox: two ledgers would disagree about every balance.
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
"""Running requests to the API get so long to finish."""

log = structlog.get_logger(__name__)


async def run(settings: UpSettings) -> None:
    """Run until a signal comes, or the operator ends for one of its own reasons.

    Raises:
        ConfigurationError: namespaces or kinds are missing, Farebox is installed in the cluster, or a port is
            taken.
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
    """The API and the gateway beside the operator; the end of either is the end of all."""
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
    """Raises what ended it, if it was not a signal."""
    operating = asyncio.create_task(operator.run())
    await asyncio.wait({operating, gateway_ended}, return_when=asyncio.FIRST_COMPLETED)
    if not operating.done():
        operating.cancel()
        await asyncio.gather(operating, return_exceptions=True)
        gateway_ended.result()
    else:
        operating.result()


async def _check_cluster(client: KubeClient, settings: UpSettings) -> None:
    """Refuse where it could not work, or would do harm."""
    for namespace in (settings.system_namespace, settings.backend_namespace):
        try:
            await client.get(core_path("namespaces", name=namespace))
        except NotFound as error:
            raise ConfigurationError(
                f"the namespace {namespace} is missing in the cluster at {client.configuration.host}; "
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
    """The directory of an SQLite file, for its owner alone; other URLs need none."""
    prefix = "sqlite:///"
    if ledger_url.startswith(prefix):
        Path(ledger_url.removeprefix(prefix)).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
