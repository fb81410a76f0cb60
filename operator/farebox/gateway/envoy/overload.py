"""Envoy's memory limits and its overload actions, after Envoy's guide "Configuring Envoy as an edge proxy".

Everything follows from Envoy's memory and the buffer of one connection. As the heap fills, in this order:
large HTTP/2 streams are reset, the largest first; free pages return to the system; new requests get 503;
HTTP/1 uploads get 503 and are closed (docs/decisions/417).
"""

from typing import Final

from farebox.gateway.envoy import Json

REFRESH_SECONDS: Final = 0.1
"""The interval between checks of the heap; a fast network fills about 100 MB of it in between."""
_HEAP_SHARE: Final = (7, 8)
"""The share of the memory; the rest is for code, stacks, the kernel, and growth between two checks."""
_PER_CONNECTION: Final = 4
"""Buffers that a connection can fill if its client does not read: its own, its upstream's, and as much again
in filters and objects."""
_LEAST_WINDOW: Final = 65_535
"""The smallest window that Envoy accepts for HTTP/2."""

_HEAP: Final = "envoy.resource_monitors.fixed_heap"
_CONNECTIONS: Final = "envoy.resource_monitors.global_downstream_max_connections"
_MONITORS: Final = "type.googleapis.com/envoy.extensions.resource_monitors."
_ACTIONS: Final = "envoy.overload_actions."
_TRACKED_POWER_OF_TWO: Final = 20
"""Streams that hold at least 1 MiB are tracked by their size."""


def max_connections(memory_bytes: int, connection_buffer_bytes: int) -> int:
    """The number of connections that fit into memory even if no client reads.

    >>> max_connections(2 * 2**30, 64 * 2**10)
    8192
    """
    return max(1, memory_bytes // (_PER_CONNECTION * connection_buffer_bytes))


def overload_manager(memory_bytes: int, connection_buffer_bytes: int) -> Json:
    """The overload manager of the bootstrap."""
    share, whole = _HEAP_SHARE
    return {
        "refresh_interval": f"{REFRESH_SECONDS:g}s",
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": _TRACKED_POWER_OF_TWO},
        "resource_monitors": [
            _monitor(
                _HEAP, "fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=memory_bytes * share // whole
            ),
            _monitor(
                _CONNECTIONS,
                "downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=max_connections(memory_bytes, connection_buffer_bytes),
            ),
        ],
        "actions": [
            _action(
                "reset_high_memory_stream",
                {"scaled": {"scaling_threshold": 0.8, "saturation_threshold": 0.92}},
            ),
            _action(
                "shrink_heap",
                _above(0.85),
                {
                    "@type": "type.googleapis.com/envoy.config.overload.v3.ShrinkHeapConfig",
                    "timer_interval": "1s",
                    "max_unfreed_memory_bytes": memory_bytes // 64,
                },
            ),
            _action("stop_accepting_requests", _above(0.92)),
        ],
        "loadshed_points": [
            {
                "name": "envoy.load_shed_points.http1_server_abort_dispatch",
                "triggers": [{"name": _HEAP, **_above(0.95)}],
            }
        ],
    }


def http2_options(connection_buffer_bytes: int, streams: int) -> Json:
    """Windows for clients: four buffers for a stream, four times that for a connection."""
    window = max(_LEAST_WINDOW, 4 * connection_buffer_bytes)
    return {
        "max_concurrent_streams": streams,
        "initial_stream_window_size": window,
        "initial_connection_window_size": 4 * window,
    }


def _monitor(name: str, kind: str, **config: int) -> Json:
    return {"name": name, "typed_config": {"@type": _MONITORS + kind, **config}}


def _action(name: str, trigger: Json, config: Json | None = None) -> Json:
    action: Json = {"name": _ACTIONS + name, "triggers": [{"name": _HEAP, **trigger}]}
    return action if config is None else {**action, "typed_config": config}


def _above(share: float) -> Json:
    """A trigger at this share of the heap."""
    return {"threshold": {"value": share}}
