"""The time, and the forms in which it is kept. The only place that reads the wall clock.

The domain reads no clock: it is given the time. Databases keep microseconds, limits keep milliseconds, both
since 1970 UTC; Kubernetes writes whole seconds.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def utc_now() -> datetime:
    """Return the current time, aware and in UTC."""
    return datetime.now(UTC)


def kubernetes_now() -> datetime:
    """Return the current time in whole seconds, as Kubernetes writes it."""
    return utc_now().replace(microsecond=0)


def to_micros(moment: datetime) -> int:
    """Return microseconds since 1970 UTC, exactly. `moment` must be aware."""
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """Return the moment of `to_micros`, in UTC."""
    return _EPOCH + timedelta(microseconds=micros)


def milliseconds(moment: datetime) -> int:
    """Return milliseconds since 1970 UTC."""
    return int(moment.timestamp() * 1000)
