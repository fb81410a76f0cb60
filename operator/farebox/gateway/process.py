"""`farebox gateway`: puts the parts together, starts them, and ends them without losing a call.

cluster and meter -> snapshot, spend -> Handler.handle <- Envoy;  Envoy's log -> settlement and the meter.
"""

import asyncio
import gc
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from farebox import metrics
from farebox.clock import utc_now
from farebox.domain.admission.addresses import Network, parse_networks
from farebox.errors import ConfigurationError
from farebox.gateway import transport
from farebox.gateway.cluster import ClusterWatch
from farebox.gateway.credentials import Credentials
from farebox.gateway.envoy import process as envoy_process
from farebox.gateway.envoy.bootstrap import DECISION_SOCKET, EnvoySettings
from farebox.gateway.feed import spend_feed
from farebox.gateway.handler import Handler, service_address
from farebox.gateway.ratelimit.base import Counters
from farebox.gateway.ratelimit.fallback import EvenShareCounters, FallbackCounters
from farebox.gateway.ratelimit.quota_sync import QuotaSync
from farebox.gateway.ratelimit.valkey import ValkeyCounters
from farebox.gateway.settlement import Settlement
from farebox.gateway.snapshot import GatewaySnapshot
from farebox.gateway.spend.credit_leases import CreditLeases
from farebox.gateway.spend.tracker import SpendTracker
from farebox.health import serve_health
from farebox.kube.client import KubeClient
from farebox.meterapi.client import MeterClient
from farebox.meterapi.feed import FeedReader
from farebox.settings import GatewaySettings

log = structlog.get_logger(__name__)
_SOCKET_PATH = 107
"""Bytes of a Unix socket's path, on Linux."""
_GARBAGE_THRESHOLDS = (50_000, 20, 50)
"""Calls make no cycles; looking for some among thousands of services would hold up all that are under way."""
_SILENT_SECONDS = 120.0
"""An API server that was not heard for longer: what the gateway knows of keys and services may be old."""


def envoy_settings(settings: GatewaySettings) -> EnvoySettings:
    """What this gateway's Envoy is told.

    Raises:
        ConfigurationError: the directory's name is too long for a socket in it.
    """
    if len(str(settings.gateway_directory / DECISION_SOCKET)) > _SOCKET_PATH:
        raise ConfigurationError(
            f"FAREBOX_GATEWAY_DIRECTORY={settings.gateway_directory} is too long for a socket in it: use a "
            f"path of at most {_SOCKET_PATH - len(DECISION_SOCKET) - 1} characters"
        )
    return EnvoySettings(
        directory=settings.gateway_directory,
        listen_host=settings.listen_host,
        listen_port=settings.listen_port,
        max_body_bytes=settings.max_body_bytes,
        memory_bytes=settings.envoy_memory_bytes,
        connection_buffer_bytes=settings.connection_buffer_bytes,
        http2_streams=settings.http2_streams,
        call_seconds=settings.call_seconds,
        health_port=settings.envoy_health_port,
        ca_file=settings.ca_file,
        certificate=settings.tls_certificate,
        key=settings.tls_key,
    )


async def run(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; then drain Envoy, send the rest of the usage, and return.

    Raises:
        ConfigurationError: a setting cannot work, such as a port that is taken, or there is no Envoy where
            one was asked for.
        OSError: the socket cannot be had.
    """
    identity = settings.identity or socket.gethostname()
    # Another process is another source: what an earlier one held for its calls is not this one's to spend.
    source = f"{identity}/{uuid.uuid4().hex[:12]}"
    async with AsyncExitStack() as stack:
        client = await KubeClient.connect(settings.kubeconfig)
        stack.push_async_callback(client.close)
        ledger = await stack.enter_async_context(MeterClient(settings.meter_url, settings.meter_token_file))
        counters = _counters(settings)
        stack.push_async_callback(counters.close)
        gate = assembled(
            CreditLeases(source, ledger.lease_credit, call_seconds=settings.call_seconds),
            counters,
            Credentials(client, settings.backend_namespace),
            _backend_address(settings),
            balance_max_age_seconds=settings.balance_max_age_seconds,
            trusted_proxies=_trusted(settings.trusted_proxies),
        )
        snapshot, spend, leases, settlement = gate.snapshot, gate.spend, gate.leases, gate.settlement
        watch, feed = ClusterWatch(client, snapshot), spend_feed(ledger, spend, leases.forget)
        quotas = QuotaSync(ledger, snapshot, counters, utc_now)
        _show(spend, leases, watch, counters)
        health = await serve_health(
            settings.listen_host,
            settings.health_port,
            "FAREBOX_HEALTH_PORT",
            list,
            lambda: _unready(gate, feed, watch),
        )
        stack.push_async_callback(health.cleanup)
        if settings.run_envoy:
            await stack.enter_async_context(envoy_process.running(envoy_settings(settings), told=stop.is_set))
        works = (
            watch.run(lambda: primed(gate)),
            feed.run(),
            settlement.run(),
            leases.run(),
            quotas.run(gate.ready),
        )
        async with _working(*works, stop=stop):
            log.info("gateway.started", source=source, meter=settings.meter_url)
            await transport.serve(
                gate.handle,
                _transport_settings(settings, identity),
                stop,
                on_usage=settlement.on_usage,
                on_acknowledged=settlement.acknowledged,
                on_unread=settlement.abandoned,
            )
            await leases.close()
    log.info("gateway.stopped")


def assembled(
    leases: CreditLeases,
    counters: Counters,
    credentials: Credentials,
    backend_address: Callable[[str, int], str],
    *,
    balance_max_age_seconds: float,
    trusted_proxies: Sequence[Network] = (),
) -> Handler:
    """A gate with what it decides by, knowing nothing yet. Arguments: see Handler and GatewaySettings."""
    spend = SpendTracker(balance_max_age_seconds, call_seconds=leases.call_seconds)
    snapshot = GatewaySnapshot(spend)
    return Handler(
        snapshot=snapshot,
        spend=spend,
        leases=leases,
        counters=counters,
        settlement=Settlement(snapshot, spend, leases, counters, utc_now),
        credentials=credentials,
        backend_address=backend_address,
        trusted_proxies=trusted_proxies,
    )


def _transport_settings(settings: GatewaySettings, identity: str) -> transport.TransportSettings:
    return transport.TransportSettings(
        envoy=envoy_settings(settings),
        source=identity,
        meter_url=settings.meter_url,
        meter_token_file=settings.meter_token_file,
        linger_seconds=settings.linger_seconds,
        drain_seconds=settings.drain_seconds,
    )


def primed(gate: Handler) -> None:
    """The cluster was read. What is known now stays, and need not be looked at by the garbage collector."""
    gc.set_threshold(*_GARBAGE_THRESHOLDS)
    gc.collect()
    gc.freeze()
    gate.ready.set()


@asynccontextmanager
async def _working(*works: Any, stop: asyncio.Event) -> AsyncIterator[None]:
    """Run these inside the `async with`. One that ends by itself has a fault: then all is stopped."""
    tasks = [asyncio.create_task(work) for work in works]
    for task in tasks:
        task.add_done_callback(lambda _: stop.set())
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _show(spend: SpendTracker, leases: CreditLeases, watch: ClusterWatch, counters: Counters) -> None:
    """Let /metrics ask what this process holds, and how old is what it knows."""

    def feed_age() -> float:
        return -1.0 if spend.updated_at is None else spend.clock() - spend.updated_at

    metrics.GATEWAY_HOLDS.set_function(lambda: leases.open_holds)
    metrics.GATEWAY_FEED_AGE.set_function(feed_age)
    metrics.GATEWAY_WATCH_AGE.set_function(lambda: watch.age)
    metrics.GATEWAY_COUNTERS_AWAY.set_function(
        lambda: float(isinstance(counters, FallbackCounters) and counters.away)
    )


def _unready(gate: Handler, feed: FeedReader, watch: ClusterWatch) -> list[str]:
    """What keeps this replica from deciding calls as it should; others are better then."""
    problems = []
    if not gate.ready.is_set():
        problems.append("keys, services and models were not listed yet")
    elif watch.age > _SILENT_SECONDS:
        problems.append(f"the API server was not heard for {watch.age:.0f} s")
    if not feed.current.is_set():
        problems.append("the meter was not heard yet")
    return problems


def _counters(settings: GatewaySettings) -> Counters:
    if not settings.valkey_url:
        return EvenShareCounters(settings.replicas)
    shared = ValkeyCounters(settings.valkey_url, settings.valkey_timeout_seconds)
    return FallbackCounters(shared, settings.replicas)


def _backend_address(settings: GatewaySettings) -> Callable[[str, int], str]:
    if not settings.backend_address:
        return service_address(settings.backend_namespace)
    return lambda name, port: settings.backend_address


def _trusted(text: str) -> Sequence[Network]:
    ranges = [part.strip() for part in text.split(",") if part.strip()]
    networks = parse_networks(ranges)
    if networks is None:
        raise ConfigurationError(f"FAREBOX_TRUSTED_PROXIES={text!r} is no list of address ranges")
    return networks


def write_envoy_config(settings: GatewaySettings) -> str:
    """Write Envoy's configuration into the shared directory; returns its path."""
    return str(envoy_process.write_config(envoy_settings(settings)))


def config_path(settings: GatewaySettings) -> Path:
    """Where it was written."""
    return envoy_process.config_path(envoy_settings(settings))
