"""Whether an object on the API server still says what was asked of it.

The server adds defaults, drops empty values and rewrites quantities, so equality is no measure: what was
asked for must be contained in what is there. Lists are compared item by item, as whole lists are owned.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from kubernetes.utils import quantity

_parse: Callable[[Any], Decimal] = quantity.parse_quantity
_EMPTY: tuple[Any, ...] = (None, "", [], {}, 0, False)


def contains(there: Any, asked: Any) -> bool:
    """Whether `there` has everything of `asked`; more may be there in mappings, not in lists."""
    if isinstance(asked, dict):
        if not isinstance(there, dict):
            return there is None and all(value in _EMPTY for value in asked.values())
        return all(contains(there.get(key), value) for key, value in asked.items())
    if isinstance(asked, list):
        there = there or []
        return (
            isinstance(there, list)
            and len(there) == len(asked)
            and all(contains(*pair) for pair in zip(there, asked, strict=True))
        )
    if there == asked or (there is None and asked in _EMPTY):
        return True
    return _same_quantity(there, asked)


def _same_quantity(there: Any, asked: Any) -> bool:
    """Whether two scalars are the same quantity in other words: "1000m" and 1, "1024Mi" and "1Gi"."""
    if isinstance(there, bool) or isinstance(asked, bool):
        return False
    try:
        return bool(_parse(there) == _parse(asked))
    except (ValueError, TypeError):
        return False
