"""A line of the log, and what its call has to pay."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from farebox.gateway.metering.publisher import event_of
from farebox.gateway.metering.usage import BilledTokens, InvalidLine, UsageLine, billed_tokens, parse
from farebox.meter.cloudevents import BATCH
from farebox.meter.cloudevents import parse as parse_events

WHOLE = UsageLine(
    time=datetime(2026, 3, 1, tzinfo=UTC),
    request_id="r-1",
    status=200,
    flags=frozenset(),
    labels={
        "service": "team-a/chat",
        "model": "m",
        "api_key": "k",
        "estimate_input": "11",
        "max_output": "50",
    },
    input_tokens=100,
    cached_tokens=40,
    output_tokens=20,
    complete=True,
    sent_bytes=4000,
    upstream_bytes=300,
)
CUT: dict[str, Any] = {
    "input_tokens": None,
    "cached_tokens": None,
    "output_tokens": None,
    "complete": False,
    "flags": frozenset({"DC"}),
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, BilledTokens(100, 40, 20, False), id="as the upstream said"),
        pytest.param({"output_tokens": 0}, BilledTokens(100, 40, 0, False), id="embeddings"),
        pytest.param(
            {"output_tokens": None, "sent_bytes": 44},
            BilledTokens(100, 40, 11, True),
            id="does not say its output",
        ),
        pytest.param(
            {"cached_tokens": 400}, BilledTokens(100, 100, 20, False), id="more cached than there is"
        ),
        pytest.param(
            {"complete": False, "labels": {"stream": "true"}},
            BilledTokens(100, 40, 20, True),
            id="a stream that said no last word",
        ),
        pytest.param({"status": 500}, None, id="an error with usage"),
        pytest.param({"status": 429}, None, id="refused by the upstream"),
        pytest.param({"status": 302}, None, id="no answer"),
        pytest.param({**CUT, "flags": frozenset({"UC"})}, None, id="the upstream broke off"),
        pytest.param({"flags": frozenset({"UPE"})}, None, id="the upstream spoke no HTTP"),
        pytest.param({"status": 503, "flags": frozenset({"OM"})}, None, id="refused for want of memory"),
        pytest.param({**CUT, "status": 0, "flags": frozenset({"OM"})}, None, id="ended for it, not answered"),
        pytest.param(
            {**CUT, "flags": frozenset({"OM"})},
            BilledTokens(11, 0, 50, True),
            id="ended for it while it was answered",
        ),
        pytest.param(CUT, BilledTokens(11, 0, 50, True), id="text, no more than the limit"),
        pytest.param({**CUT, "labels": {"stream": "true"}}, BilledTokens(0, 0, 20, True), id="stream"),
        pytest.param({**CUT, "sent_bytes": 100}, BilledTokens(11, 0, 25, True), id="bytes of text"),
        pytest.param(
            {**CUT, "input_tokens": 7, "output_tokens": 3, "sent_bytes": 4},
            BilledTokens(7, 0, 3, True),
            id="part",
        ),
        pytest.param(
            {**CUT, "input_tokens": 7, "output_tokens": 3, "labels": {"continuous_usage": "true"}},
            BilledTokens(7, 0, 3, False),
            id="continuous",
        ),
        pytest.param(
            {**CUT, "output_tokens": 3, "labels": {"continuous_usage": "true", "estimate_input": "11"}},
            BilledTokens(11, 0, 3, True),
            id="continuous, but of the output alone",
        ),
        pytest.param(
            {**CUT, "status": 0, "sent_bytes": 0}, BilledTokens(11, 0, 0, True), id="left before the answer"
        ),
        pytest.param(
            {**CUT, "status": 0, "upstream_bytes": 0}, None, id="left before the call reached the upstream"
        ),
    ],
)
def test_what_a_call_pays(changes: dict[str, Any], expected: BilledTokens | None) -> None:
    assert billed_tokens(msgspec.structs.replace(WHOLE, **changes)) == expected


def line(**changes: Any) -> bytes:
    values = {
        "at": "1772323200.250000",
        "details": "via_upstream",
        "flags": "-",
        "id": "r-1",
        "labels": '{"service":"a/b"}',
        "ms": 5,
        "sent": 10,
        "status": 200,
        "upstream": 300,
        "usage": {"last": '{"prompt_tokens":7,"completion_tokens":2}'},
    }
    return json.dumps(values | changes, separators=(",", ":")).encode()


def counts(**reported: str) -> tuple[int | None, int | None, int | None]:
    read = parse(line(usage=reported))
    return read.input_tokens, read.cached_tokens, read.output_tokens


def test_a_line_is_read() -> None:
    read = parse(line(flags="DC,UC", upstream=None))
    assert (read.input_tokens, read.cached_tokens, read.output_tokens) == (7, None, 2)
    assert (read.flags, read.labels, read.upstream_bytes) == ({"DC", "UC"}, {"service": "a/b"}, 0)
    assert read.time == datetime(2026, 3, 1, 0, 0, 0, 250_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ('{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}', (7, None, 2)),
        (
            '{"prompt_tokens":7,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}',
            (7, 4, 2),
        ),
        ('{"prompt_tokens":7,"prompt_tokens_details":null,"completion_tokens":2}', (7, None, 2)),
        (
            '{"prompt_tokens":7,"prompt_tokens_details":{"cached_tokens":null},"completion_tokens":2}',
            (7, None, 2),
        ),
        ('{"prompt_tokens":7,"total_tokens":7}', (7, None, 0)),
        ('{"prompt_tokens":7,"completion_tokens":null}', (7, None, None)),
        ('{"prompt_tokens":7.0,"completion_tokens":2.5}', (7, None, None)),
        ('{"prompt_tokens":true,"completion_tokens":"2"}', (None, None, None)),
        ('{"prompt_tokens":-7,"completion_tokens":2}', (None, None, 2)),
        ('{"input_tokens":7,"output_tokens":2,"input_tokens_details":{"cached_tokens":4}}', (7, 4, 2)),
        ('{"input_tokens":7,"output_tokens":2}', (7, None, 2)),
        ('{"input_tokens":7,"cache_read_input_tokens":4,"output_tokens":2}', (11, 4, 2)),
        (
            '{"input_tokens":7,"cache_read_input_tokens":null,"cache_creation_input_tokens":3,"output_tokens":2}',
            (10, None, 2),
        ),
        ('{"cache_read_input_tokens":4,"output_tokens":2}', (None, 4, 2)),
        ("{}", (None, None, None)),
        ('{"prompt_tokens":7,', (None, None, None)),
        ("[]", (None, None, None)),
    ],
)
def test_what_an_upstream_counts_is_read_in_its_words(usage: str, expected: tuple[int | None, ...]) -> None:
    assert counts(last=usage) == expected


def test_the_end_of_a_stream_need_not_repeat_its_beginning() -> None:
    first = '{"input_tokens":7,"cache_read_input_tokens":4,"output_tokens":1}'
    assert counts(first=first, last='{"output_tokens":20}') == (11, 4, 20)
    assert counts(first=first, last='{"input_tokens":null,"output_tokens":20}') == (11, 4, 20)
    assert counts(first=first, last='{"input_tokens":8,"output_tokens":20}') == (12, 4, 20)


@pytest.mark.parametrize(
    ("changes", "complete"),
    [
        ({}, True),
        ({"flags": "DC", "details": "downstream_remote_disconnect"}, True),
        ({"labels": '{"stream":"true"}'}, True),
        ({"labels": '{"stream":"true"}', "flags": "DC"}, False),
        ({"labels": '{"stream":"true"}', "details": "max_duration_timeout"}, False),
        ({"usage": {"first": '{"input_tokens":7}'}}, False),
        ({"usage": None}, False),
    ],
)
def test_the_last_word_of_an_upstream_is_known(changes: dict[str, Any], complete: bool) -> None:
    assert parse(line(**changes)).complete is complete


def test_a_line_after_one_that_was_cut_off_is_read() -> None:
    assert parse(line(id="first")[:-20] + line(id="second")).request_id == "second"


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", line()[:-1], line(at="x"), line(labels=None), line(at="9e99"), b"\xff"],
)
def test_what_is_no_line_is_invalid(text: bytes) -> None:
    with pytest.raises(InvalidLine):
        parse(text)


def test_an_event_is_one_that_the_meter_reads() -> None:
    event = event_of(WHOLE, BilledTokens(100, 40, 20, False), "gateway-0")
    parsed = parse_events(json.dumps([event]).encode(), BATCH)
    assert not parsed.rejected
    (read,) = parsed.events
    assert (read.source, read.id, str(read.service), read.model, read.api_key) == (
        "gateway-0",
        "019ca6b1dc00-r-1",
        "team-a/chat",
        "m",
        "k",
    )
    assert (read.input_tokens, read.cached_input_tokens, read.output_tokens, read.status) == (
        100,
        40,
        20,
        200,
    )
    assert not read.estimated


def test_an_event_says_that_its_tokens_are_estimated() -> None:
    event = event_of(WHOLE, BilledTokens(100, 40, 20, True), "gateway-0")
    (read,) = parse_events(json.dumps([event]).encode(), BATCH).events
    assert read.estimated
