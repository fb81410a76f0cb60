"""Prometheus metrics of operator and gateway. Names follow client-go's where it has one."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


QUEUE_DEPTH = Gauge("workqueue_depth", "Keys that wait for a worker")
QUEUE_ADDS = Counter("workqueue_adds_total", "Keys added, by kind", ["kind"])
QUEUE_LATENCY = Histogram(
    "workqueue_queue_duration_seconds", "Seconds a key waits for a worker", buckets=_SECONDS
)
QUEUE_WORK = Histogram(
    "workqueue_work_duration_seconds", "Seconds a reconcile takes, by kind", ["kind"], buckets=_SECONDS
)
QUEUE_RETRIES = Counter(
    "workqueue_retries_total", "Reconciles that failed and are retried, by kind", ["kind"]
)

WRITES = Counter("farebox_api_writes_total", "Writes to the API server, by what was written", ["write"])
WRITE_ERRORS = Counter(
    "farebox_api_write_errors_total", "Writes that the API server refused, by status", ["status"]
)
WRITE_SECONDS = Histogram(
    "farebox_api_write_duration_seconds",
    "Seconds a write to the API server takes, by what was written",
    ["write"],
    buckets=_SECONDS,
)
WATCH_EVENTS = Counter("farebox_watch_events_total", "Events of watches, by kind", ["kind"])
SWEEP_REPAIRS = Counter(
    "farebox_sweep_repairs_total", "Objects that a watch missed and a resync repaired, by kind", ["kind"]
)
SERVICES = Gauge("farebox_services", "Services, by phase", ["phase"])
TRANSITIONS = Counter("farebox_service_transitions_total", "Services that changed to a phase", ["phase"])
EVENTS_DROPPED = Counter("farebox_events_dropped_total", "Events that were dropped by the rate limit")
LEADER = Gauge("leader_election_master_status", "1 while this replica holds the Lease", ["name"])
BALANCE_AGE = Gauge("farebox_balance_age_seconds", "Seconds since the ledger's feed last answered")
LEDGER_TOPUP_SECONDS = Histogram(
    "farebox_ledger_topup_seconds", "Seconds the ledger takes to post a top-up", buckets=_SECONDS
)
GATEWAY_DECISIONS = Counter(
    "farebox_gateway_decisions_total", "Decided calls, by code; forwarded calls have none", ["code"]
)
GATEWAY_DECISION_SECONDS = Histogram(
    "farebox_gateway_decision_seconds",
    "Seconds from the last input of a decision to the decision",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2),
)
GATEWAY_HOLDS = Gauge("farebox_gateway_holds", "Calls with authorized money of Hard accounts now")
GATEWAY_USAGE_BACKLOG = Gauge(
    "farebox_gateway_usage_backlog_bytes", "Bytes of the usage log that the meter has not accepted yet"
)
GATEWAY_USAGE_BACKLOG_AGE = Gauge(
    "farebox_gateway_usage_backlog_seconds",
    "Seconds since the end of the first call in the backlog; 0: empty",
)
GATEWAY_FEED_AGE = Gauge(
    "farebox_gateway_feed_age_seconds",
    "Seconds since the meter's feed last answered; -1 before the first answer",
)
GATEWAY_WATCH_AGE = Gauge(
    "farebox_gateway_watch_age_seconds",
    "Seconds since the API server last answered; inf before the first answer",
)
GATEWAY_COUNTERS_AWAY = Gauge(
    "farebox_gateway_counters_away", "1 while this replica counts limits without its Valkey"
)
GATEWAY_USAGE = Counter(
    "farebox_gateway_usage_events_total", "Usage events that the meter has answered, by result", ["result"]
)
GATEWAY_METERED_CALLS = Counter(
    "farebox_gateway_metered_calls_total",
    "Forwarded calls that ended, by model and usage: reported, estimated, implausible (reported, but not "
    "possible, so estimated) or none (the call costs nothing)",
    ["model", "usage"],
)
GATEWAY_ESTIMATED_TOKENS = Counter(
    "farebox_gateway_estimated_tokens_total", "Tokens of calls with estimated usage, by model", ["model"]
)
GATEWAY_UPSTREAM_ERRORS = Counter(
    "farebox_gateway_upstream_errors_total",
    "Errors that upstreams answered, by model and status",
    ["model", "status"],
)
GATEWAY_USAGE_RETRIES = Counter(
    "farebox_gateway_usage_retries_total", "Times that the meter did not accept usage, which is sent again"
)
LEDGER_RECORDS_PENDING = Gauge("farebox_ledger_records_pending", "Records the ledger has not answered yet")
