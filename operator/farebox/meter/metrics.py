"""The meter's own metrics, in a registry of its own, so that `farebox up` and tests can have several."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_COMMIT_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_REQUEST_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)


class MeterMetrics:
    """What `GET /metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.events = Counter(
            "farebox_meter_events",
            "Usage events received, by what became of them: charged, pending, duplicate or rejected",
            ["result"],
            registry=self.registry,
        )
        for result in ("charged", "pending", "duplicate", "rejected"):
            self.events.labels(result)
        self.commit_seconds = Histogram(
            "farebox_ledger_commit_seconds",
            "Time of a write transaction, with the commit on the disk",
            buckets=_COMMIT_BUCKETS,
            registry=self.registry,
        )
        self.pending = Gauge(
            "farebox_ledger_pending_events",
            "Usage events that wait for a binding, a price or an account",
            registry=self.registry,
        )
        self.head = Gauge(
            "farebox_ledger_head", "Last sequence number that the ledger gave out", registry=self.registry
        )
        self.request_seconds = Histogram(
            "farebox_meter_request_seconds",
            "Time to answer, by route; long polls include their waiting",
            ["method", "route", "status"],
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
