"""`farebox gateway`: assembles the parts, starts them, and stops them without losing a call.

cluster and meter -> snapshot, spend -> Handler.handle <- Envoy;  Envoy's log -> settlement and the meter.
"""

import asyncio
import gc
import re
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
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
from farebox.gateway.ext_proc.messages import PRIVATE_PREFIX
from farebox.gateway.feed import spend_feed
from farebox.gateway.handler import Handler, service_address
from farebox.gateway.lookups.answers import LookupMeter
from farebox.gateway.ratelimit.base import Counters
from farebox.gateway.ratelimit.fallback import EvenShareCounters, FallbackCounters
from farebox.gateway.ratelimit.quota_sync import QuotaSync
from farebox.gateway.ratelimit.valkey import ValkeyCounters
from farebox.gateway.request.headers import forwarded_names
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
"""The maximum length of a Unix socket's path on Linux, in bytes."""
_GARBAGE_THRESHOLDS = (50_000, 20, 50)
"""Calls create no reference cycles, and a collection over thousands of services would delay all calls."""
_STALE_WATCH_SECONDS = 120.0
"""After this silence of the API server, keys and services may be out of date."""


def envoy_settings(settings: GatewaySettings) -> EnvoySettings:
    """The settings of this gateway's Envoy.

    Raises:
        ConfigurationError: the path of the directory is too long for a socket in it.
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
        cors_origins=_cors_origins(settings.cors_origins),
        response_headers=_response_headers(settings.response_headers),
    )


async def run(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; then drain Envoy, send the rest of the usage, and return.

    Raises:
        ConfigurationError: a setting cannot work, such as a port in use, or Envoy is missing.
        OSError: the socket cannot be created.
    """
    identity = settings.identity or socket.gethostname()
    # Every process is a source of its own, because the leases of an earlier one belong to its calls.
    source = f"{identity}/{uuid.uuid4().hex[:12]}"
    async with AsyncExitStack() as stack:
        client = await KubeClient.connect(settings.kubeconfig)
        stack.push_async_callback(client.close)
        ledger = await stack.enter_async_context(MeterClient(settings.meter_url, settings.meter_token_file))
        counters = _counters(settings)
        stack.push_async_callback(counters.close)
        handler = assembled(
            CreditLeases(source, ledger.lease_credit, call_seconds=settings.call_seconds),
            counters,
            Credentials(client, settings.backend_namespace),
            _backend_address(settings),
            balance_max_age_seconds=settings.balance_max_age_seconds,
            trusted_proxies=_trusted(settings.trusted_proxies),
            request_headers=_request_headers(settings.request_headers),
            meter=ledger,
        )
        snapshot, spend, leases, settlement = (
            handler.snapshot,
            handler.spend,
            handler.leases,
            handler.settlement,
        )
        watch, feed = ClusterWatch(client, snapshot), spend_feed(ledger, spend, leases.forget)
        quotas = QuotaSync(ledger, snapshot, counters, utc_now)
        _export_metrics(spend, leases, watch, counters)
        health = await serve_health(
            settings.listen_host,
            settings.health_port,
            "FAREBOX_HEALTH_PORT",
            list,
            lambda: _unready(handler, feed, watch),
        )
        stack.push_async_callback(health.cleanup)
        if settings.run_envoy:
            envoy = envoy_process.running(envoy_settings(settings), stop_requested=stop.is_set)
            await stack.enter_async_context(envoy)
        tasks = (
            watch.run(lambda: primed(handler)),
            feed.run(),
            settlement.run(),
            leases.run(),
            quotas.run(handler.ready),
            handler.refusals.run(ledger, source),
        )
        async with _running(*tasks, stop=stop):
            log.info("gateway.started", source=source, meter=settings.meter_url)
            await transport.serve(
                handler.handle,
                _transport_settings(settings, identity),
                ledger,
                stop,
                on_usage=settlement.on_usage,
                on_acknowledged=settlement.acknowledged,
                on_abandoned=settlement.abandoned,
                on_refused=handler.count_refusal,
            )
            await handler.refusals.close(ledger, source)
            await handler.lookups.cache.close()
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
    request_headers: frozenset[str] = frozenset(),
    meter: LookupMeter | None = None,
) -> Handler:
    """A Handler with its parts, without any state yet. Arguments: see Handler and GatewaySettings."""
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
        request_headers=request_headers,
        meter=meter,
    )


def _transport_settings(settings: GatewaySettings, identity: str) -> transport.TransportSettings:
    return transport.TransportSettings(
        envoy=envoy_settings(settings),
        source=identity,
        linger_seconds=settings.linger_seconds,
        drain_seconds=settings.drain_seconds,
    )


def primed(handler: Handler) -> None:
    """Accept calls once the cluster is read, and exclude its objects from garbage collection."""
    gc.set_threshold(*_GARBAGE_THRESHOLDS)
    gc.collect()
    gc.freeze()
    handler.ready.set()


@asynccontextmanager
async def _running(*coroutines: Any, stop: asyncio.Event) -> AsyncIterator[None]:
    """Run coroutines inside the `async with`. If one ends by itself, it has failed, and `stop` is set."""
    tasks = [asyncio.create_task(each) for each in coroutines]
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


def _export_metrics(
    spend: SpendTracker, leases: CreditLeases, watch: ClusterWatch, counters: Counters
) -> None:
    """Export what this process holds, and the age of its state."""

    def feed_age() -> float:
        return -1.0 if spend.updated_at is None else spend.clock() - spend.updated_at

    metrics.GATEWAY_HOLDS.set_function(lambda: leases.open_holds)
    metrics.GATEWAY_FEED_AGE.set_function(feed_age)
    metrics.GATEWAY_WATCH_AGE.set_function(lambda: watch.age)
    metrics.GATEWAY_COUNTERS_AWAY.set_function(
        lambda: float(isinstance(counters, FallbackCounters) and counters.away)
    )


def _unready(handler: Handler, feed: FeedReader, watch: ClusterWatch) -> list[str]:
    """The reasons why this replica should not receive calls."""
    problems = []
    if not handler.ready.is_set():
        problems.append("Keys, services and models are not listed yet")
    elif watch.age > _STALE_WATCH_SECONDS:
        problems.append(f"The API server has not responded for {watch.age:.0f} s")
    if not feed.current.is_set():
        problems.append("The meter has not responded yet")
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


def _cors_origins(text: str) -> tuple[str, ...]:
    origins = tuple(part.strip() for part in text.split(",") if part.strip())
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s?#@]+", origin):
            raise ConfigurationError(
                f"FAREBOX_CORS_ORIGINS={text!r} is not a list of origins such as https://app.example.com"
            )
    return origins


def _response_headers(text: str) -> tuple[str, ...]:
    names = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    for name in names:
        if not re.fullmatch(r"[a-z0-9!#$&'*+.^_|~-]+", name) or name.startswith(PRIVATE_PREFIX):
            raise ConfigurationError(f"FAREBOX_RESPONSE_HEADERS={text!r} is not a list of header names")
    return names


def _request_headers(text: str) -> frozenset[str]:
    try:
        return forwarded_names(text)
    except ValueError as error:
        raise ConfigurationError(f"FAREBOX_REQUEST_HEADERS={text!r}: {error}") from None


def _trusted(text: str) -> Sequence[Network]:
    ranges = [part.strip() for part in text.split(",") if part.strip()]
    networks = parse_networks(ranges)
    if networks is None:
        raise ConfigurationError(f"FAREBOX_TRUSTED_PROXIES={text!r} is not a list of address ranges")
    return networks
