"""Envoy's clusters: the decision process, and the upstreams that decisions name."""

from pathlib import Path
from typing import Final

from farebox.gateway.envoy import TYPES, Json


def decision_cluster(socket: Path) -> Json:
    """The cluster of the decision process."""
    address = {"pipe": {"path": str(socket)}}
    return {
        "name": "decision",
        "type": "STATIC",
        "connect_timeout": "0.5s",
        "circuit_breakers": _limits(),
        "typed_extension_protocol_options": _protocol(
            {
                "http2_protocol_options": {
                    "initial_stream_window_size": 1024 * 1024,
                    "initial_connection_window_size": 64 * 1024 * 1024,
                }
            }
        ),
        "load_assignment": {
            "cluster_name": "decision",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def upstream_cluster(name: str, ca_file: Path | None) -> Json:
    """A cluster of the upstreams of decisions: any "host:port", resolved in DNS on demand."""
    cluster: Json = {
        "name": name,
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "circuit_breakers": _limits(),
        # Shorter than the timeouts of model servers, so that no call uses a connection that just closes.
        "typed_extension_protocol_options": _protocol(
            {"http_protocol_options": {}},
            {
                "common_http_protocol_options": {"idle_timeout": "3s"},
                "upstream_http_protocol_options": {"auto_sni": True, "auto_san_validation": True},
            },
        ),
        "cluster_type": {
            "name": "envoy.clusters.dynamic_forward_proxy",
            "typed_config": {
                "@type": f"{TYPES}clusters.dynamic_forward_proxy.v3.ClusterConfig",
                "dns_cache_config": dns_cache(),
            },
        },
    }
    if ca_file is not None:
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{TYPES}transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": {
                    "validation_context": {"trusted_ca": {"filename": str(ca_file)}},
                    "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                },
            },
        }
    return cluster


_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def _protocol(explicit: Json, more: Json | None = None) -> Json:
    return {
        _HTTP_OPTIONS: {
            "@type": f"type.googleapis.com/{_HTTP_OPTIONS}",
            "explicit_http_config": explicit,
            **(more or {}),
        }
    }


def _limits() -> Json:
    """High limits: the handler admits calls, and Envoy's limits only protect its memory."""
    names = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    return {"thresholds": [dict.fromkeys(names, 50_000)]}


def dns_cache() -> Json:
    """The DNS cache, shared by the filter that waits for an address and the clusters that use it."""
    return {
        "name": "upstreams",
        "dns_lookup_family": "V4_PREFERRED",
        "dns_refresh_rate": "10s",
        "dns_failure_refresh_rate": {"base_interval": "0.5s", "max_interval": "2s"},
        "host_ttl": "300s",
        "max_hosts": 65_536,
    }
