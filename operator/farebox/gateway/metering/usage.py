"""A line of Envoy's access log, and the tokens that its call pays for. Pure: text in, values out.

The usage is what the upstream reported. If it reported none, or less than the caller got, `billed_tokens`
estimates the rest from the text.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import DecodeError, Struct
from msgspec.json import Decoder

from farebox.domain.admission.types import DEFAULT_MEDIA_TOKENS
from farebox.domain.billing.coverage import CallTokens
from farebox.domain.billing.estimates import TextCounts, estimate_tokens
from farebox.gateway.metering.dialects import MAX_REPORTED_TOKENS, TokenCounts, merged, token_counts

_ENCODED_BYTES_PER_TOKEN: Final = 4
"""For an answer in an encoding that nobody reads."""
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
        reported: the tokens that the upstream reported last.
        final: whether they cover the whole answer.
        text: the text after the last report, if any.
        complete: whether the upstream finished its answer.
        failed: whether the answer is an error, or ends in one, although its status is a success.
        undelivered: whether it failed before any text.
        impossible: whether the filter left out usage with more output than the answer can have.
        shape: "other" for an answer that is neither JSON nor a stream of events, "encoded" for one that
            nobody reads, otherwise "".
        error: the beginning of an answer that is an error by its status.
        sent_bytes: of the answer's body, to the client.
        upstream_bytes: of the request, to the upstream; 0: the upstream received nothing.
        duration_ms: from the start of the request to the end of the answer.
        first_byte_ms: from the start of the request to the first byte of the answer; None without an answer.
    """

    time: datetime
    request_id: str
    status: int
    flags: frozenset[str]
    labels: Mapping[str, str]
    reported: TokenCounts = TokenCounts()
    final: bool = False
    text: TextCounts | None = None
    complete: bool = False
    failed: bool = False
    undelivered: bool = False
    impossible: bool = False
    shape: str = ""
    error: str = ""
    sent_bytes: int = 0
    upstream_bytes: int = 0
    duration_ms: int | None = None
    first_byte_ms: int | None = None


class BilledTokens(Struct, frozen=True):
    """The tokens that a call pays for. Input includes both cached input and input written to a cache.

    Args:
        estimated: whether the upstream did not report all of them.
        implausible: whether it reported what cannot be (B30).
    """

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    estimated: bool
    cache_write_tokens: int = 0
    implausible: bool = False

    @property
    def tokens(self) -> CallTokens:
        """The same, as they are priced."""
        return CallTokens(
            input=self.input_tokens,
            cached_input=self.cached_tokens,
            cache_write_input=self.cache_write_tokens,
            output=self.output_tokens,
        )


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
    first: int | None = None
    ms: int | None = None


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
    """The tokens that a call pays for; None if it costs nothing (B16, B25-B27, B30).

    - An error response costs nothing, nor does an answer that the upstream broke off before its final usage,
      nor an answer that is not one of a model. What a stream delivered before an error is charged.
    - Final usage of the upstream counts as reported, whenever the client left.
    - Otherwise the call pays for what was reported so far, and for the text after that, as estimated. Input
      that was not reported counts as estimated before the call.
    - A client that left before the answer pays for the input if the upstream received the request.
    - Usage that cannot be counts as not reported, input and output each on its own.
    - An Envoy that is short of memory ends calls that hold much of it, mostly those of clients that read
      slowly. An answer that had started counts as ended early, otherwise it would be free.
    """
    if line.flags & _UPSTREAM_FAULTS and not line.final:
        return None
    if _OVERLOAD in line.flags and not 200 <= line.status < 300:
        return None
    if line.status == 0 or (line.status == 499 and "DC" in line.flags):
        return _estimate(line, TokenCounts()) if line.upstream_bytes else None
    if not 200 <= line.status < 300 or line.shape == "other" or line.undelivered:
        return None
    reported = _plausible(line)
    known = reported.input is not None or reported.output is not None
    # An error may come with the usage of its input.
    delivered = line.text is not None or reported.output or line.shape == "encoded"
    if not delivered and (line.failed or (line.complete and not known)):
        return None
    covered = line.final and line.text is None
    if covered and reported.input is not None and reported.output is not None:
        return BilledTokens(
            reported.input, reported.cached or 0, reported.output, False, reported.cache_write or 0
        )
    estimated = _estimate(line, reported)
    if reported == line.reported and not (line.impossible and estimated.estimated):
        return estimated
    return msgspec.structs.replace(estimated, estimated=True, implausible=True)


def _plausible(line: UsageLine) -> TokenCounts:
    """The reported tokens without what cannot be: above the call's own bounds, or inconsistent (B30)."""
    reported, labels = line.reported, line.labels
    outputs = reported.output
    most = _number(labels, "output_ceiling", _number(labels, "max_output", MAX_REPORTED_TOKENS))
    if outputs is not None and outputs > min(most, MAX_REPORTED_TOKENS):
        outputs = None
    inputs = reported.input
    if inputs is None:
        return TokenCounts(None, reported.cached, reported.cache_write, outputs)
    most = _number(labels, "max_input", MAX_REPORTED_TOKENS)
    in_cache = (reported.cached or 0) + (reported.cache_write or 0)
    if inputs > min(most, MAX_REPORTED_TOKENS) or in_cache > inputs:
        return TokenCounts(output=outputs)
    return TokenCounts(inputs, reported.cached, reported.cache_write, outputs)


def _estimate(line: UsageLine, reported: TokenCounts) -> BilledTokens:
    """What was reported, and estimates of what was not. Within the call's bounds."""
    labels = line.labels
    if reported.input is None:
        inputs = _number(labels, "estimate_input", 0)
        inputs = min(inputs, _number(labels, "max_input", inputs))
    else:
        inputs = reported.input
    if reported.cached is None:
        # What the last call of this key to this service read from the cache (`settlement`).
        cached = inputs * _number(labels, "cached_share", 0) // 1000
    else:
        cached = min(reported.cached, inputs)
    more = 0
    if line.text is not None:
        more = estimate_tokens(line.text, _number(labels, "image_tokens", DEFAULT_MEDIA_TOKENS.image))
    elif line.shape == "encoded":
        more = line.sent_bytes // _ENCODED_BYTES_PER_TOKEN
    outputs = (reported.output or 0) + more
    outputs = min(outputs, _number(labels, "max_output", outputs))
    estimated = more > 0 or reported.input is None or reported.output is None
    cache_write = min(reported.cache_write or 0, inputs - cached)
    return BilledTokens(inputs, cached, outputs, estimated, cache_write)


def _usage_line(line: _Line) -> UsageLine:
    labels, flags, seen = _LABELS.decode(line.labels), _flags(line.flags or ""), line.usage or {}
    complete = line.details == _COMPLETE_RESPONSE and not flags
    return UsageLine(
        time=datetime.fromtimestamp(float(line.at), UTC),
        request_id=line.id,
        status=line.status,
        flags=flags,
        labels=labels,
        reported=_reported(seen, labels),
        final="final" in seen or ("last" in seen and complete),
        text=_text(seen.get("content", "")),
        complete=complete,
        failed="failed" in seen,
        undelivered=seen.get("failed") == "0",
        impossible="impossible" in seen,
        shape=seen.get("shape", ""),
        error=seen.get("error", ""),
        sent_bytes=line.sent,
        upstream_bytes=line.upstream or 0,
        duration_ms=line.ms,
        first_byte_ms=line.first,
    )


@lru_cache(256)
def _flags(text: str) -> frozenset[str]:
    return frozenset(text.replace("-", "").split(",")) - {""}


def _reported(seen: Mapping[str, str], labels: Mapping[str, str]) -> TokenCounts:
    """The tokens that an answer reported (`envoy.response_filter` describes the fields)."""
    if not seen:
        return TokenCounts()
    usage: dict[str, Any] = {}
    for name in ("first", "last", "final"):
        if name in seen:
            reported = _usage(seen[name])
            usage = merged(usage, reported) if usage else reported
    counts = token_counts(usage, labels.get("dialect", ""))
    if "final" not in seen and "choices" in seen:
        return _of_choices(counts, seen["choices"], _number(labels, "inputs", 1))
    return counts


def _usage(text: str) -> dict[str, Any]:
    """A usage object. Of one that is not quite JSON, only the counts at any level."""
    try:
        return _USAGE.decode(text)
    except DecodeError:
        return {name: int(count) for name, count in _COUNTS.findall(text)}


def _of_choices(last: TokenCounts, text: str, prompts: int) -> TokenCounts:
    """The sum of what was reported for single answers, each with the input of its own prompt.

    Args:
        last: what was reported for one of them.
        text: how many have reported, their input, and their output.
    """
    seen, inputs, outputs = (int(each) for each in text.split())
    cached = None if last.cached is None else last.cached * prompts
    return TokenCounts(inputs * prompts // max(seen, 1), cached, last.cache_write, outputs)


def _text(counts: str) -> TextCounts | None:
    numbers = [int(each) for each in counts.split()]
    if len(numbers) != len(TextCounts.__struct_fields__) or not any(numbers):
        return None
    return TextCounts(*numbers)


def _number(labels: Mapping[str, str], name: str, absent: int) -> int:
    value = labels.get(name, "")
    return int(value) if value.isdecimal() else absent


_LINE: Final = Decoder(_Line)
_LABELS: Final = Decoder(dict[str, str])
_USAGE: Final = Decoder(dict[str, Any])
_COUNTS: Final = re.compile(r'"(\w+_tokens)"\s*:\s*(\d{1,18})(?!\d)', re.ASCII)
