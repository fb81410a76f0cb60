"""Metrics and logs of calls that have ended: how their usage is known, and what upstreams answered instead.

An administrator sees here which models are always estimated, and why a provider refuses calls. Callers see
neither the text of such an error nor the account of the operator in it.
"""

from functools import lru_cache

import structlog
from prometheus_client import Counter

from farebox.gateway.metering.usage import BilledTokens, UsageLine
from farebox.metrics import GATEWAY_ESTIMATED_TOKENS, GATEWAY_METERED_CALLS, GATEWAY_UPSTREAM_ERRORS

_log = structlog.get_logger(__name__)


def observe(line: UsageLine, billed: BilledTokens | None) -> None:
    """Count a call, and log the error that its upstream answered. `billed`: what it pays; None: nothing."""
    model = line.labels.get("model", "")
    _calls(model, _usage(billed)).inc()
    if billed is not None and billed.estimated:
        GATEWAY_ESTIMATED_TOKENS.labels(model).inc(billed.input_tokens + billed.output_tokens)
    if line.error:
        GATEWAY_UPSTREAM_ERRORS.labels(model, str(line.status)).inc()
        _log.warning(
            "upstream.error",
            model=model,
            service=line.labels.get("service", ""),
            request_id=line.request_id,
            status=line.status,
            error=line.error,
        )


@lru_cache(1024)
def _calls(model: str, usage: str) -> Counter:
    """Cached, because to look up a counter by its labels costs more than to count."""
    return GATEWAY_METERED_CALLS.labels(model, usage)


def _usage(billed: BilledTokens | None) -> str:
    if billed is None:
        return "none"
    if billed.implausible:
        return "implausible"
    return "estimated" if billed.estimated else "reported"
