"""A line of Envoy's log, and what its call used. Pure: text in, values out.

What a call used is what its upstream said. Where it did not come to say it, the rules are those of `used`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from pydantic_core import from_json

from farebox.gateway.exchange import NO

STREAM_BYTES_PER_TOKEN: Final = 200
"""What a token takes in a stream of events: model servers send one event for each, about so long."""
TEXT_BYTES_PER_TOKEN: Final = 4
"""What a token takes in an answer that is not streamed."""
_LINE_START: Final = b'{"at":'
_UPSTREAM_FAULTS: Final = frozenset(
    {"UF", "UH", "UT", "UC", "UR", "LR", "UO", "NR", "NC", "UPE", "URX", "DF", "UMSDR"}
)
_OVERLOAD: Final = "OM"


_COMPLETE: Final = ("1", "COMPLETE")
"""envoy.data.ai.v3.TokenUsage.ExtractionStatus: as an expression says it, or a message."""


class InvalidLine(Exception):
    """The line is not one that Envoy wrote whole."""


@dataclass(frozen=True, slots=True)
class UsageLine:
    """One call that was forwarded, after its end.

    Args:
        time: its end.
        status: of the answer; 0 if the client left before there was one.
        details, flags: Envoy's words for how it ended.
        labels: those of the decision.
        input_tokens, cached_tokens, output_tokens: as the upstream said, None where it did not.
        complete: the upstream came to the end of what it had to say about usage.
        sent_bytes: of the answer's body, to the client.
        upstream_bytes: of the request, to the upstream; 0: it has heard nothing of the call.
        milliseconds: from the first byte of the request to the last of the answer.
    """

    time: datetime
    request_id: str
    status: int
    details: str
    flags: frozenset[str]
    labels: Mapping[str, str]
    input_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    complete: bool
    sent_bytes: int
    upstream_bytes: int
    milliseconds: int


@dataclass(frozen=True, slots=True)
class Used:
    """Tokens to be paid; input includes the cached ones. `estimated`: the upstream did not say so."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    estimated: bool


def parse(line: bytes) -> UsageLine:
    """A line of the log.

    A process that was killed may have left the beginning of a line, to which the next one was appended: the
    beginning is left out.

    Raises:
        InvalidLine: there is no whole line in it.
    """
    try:
        try:
            return _usage_line(from_json(line))
        except ValueError:
            start = line.rfind(_LINE_START)
            if start <= 0:
                raise
            return _usage_line(from_json(line[start:]))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise InvalidLine(f"{type(error).__name__}: {error}") from error


def used(line: UsageLine) -> Used | None:
    """What a call has to pay, or None if it costs nothing (B16).

    - An answer that is an error costs nothing, nor one that the upstream broke off.
    - Usage that the upstream said to the end counts as it said; so does that of an answer in one piece that
      came whole and says its input and output, whatever else in it cannot be read.
    - A call that ended early, as the client left or was too slow, or took too long: the input as the upstream
      said or, unknown, as the handler estimated it; the output as the upstream said if it repeats it with
      each event (`continuous_usage`), otherwise at least the bytes that were sent, divided by
      STREAM_BYTES_PER_TOKEN or TEXT_BYTES_PER_TOKEN, and no more than `max_output`. So for an answer that has
      no usage in it at all.
    - A client that left before the answer began pays the input if the upstream had the request.
    - An Envoy that is short of memory ends calls that hold much of it, above all of clients that read slowly:
      one that was being answered counts as one that ended early, or it would be free; others cost nothing.
    """
    if line.flags & _UPSTREAM_FAULTS:
        return None
    if _OVERLOAD in line.flags and not 200 <= line.status < 300:
        return None
    if line.status == 0 or (line.status == 499 and "DC" in line.flags):
        return _estimate(line) if line.upstream_bytes else None
    if not 200 <= line.status < 300:
        return None
    if line.input_tokens is not None and (line.complete or _is_told(line)):
        cached = min(line.cached_tokens or 0, line.input_tokens)
        return Used(line.input_tokens, cached, line.output_tokens or 0, False)
    return _estimate(line)


def _is_told(line: UsageLine) -> bool:
    """Some servers write null for what they do not count, as cached tokens, which Envoy takes for a fault."""
    return bool(line.output_tokens) and not line.flags and not _is_on(line.labels, "stream")


def _estimate(line: UsageLine) -> Used:
    input_tokens = _whole(line.labels, "estimate_input") if line.input_tokens is None else line.input_tokens
    cached = min(line.cached_tokens or 0, input_tokens)
    if line.output_tokens is not None and _is_on(line.labels, "continuous_usage"):
        return Used(input_tokens, cached, line.output_tokens, False)
    size = STREAM_BYTES_PER_TOKEN if _is_on(line.labels, "stream") else TEXT_BYTES_PER_TOKEN
    output = line.sent_bytes // size
    if "max_output" in line.labels:
        output = min(output, _whole(line.labels, "max_output"))
    return Used(input_tokens, cached, max(output, line.output_tokens or 0), True)


def _usage_line(values: Any) -> UsageLine:
    usage, each = values["usage"] or {}, values["each"] or {}
    details = usage.get("input_token_details") or {}
    return UsageLine(
        time=datetime.fromtimestamp(float(values["at"]), UTC),
        request_id=str(values["id"]),
        status=int(values["status"]),
        details=str(values["details"] or ""),
        flags=frozenset((values["flags"] or "").replace("-", "").split(",")) - {""},
        labels={str(name): str(value) for name, value in from_json(values["labels"]).items()},
        input_tokens=_count(usage.get("input_tokens"), each.get("input")),
        cached_tokens=_count(details.get("cached_tokens"), each.get("cached")),
        output_tokens=_count(usage.get("output_tokens"), each.get("output")),
        complete=usage.get("extraction_status") in _COMPLETE,
        sent_bytes=int(values["sent"]),
        upstream_bytes=int(values["upstream"] or 0),
        milliseconds=int(values["ms"] or 0),
    )


def _count(said: Any, of_events: Any) -> int | None:
    """A number, or its digits: of the whole answer, or else of its last event; None where it is not known."""
    value = of_events if said is None or said == "unknown" else said
    return None if value is None else int(value)


def _whole(labels: Mapping[str, str], name: str) -> int:
    value = labels.get(name, "")
    return int(value) if value.isdecimal() else 0


def _is_on(labels: Mapping[str, str], name: str) -> bool:
    return labels.get(name, "") not in NO
