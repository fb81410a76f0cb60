"""Envoy: its configuration, its admin interface and its process. This file has what the others share."""

from typing import Any, Final

TYPES: Final = "type.googleapis.com/envoy.extensions."
FILTERS: Final = f"{TYPES}filters.http."

Json = dict[str, Any]


def http_filter(name: str, kind: str, config: Json) -> Json:
    """An HTTP filter; `kind` is the name of its message after FILTERS."""
    return {"name": f"envoy.filters.http.{name}", "typed_config": {"@type": FILTERS + kind, **config}}


def seconds(value: float) -> str:
    """A duration."""
    return f"{value:g}s"
