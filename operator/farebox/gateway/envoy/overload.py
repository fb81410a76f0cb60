"""What Envoy may hold, and what it gives up when that is nearly used: its makers' advice for edge proxies.

Everything follows from the memory that it has and from what one connection may hold unread. In this order,
as the heap fills: streams of HTTP/2 that hold much are reset, the largest first; free pages go back to the
system; new requests are answered with 503; uploads over HTTP/1 are answered with 503 and cut off.
"""

from typing import Final

from farebox.gateway.envoy import Json

REFRESH_SECONDS: Final = 0.1
"""How often the heap is looked at: a fast network fills some 100 MB of it in between."""
_HEAP_SHARE: Final = (7, 8)
"""Of the memory; the rest is for code, stacks, the kernel's part, and what comes between two looks."""
_PER_CONNECTION: Final = 4
"""A connection whose client reads nothing fills its buffer, that of its upstream, and as much in filters and
objects."""
_LEAST_WINDOW: Final = 65_535
"""Of HTTP/2, which allows no smaller one here."""

_HEAP: Final = "envoy.resource_monitors.fixed_heap"
_CONNECTIONS: Final = "envoy.resource_monitors.global_downstream_max_connections"
_MONITORS: Final = "type.googleapis.com/envoy.extensions.resource_monitors."
_ACTIONS: Final = "envoy.overload_actions."
_TRACKED_POWER_OF_TWO: Final = 20
"""Streams that hold 1 MiB and more are known by their size."""


def max_connections(memory_bytes: int, connection_buffer_bytes: int) -> int:
    """So many that all of them together fit, even if no client reads.

    >>> max_connections(2 * 2**30, 64 * 2**10)
    8192
    """
    return max(1, memory_bytes // (_PER_CONNECTION * connection_buffer_bytes))


def overload_manager(memory_bytes: int, connection_buffer_bytes: int) -> Json:
    """The bootstrap's part."""
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
    """For clients: a stream may send four buffers before they are read, a connection four times that."""
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
    """A trigger: the heap is fuller than this."""
    return {"threshold": {"value": share}}
