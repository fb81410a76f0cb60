"""The meter's metrics. Each meter has its registry: `farebox up` and tests run several in a process."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_COMMIT_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_REQUEST_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)


class MeterMetrics:
    """The metrics of one meter."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.events = Counter(
            "farebox_meter_events",
            "Usage events received, by result: charged, pending, duplicate or rejected",
            ["result"],
            registry=self.registry,
        )
        for result in ("charged", "pending", "duplicate", "rejected"):
            self.events.labels(result)
        self.calls = Counter(
            "farebox_meter_calls",
            "Calls stored, by model, and whether a count of them is estimated",
            ["model", "estimated"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "farebox_meter_tokens",
            "Input and output tokens of these calls",
            ["model", "estimated"],
            registry=self.registry,
        )
        self.commit_seconds = Histogram(
            "farebox_ledger_commit_seconds",
            "Duration of a write transaction, including the commit to disk",
            buckets=_COMMIT_BUCKETS,
            registry=self.registry,
        )
        self.pending = Gauge(
            "farebox_ledger_pending_events",
            "Usage events that wait for a binding, a price or an account",
            registry=self.registry,
        )
        self.head = Gauge(
            "farebox_ledger_head", "Last sequence number that the ledger assigned", registry=self.registry
        )
        self.request_seconds = Histogram(
            "farebox_meter_request_seconds",
            "Response time by route; long polls include the waiting time",
            ["method", "route", "status"],
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
