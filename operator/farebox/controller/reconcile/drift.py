"""Compares an object on the API server with what was desired.

The server adds defaults, drops empty values and rewrites quantities, so equality is no measure: the desired
object must be contained in the actual one. Lists are compared item by item, because Farebox owns whole lists.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from kubernetes.utils import quantity

_parse: Callable[[Any], Decimal] = quantity.parse_quantity
_EMPTY: tuple[Any, ...] = (None, "", [], {}, 0, False)


def contains(actual: Any, desired: Any) -> bool:
    """Return whether `actual` has everything in `desired`; mappings may have more, lists may not."""
    if isinstance(desired, dict):
        if not isinstance(actual, dict):
            return actual is None and all(value in _EMPTY for value in desired.values())
        return all(contains(actual.get(key), value) for key, value in desired.items())
    if isinstance(desired, list):
        actual = actual or []
        return (
            isinstance(actual, list)
            and len(actual) == len(desired)
            and all(contains(*pair) for pair in zip(actual, desired, strict=True))
        )
    if actual == desired or (actual is None and desired in _EMPTY):
        return True
    return _same_quantity(actual, desired)


def _same_quantity(actual: Any, desired: Any) -> bool:
    """Return whether two scalars are the same quantity: "1000m" and 1, "1024Mi" and "1Gi"."""
    if isinstance(actual, bool) or isinstance(desired, bool):
        return False
    try:
        return bool(_parse(actual) == _parse(desired))
    except (ValueError, TypeError):
        return False
