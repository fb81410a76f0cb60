"""A line of Envoy's access log, and the tokens that its call pays for. Pure: text in, values out.

The usage is what the upstream reported. If it reported none, `billed_tokens` estimates.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from msgspec import DecodeError, Struct
from msgspec.json import Decoder

from farebox.gateway.interface import FALSE_VALUES

STREAM_BYTES_PER_TOKEN: Final = 200
"""Bytes of a stream per token: model servers send about one event of this size for each."""
TEXT_BYTES_PER_TOKEN: Final = 4
"""Bytes per token of an answer that is not streamed."""
_LINE_START: Final = b'{"at":'
_UPSTREAM_FAULTS: Final = frozenset(
    {"UF", "UH", "UT", "UC", "UR", "LR", "UO", "NR", "NC", "UPE", "URX", "DF", "UMSDR"}
)
"""Envoy's response flags for failures of the upstream."""
_OVERLOAD: Final = "OM"
_COMPLETE_RESPONSE: Final = "via_upstream"


class InvalidLine(Exception):
    """The line is incomplete, or not from Envoy."""


class UsageLine(Struct, frozen=True):
    """A forwarded call after its end.

    Args:
        time: its end.
        status: of the answer; 0 if the client left before there was one.
        flags: Envoy's response flags.
        labels: of the call's Route.
        input_tokens, cached_tokens, output_tokens: as the upstream reported last, or None; input includes
            the cached ones.
        complete: whether these figures are final.
        sent_bytes: of the answer's body, to the client.
        upstream_bytes: of the request, to the upstream; 0: the upstream received nothing.
    """

    time: datetime
    request_id: str
    status: int
    flags: frozenset[str]
    labels: Mapping[str, str]
    input_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    complete: bool
    sent_bytes: int
    upstream_bytes: int


class BilledTokens(Struct, frozen=True):
    """The tokens that a call pays for; input includes cached. `estimated`: not reported by the upstream."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    estimated: bool


class _Line(Struct):
    """A line as `envoy.bootstrap` formats it; keys that are not here are ignored."""

    at: str
    details: str | None
    flags: str | None
    id: str
    labels: str
    sent: int
    status: int
    upstream: int | None
    usage: dict[str, str] | None


def parse(line: bytes) -> UsageLine:
    """Parse a line of the log.

    A killed Envoy may have left a partial line, to which the next line was appended. The partial line is
    skipped.

    Raises:
        InvalidLine: there is no complete line in it.
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
    """The tokens that a call pays for; None if it costs nothing (B16).

    - An error response costs nothing, nor does an answer that the upstream broke off.
    - Complete usage of the upstream counts as reported.
    - A call that ended early, because the client left or read too slowly or the call took too long: input as
      reported, or else as estimated before the call; output as reported if every event reports it
      (`continuous_usage`), or else at least the sent bytes divided by STREAM_BYTES_PER_TOKEN or
      TEXT_BYTES_PER_TOKEN, at most `max_output`. The same applies to an answer without any usage.
    - A client that left before the answer pays for the input if the upstream received the request.
    - An Envoy that is short of memory ends calls that hold much of it, mostly those of clients that read
      slowly. An answer that had started counts as ended early, otherwise it would be free.
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
    input_tokens = _number(line.labels, "estimate_input") if line.input_tokens is None else line.input_tokens
    cached = min(line.cached_tokens or 0, input_tokens)
    if line.output_tokens is not None and _is_on(line.labels, "continuous_usage"):
        return BilledTokens(input_tokens, cached, line.output_tokens, line.input_tokens is None)
    size = STREAM_BYTES_PER_TOKEN if _is_on(line.labels, "stream") else TEXT_BYTES_PER_TOKEN
    output = line.sent_bytes // size
    if "max_output" in line.labels:
        output = min(output, _number(line.labels, "max_output"))
    return BilledTokens(input_tokens, cached, max(output, line.output_tokens or 0), True)


def _usage_line(line: _Line) -> UsageLine:
    labels, flags, reported = _LABELS.decode(line.labels), _flags(line.flags or ""), line.usage or {}
    input_tokens, cached_tokens, output_tokens = _counts(reported)
    return UsageLine(
        time=datetime.fromtimestamp(float(line.at), UTC),
        request_id=line.id,
        status=line.status,
        flags=flags,
        labels=labels,
        input_tokens=input_tokens,
        cached_tokens=cached_tokens,
        output_tokens=output_tokens,
        # Usage that a stream reported before its end may cover only its beginning.
        complete="last" in reported and (_ended(line, flags) or not _is_on(labels, "stream")),
        sent_bytes=line.sent,
        upstream_bytes=line.upstream or 0,
    )


def _ended(line: _Line, flags: frozenset[str]) -> bool:
    """Whether the upstream finished its answer. A call that took too long has no flag, but other details."""
    return line.details == _COMPLETE_RESPONSE and not flags


@lru_cache(256)
def _flags(text: str) -> frozenset[str]:
    return frozenset(text.replace("-", "").split(",")) - {""}


def _counts(reported: Mapping[str, str]) -> tuple[int | None, int | None, int | None]:
    """Input, cached and output tokens, from OpenAI's or Anthropic's fields.

    Args:
        reported: the "first" and "last" usage of an answer (`envoy.usage_filter`), as JSON. The end of an
            Anthropic stream need not repeat the figures of its beginning.
    """
    merged: dict[str, Any] = {}
    for name in ("first", "last"):
        try:
            usage = _USAGE.decode(reported.get(name, "{}"))
        except DecodeError:
            continue
        merged |= {key: value for key, value in usage.items() if value is not None or key not in merged}
    if "prompt_tokens" in merged:
        return _of_openai(merged, "prompt_tokens", "completion_tokens")
    if "cache_read_input_tokens" in merged or "cache_creation_input_tokens" in merged:
        return _of_anthropic(merged)
    return _of_openai(merged, "input_tokens", "output_tokens")


def _of_openai(
    usage: Mapping[str, Any], inputs: str, outputs: str
) -> tuple[int | None, int | None, int | None]:
    """Embeddings have no output, and do not report any."""
    details = usage.get(f"{inputs}_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    output = usage.get(outputs, 0 if inputs in usage else None)
    return _count(usage.get(inputs)), _count(cached), _count(output)


def _of_anthropic(usage: Mapping[str, Any]) -> tuple[int | None, int | None, int | None]:
    """Its input tokens exclude those that are read from a cache or written to it."""
    inputs, read = _count(usage.get("input_tokens")), _count(usage.get("cache_read_input_tokens"))
    written = _count(usage.get("cache_creation_input_tokens")) or 0
    total = None if inputs is None else inputs + (read or 0) + written
    return total, read, _count(usage.get("output_tokens"))


def _count(value: Any) -> int | None:
    """A number of tokens; None for any other value."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and value >= 0 else None


def _number(labels: Mapping[str, str], name: str) -> int:
    value = labels.get(name, "")
    return int(value) if value.isdecimal() else 0


def _is_on(labels: Mapping[str, str], name: str) -> bool:
    return labels.get(name, "") not in FALSE_VALUES


_LINE: Final = Decoder(_Line)
_LABELS: Final = Decoder(dict[str, str])
_USAGE: Final = Decoder(dict[str, Any])
