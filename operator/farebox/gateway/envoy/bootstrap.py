"""Envoy's static configuration: a listener, the ext_proc filter, the clusters, and the usage log.

There is no xDS: everything is known when Envoy starts. A call without a decision has no cluster, so it ends
in 503 whatever fails. Tests validate the result with `envoy --mode validate`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farebox.gateway.envoy import TYPES, Json, http_filter, seconds
from farebox.gateway.envoy.clusters import decision_cluster, dns_cache, upstream_cluster
from farebox.gateway.envoy.cors import cors_filters, cors_policy
from farebox.gateway.envoy.local_replies import local_replies
from farebox.gateway.envoy.overload import http2_options, overload_manager
from farebox.gateway.envoy.response_filter import LOCAL_REPLY_HEADER, decompressors, response_filter
from farebox.gateway.envoy.response_filter import NAMESPACE as USAGE_NAMESPACE
from farebox.gateway.ext_proc import messages

DECISION_SOCKET: Final = "decide.sock"
ADMIN_SOCKET: Final = "admin.sock"
LOG_FILE: Final = "usage.log"
HEALTH_PATH: Final = "/healthz"
FLUSH_MILLISECONDS: Final = 20
"""The time until Envoy writes a line of the log; a SIGKILL before loses the line."""
_MANAGER: Final = "envoy.filters.network.http_connection_manager"
_CONNECTION_MANAGER: Final = f"{TYPES}filters.network.http_connection_manager.v3.HttpConnectionManager"


@dataclass(frozen=True, slots=True)
class EnvoySettings:
    """Settings of a gateway's Envoy.

    Args:
        directory: of the sockets and the log, shared with the decision process. The path of a socket has at
            most 107 bytes.
        max_body_bytes: the maximum size of a request body; a larger one gets 413.
        decision_seconds: the time limit of a decision; then the call gets 503.
        head_seconds, body_seconds: the time limits for receiving the headers and the whole request.
        idle_seconds: the idle timeout of a call.
        call_seconds: the maximum duration of a call. A longer call is ended and pays for what it got. Holds
            last longer (`spend.tracker.LOST_SECONDS`).
        memory_bytes: Envoy's memory; before it is exceeded, Envoy drops calls.
        connection_buffer_bytes: the buffer of one direction of a connection.
        http2_streams: the maximum of concurrent calls on an HTTP/2 connection.
        health_port: a second listener for HEALTH_PATH, which answers even under overload; 0: none.
        ca_file: the certificate authorities of TLS upstreams.
        certificate, key: PEM files for serving TLS; None: plain HTTP.
        response_headers: names of upstreams' headers that callers see, besides the usual ones.
        cors_origins: the origins of web pages that may call the gateway; "*": all.
    """

    directory: Path
    listen_host: str = "0.0.0.0"
    listen_port: int = 8080
    max_body_bytes: int = 16 * 2**20
    decision_seconds: float = 2.0
    head_seconds: float = 10.0
    body_seconds: float = 60.0
    idle_seconds: float = 900.0
    call_seconds: float = 3600.0
    memory_bytes: int = 2 * 2**30
    connection_buffer_bytes: int = 64 * 2**10
    http2_streams: int = 100
    health_port: int = 0
    ca_file: Path = Path("/etc/ssl/certs/ca-certificates.crt")
    certificate: Path | None = None
    key: Path | None = None
    response_headers: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()

    @property
    def decision_socket(self) -> Path:
        """The socket of the decision process."""
        return self.directory / DECISION_SOCKET

    @property
    def admin_socket(self) -> Path:
        """The socket of Envoy's admin interface."""
        return self.directory / ADMIN_SOCKET

    @property
    def log_file(self) -> Path:
        """The usage log."""
        return self.directory / LOG_FILE


def command(envoy: Path | str, config: Path, concurrency: int) -> list[str]:
    """Envoy's command line. The log is flushed often and in small pieces."""
    return [
        str(envoy),
        *("--config-path", str(config), "--concurrency", str(concurrency), "--log-level", "warning"),
        *("--file-flush-interval-msec", str(FLUSH_MILLISECONDS), "--file-flush-min-size-kb", "1"),
        *("--drain-time-s", "1", "--drain-strategy", "immediate"),
        *("--use-dynamic-base-id", "--skip-hot-restart-parent-stats"),
    ]


def render(settings: EnvoySettings) -> str:
    """The bootstrap as JSON, which is also YAML."""
    return json.dumps(bootstrap(settings), indent=1)


def bootstrap(settings: EnvoySettings) -> Json:
    """The bootstrap."""
    return {
        "node": {"id": "farebox-gateway", "cluster": "farebox-gateway"},
        "admin": {
            "address": {"pipe": {"path": str(settings.admin_socket), "mode": 0o660}},
            "ignore_global_conn_limit": True,
        },
        "overload_manager": overload_manager(settings.memory_bytes, settings.connection_buffer_bytes),
        "static_resources": {
            "listeners": [
                _listener(settings),
                *([_health_listener(settings)] if settings.health_port else []),
            ],
            "clusters": [
                decision_cluster(settings.decision_socket),
                upstream_cluster(messages.PLAIN_CLUSTER, None),
                upstream_cluster(messages.TLS_CLUSTER, settings.ca_file),
            ],
        },
    }


def _listener(settings: EnvoySettings) -> Json:
    chain: Json = {
        "filters": [{"name": _MANAGER, "typed_config": _connection_manager(settings)}],
    }
    if settings.certificate is not None and settings.key is not None:
        chain["transport_socket"] = _serve_tls(settings.certificate, settings.key)
    return {
        "name": "gateway",
        "address": {"socket_address": {"address": settings.listen_host, "port_value": settings.listen_port}},
        "filter_chains": [chain],
        "per_connection_buffer_limit_bytes": settings.connection_buffer_bytes,
    }


def _health_listener(settings: EnvoySettings) -> Json:
    """The listener for probes. It bypasses the overload manager: an overload is no reason to restart."""
    manager = {
        "@type": _CONNECTION_MANAGER,
        "stat_prefix": "health",
        "route_config": {"name": "nothing"},
        "http_filters": [_health(), http_filter("router", "router.v3.Router", {})],
    }
    address = {"address": settings.listen_host, "port_value": settings.health_port}
    return {
        "name": "health",
        "address": {"socket_address": address},
        "filter_chains": [{"filters": [{"name": _MANAGER, "typed_config": manager}]}],
        "bypass_overload_manager": True,
        "ignore_global_conn_limit": True,
    }


def _connection_manager(settings: EnvoySettings) -> Json:
    return {
        "@type": _CONNECTION_MANAGER,
        "stat_prefix": "gateway",
        "server_name": "farebox",
        # The peer is the connection's address; X-Forwarded-For reaches the rules unchanged.
        "use_remote_address": True,
        "skip_xff_append": True,
        "always_set_request_id_in_response": True,
        "normalize_path": True,
        # A base URL that ends with a slash gives "//v1/...".
        "merge_slashes": True,
        "request_headers_timeout": seconds(settings.head_seconds),
        "request_timeout": seconds(settings.body_seconds),
        "stream_idle_timeout": seconds(settings.idle_seconds),
        "http2_protocol_options": http2_options(settings.connection_buffer_bytes, settings.http2_streams),
        "common_http_protocol_options": {
            "idle_timeout": "300s",
            "max_stream_duration": seconds(settings.call_seconds),
            # An upstream may read x_a as x-a, and so a client's header as the gateway's.
            "headers_with_underscores_action": "DROP_HEADER",
        },
        "early_header_mutation_extensions": [_early_mutation()],
        "access_log": [_access_log(settings.log_file)],
        "local_reply_config": local_replies(),
        "route_config": _routes(settings),
        "http_filters": [
            _health(),
            *cors_filters(settings.cors_origins),
            http_filter("ext_proc", "ext_proc.v3.ExternalProcessor", _ext_proc(settings)),
            response_filter(settings.response_headers),
            *decompressors(),
            http_filter(
                "dynamic_forward_proxy",
                "dynamic_forward_proxy.v3.FilterConfig",
                {"dns_cache_config": dns_cache()},
            ),
            # Statistics by status code cost each call a dozen counters, and nothing reads them.
            http_filter(
                "router", "router.v3.Router", {"suppress_envoy_headers": True, "dynamic_stats": False}
            ),
        ],
    }


def _health() -> Json:
    """The health check. It needs no decision, and is 503 once Envoy drains."""
    match = {"name": ":path", "string_match": {"exact": HEALTH_PATH}}
    return http_filter(
        "health_check", "health_check.v3.HealthCheck", {"pass_through_mode": False, "headers": [match]}
    )


def _early_mutation() -> Json:
    """Remove the headers that only the gateway may set, before anything reads them."""
    peer = {"key": messages.PEER_HEADER, "value": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"}
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": f"{TYPES}http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [
                {"remove_on_match": {"key_matcher": {"prefix": messages.PRIVATE_PREFIX}}},
                {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}},
                # Usage is charged once per id, so a client must not choose it.
                {"remove": "x-request-id"},
                {"append": {"header": peer, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}},
            ],
        },
    }


def _ext_proc(settings: EnvoySettings) -> Json:
    return {
        "grpc_service": {
            "envoy_grpc": {"cluster_name": "decision", "skip_envoy_headers": True},
            "timeout": "0s",
        },
        "failure_mode_allow": False,
        "status_on_error": {"code": "ServiceUnavailable"},
        "processing_mode": {
            "request_header_mode": "SEND",
            "request_body_mode": "BUFFERED",
            "request_trailer_mode": "SKIP",
            "response_header_mode": "SKIP",
            "response_body_mode": "NONE",
            "response_trailer_mode": "SKIP",
        },
        "message_timeout": seconds(settings.decision_seconds),
        "mutation_rules": {"allow_all_routing": {"value": True}},
        "allow_content_length_header": True,
        "metadata_options": {"receiving_namespaces": {"untyped": [messages.LABELS, messages.ANSWER]}},
    }


def _routes(settings: EnvoySettings) -> Json:
    """Routes to the cluster that the decision names. Without a decision there is no cluster."""
    return {
        "name": "calls",
        "request_headers_to_remove": [
            *(messages.CLUSTER_HEADER, messages.PEER_HEADER),
            # Upstreams of other operators do not need the addresses of clients.
            *("x-forwarded-for", "x-envoy-external-address"),
        ],
        # Only Envoy's own replies have it.
        "response_headers_to_remove": [LOCAL_REPLY_HEADER],
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                **cors_policy(settings.cors_origins),
                "request_body_buffer_limit": settings.max_body_bytes,
                "routes": [_route(settings)],
            }
        ],
    }


def _route(settings: EnvoySettings) -> Json:
    return {
        "match": {"prefix": "/"},
        "route": {
            "cluster_header": messages.CLUSTER_HEADER,
            "timeout": "0s",
            "idle_timeout": seconds(settings.idle_seconds),
            # Only requests that cannot have reached a model, so no call is made twice.
            "retry_policy": {
                "retry_on": "connect-failure,refused-stream,reset-before-request",
                "num_retries": 4,
                "retry_back_off": {"base_interval": "0.1s", "max_interval": "0.8s"},
            },
        },
    }


def _access_log(log_file: Path) -> Json:
    """One JSON line per forwarded call. Keys are sorted and "at" is first: `usage.parse` relies on it."""
    labels = {"filter": messages.LABELS, "path": [{"key": "labels"}], "value": {"present_match": True}}
    return {
        "name": "envoy.access_loggers.file",
        "filter": {"metadata_filter": {"matcher": labels, "match_if_key_not_found": False}},
        "typed_config": {
            "@type": f"{TYPES}access_loggers.file.v3.FileAccessLog",
            "path": str(log_file),
            "log_format": {
                "json_format": {
                    "at": "%EMIT_TIME(%s.%6f)%",
                    "details": "%RESPONSE_CODE_DETAILS%",
                    "first": "%RESPONSE_DURATION%",
                    "flags": "%RESPONSE_FLAGS%",
                    "id": "%REQ(X-REQUEST-ID)%",
                    "labels": f"%DYNAMIC_METADATA({messages.LABELS}:labels)%",
                    "ms": "%DURATION%",
                    "sent": "%BYTES_SENT%",
                    "status": "%RESPONSE_CODE%",
                    "upstream": "%UPSTREAM_WIRE_BYTES_SENT%",
                    "usage": f"%DYNAMIC_METADATA({USAGE_NAMESPACE})%",
                }
            },
        },
    }


def _serve_tls(certificate: Path, key: Path) -> Json:
    pair = {"certificate_chain": {"filename": str(certificate)}, "private_key": {"filename": str(key)}}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{TYPES}transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"tls_certificates": [pair], "alpn_protocols": ["h2", "http/1.1"]},
        },
    }
