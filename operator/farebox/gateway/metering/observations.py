"""Metrics and logs of calls that have ended: how their usage is known, and what upstreams answered instead.

An administrator sees here which models are always estimated, and why a provider refuses calls. Callers see
neither the text of such an error nor the account of the operator in it.
"""

import structlog

from farebox.gateway.metering.usage import BilledTokens, UsageLine
from farebox.metrics import GATEWAY_ESTIMATED_TOKENS, GATEWAY_METERED_CALLS, GATEWAY_UPSTREAM_ERRORS

_log = structlog.get_logger(__name__)


def observe(line: UsageLine, billed: BilledTokens | None) -> None:
    """Count a call, and log the error that its upstream answered. `billed`: what it pays; None: nothing."""
    model = line.labels.get("model", "")
    GATEWAY_METERED_CALLS.labels(model, _usage(billed)).inc()
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


def _usage(billed: BilledTokens | None) -> str:
    if billed is None:
        return "none"
    if billed.implausible:
        return "implausible"
    return "estimated" if billed.estimated else "reported"
