"""A line of Envoy's log, and what its call used. Pure: text in, values out.

What a call used is what its upstream said. Where it did not come to say it, the rules are those of `used`.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from msgspec import DecodeError, Struct
from msgspec.json import Decoder

from farebox.gateway.interface import FALSE_VALUES

STREAM_BYTES_PER_TOKEN: Final = 200
"""What a token takes in a stream of events: model servers send one event for each, about so long."""
TEXT_BYTES_PER_TOKEN: Final = 4
"""What a token takes in an answer that is not streamed."""
_LINE_START: Final = b'{"at":'
_UPSTREAM_FAULTS: Final = frozenset(
    {"UF", "UH", "UT", "UC", "UR", "LR", "UO", "NR", "NC", "UPE", "URX", "DF", "UMSDR"}
)
_OVERLOAD: Final = "OM"
_WHOLE: Final = "via_upstream"


class InvalidLine(Exception):
    """The line is not one that Envoy wrote whole."""


class UsageLine(Struct, frozen=True):
    """One call that was forwarded, after its end.

    Args:
        time: its end.
        status: of the answer; 0 if the client left before there was one.
        details, flags: Envoy's words for how it ended.
        labels: those of the decision.
        input_tokens, cached_tokens, output_tokens: as the upstream said last, None where it did not; input
            includes the cached ones.
        complete: that was its last word.
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


class BilledTokens(Struct, frozen=True):
    """Tokens to be paid; input includes the cached ones. `estimated`: the upstream did not say so."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    estimated: bool


class _Line(Struct):
    """A line as it is written (`envoy_log`)."""

    at: str
    details: str | None
    flags: str | None
    id: str
    labels: str
    ms: int | None
    sent: int
    status: int
    upstream: int | None
    usage: dict[str, str] | None


def parse(line: bytes) -> UsageLine:
    """A line of the log.

    A process that was killed may have left the beginning of a line, to which the next one was appended: the
    beginning is left out.

    Raises:
        InvalidLine: there is no whole line in it.
    """
    try:
        try:
            return _usage_line(_LINE.decode(line))
        except DecodeError:
            start = line.rfind(_LINE_START)
            if start <= 0:
                raise
            return _usage_line(_LINE.decode(line[start:]))
    except (DecodeError, ValueError, OverflowError) as error:
        raise InvalidLine(f"{type(error).__name__}: {error}") from error


def billed_tokens(line: UsageLine) -> BilledTokens | None:
    """What a call has to pay, or None if it costs nothing (B16).

    - An answer that is an error costs nothing, nor one that the upstream broke off.
    - Usage that the upstream said to the end counts as it said.
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
    if line.complete and line.input_tokens is not None and line.output_tokens is not None:
        cached = min(line.cached_tokens or 0, line.input_tokens)
        return BilledTokens(line.input_tokens, cached, line.output_tokens, False)
    return _estimate(line)


def _estimate(line: UsageLine) -> BilledTokens:
    input_tokens = _whole(line.labels, "estimate_input") if line.input_tokens is None else line.input_tokens
    cached = min(line.cached_tokens or 0, input_tokens)
    if line.output_tokens is not None and _is_on(line.labels, "continuous_usage"):
        return BilledTokens(input_tokens, cached, line.output_tokens, line.input_tokens is None)
    size = STREAM_BYTES_PER_TOKEN if _is_on(line.labels, "stream") else TEXT_BYTES_PER_TOKEN
    output = line.sent_bytes // size
    if "max_output" in line.labels:
        output = min(output, _whole(line.labels, "max_output"))
    return BilledTokens(input_tokens, cached, max(output, line.output_tokens or 0), True)


def _usage_line(line: _Line) -> UsageLine:
    labels, flags, told = _LABELS.decode(line.labels), _flags(line.flags or ""), line.usage or {}
    input_tokens, cached_tokens, output_tokens = _counts(told)
    return UsageLine(
        time=datetime.fromtimestamp(float(line.at), UTC),
        request_id=line.id,
        status=line.status,
        details=line.details or "",
        flags=flags,
        labels=labels,
        input_tokens=input_tokens,
        cached_tokens=cached_tokens,
        output_tokens=output_tokens,
        # What a stream says before its end may be of no more than its beginning.
        complete="last" in told and (_ended(line, flags) or not _is_on(labels, "stream")),
        sent_bytes=line.sent,
        upstream_bytes=line.upstream or 0,
        milliseconds=line.ms or 0,
    )


def _ended(line: _Line, flags: frozenset[str]) -> bool:
    """Whether the upstream came to the end of its answer: a call that took too long has no flag."""
    return line.details == _WHOLE and not flags


@lru_cache(256)
def _flags(text: str) -> frozenset[str]:
    return frozenset(text.replace("-", "").split(",")) - {""}


def _counts(told: Mapping[str, str]) -> tuple[int | None, int | None, int | None]:
    """Input, cached and output tokens, in OpenAI's or Anthropic's words.

    Args:
        told: what an answer said of its usage "first" and "last" (`envoy_answers`), as JSON. Of Anthropic's
            streams the end need not repeat what the beginning said.
    """
    said: dict[str, Any] = {}
    for name in ("first", "last"):
        try:
            usage = _USAGE.decode(told.get(name, "{}"))
        except DecodeError:
            continue
        said |= {key: value for key, value in usage.items() if value is not None or key not in said}
    if "prompt_tokens" in said:
        return _of_openai(said, "prompt_tokens", "completion_tokens")
    if "cache_read_input_tokens" in said or "cache_creation_input_tokens" in said:
        return _of_anthropic(said)
    return _of_openai(said, "input_tokens", "output_tokens")


def _of_openai(
    said: Mapping[str, Any], inputs: str, outputs: str
) -> tuple[int | None, int | None, int | None]:
    """Embeddings have no output, and say nothing of it."""
    details = said.get(f"{inputs}_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    output = said.get(outputs, 0 if inputs in said else None)
    return _count(said.get(inputs)), _count(cached), _count(output)


def _of_anthropic(said: Mapping[str, Any]) -> tuple[int | None, int | None, int | None]:
    """What is read from a cache, and what is written into it, is not among its input tokens."""
    inputs, read = _count(said.get("input_tokens")), _count(said.get("cache_read_input_tokens"))
    written = _count(said.get("cache_creation_input_tokens")) or 0
    total = None if inputs is None else inputs + (read or 0) + written
    return total, read, _count(said.get("output_tokens"))


def _count(value: Any) -> int | None:
    """A number of tokens; None for what is none."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and value >= 0 else None


def _whole(labels: Mapping[str, str], name: str) -> int:
    value = labels.get(name, "")
    return int(value) if value.isdecimal() else 0


def _is_on(labels: Mapping[str, str], name: str) -> bool:
    return labels.get(name, "") not in FALSE_VALUES


_LINE: Final = Decoder(_Line)
_LABELS: Final = Decoder(dict[str, str])
_USAGE: Final = Decoder(dict[str, Any])
