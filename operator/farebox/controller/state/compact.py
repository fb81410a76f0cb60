"""Objects as the cache keeps them: thousands, so small. It changes nothing that anybody reads of them.

Pydantic notes for each part of an object which of its fields were given, in a set of the part's own: more
than half of the 12 KB that a service takes. Most parts of a kind were given the same fields, so they share
one set, and a service takes 5 KB.
"""

from typing import Any, Final, TypeVar

from farebox.api import APIPart

PartT = TypeVar("PartT", bound=APIPart)
_SHARED: Final[dict[frozenset[str], set[str]]] = {}


def compact(part: PartT) -> PartT:
    """The same part, sharing with its like what Pydantic notes; parts are frozen, so nobody adds to that."""
    _compact(part)
    return part


def _compact(value: Any) -> None:
    if isinstance(value, APIPart):
        given = frozenset(value.model_fields_set)
        object.__setattr__(value, "__pydantic_fields_set__", _SHARED.setdefault(given, set(given)))
        for field in value.__dict__.values():
            _compact(field)
    elif isinstance(value, tuple):
        for item in value:
            _compact(item)
