"""A line of the log, and what its call has to pay."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from farebox.domain.billing.estimates import TextCounts
from farebox.gateway.metering.dialects import TokenCounts
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
        "max_input": "1000",
        "max_output": "50",
    },
    reported=TokenCounts(100, 40, 10, 20),
    final=True,
    complete=True,
    sent_bytes=4000,
    upstream_bytes=300,
)
LEFT: dict[str, Any] = {
    "reported": TokenCounts(),
    "final": False,
    "complete": False,
    "flags": frozenset({"DC"}),
}
TEXT = TextCounts(pieces=20, millitokens=19_000)
REPORTED = BilledTokens(100, 40, 20, False, 10)
NO_INPUT = BilledTokens(11, 0, 20, True, implausible=True)
NO_OUTPUT = BilledTokens(100, 0, 0, True, implausible=True)
NO_BOUNDS = {"estimate_input": "11"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, REPORTED, id="as the upstream reported"),
        pytest.param({"complete": False, "flags": frozenset({"DC"})}, REPORTED, id="left after the report"),
        pytest.param(
            {"reported": TokenCounts(100, 40, 10, 0)}, BilledTokens(100, 40, 0, False, 10), id="embeddings"
        ),
        pytest.param(
            {"reported": TokenCounts(100, 40), "text": TextCounts(1, 10_500)},
            BilledTokens(100, 40, 11, True),
            id="its output is not reported",
        ),
        pytest.param(
            {"final": False, "complete": False, "text": TEXT},
            BilledTokens(100, 40, 40, True, 10),
            id="text after the last report",
        ),
        pytest.param(
            {"final": False, "complete": False},
            REPORTED,
            id="left directly behind a report of what came so far",
        ),
        pytest.param({"status": 500}, None, id="an error with usage"),
        pytest.param({"status": 429}, None, id="refused by the upstream"),
        pytest.param({"status": 302}, None, id="no answer"),
        pytest.param({**LEFT, "flags": frozenset({"UC"}), "text": TEXT}, None, id="the upstream broke off"),
        pytest.param({"flags": frozenset({"UPE"})}, REPORTED, id="the upstream broke off after its report"),
        pytest.param(
            {"flags": frozenset({"UPE"}), "final": False}, None, id="the upstream did not answer with HTTP"
        ),
        pytest.param({"status": 503, "flags": frozenset({"OM"})}, None, id="refused for lack of memory"),
        pytest.param(
            {**LEFT, "status": 0, "flags": frozenset({"OM"})}, None, id="ended for it, not answered"
        ),
        pytest.param(
            {**LEFT, "flags": frozenset({"OM"}), "text": TEXT},
            BilledTokens(11, 0, 20, True),
            id="ended for it while it was answered",
        ),
        pytest.param(
            {**LEFT, "text": TextCounts(1, 900_000)}, BilledTokens(11, 0, 50, True), id="at most the bound"
        ),
        pytest.param(
            {**LEFT, "labels": {"estimate_input": "11", "max_input": "7"}},
            BilledTokens(7, 0, 0, True),
            id="at most the bound of the input",
        ),
        pytest.param(
            {**LEFT, "labels": {**NO_BOUNDS, "cached_share": "900"}},
            BilledTokens(11, 9, 0, True),
            id="the share that is usually cached",
        ),
        pytest.param({**LEFT, "text": TEXT}, BilledTokens(11, 0, 20, True), id="one token a piece"),
        pytest.param(
            {**LEFT, "text": TextCounts(1, 0, 2), "labels": {**NO_BOUNDS, "image_tokens": "1100"}},
            BilledTokens(11, 0, 2200, True),
            id="images",
        ),
        pytest.param(
            {**LEFT, "text": TextCounts(1, 0, 2), "labels": {**NO_BOUNDS, "image_tokens": "700"}},
            BilledTokens(11, 0, 1400, True),
            id="images of a model with a setting",
        ),
        pytest.param(
            {**LEFT, "text": TextCounts(1, 0, 2), "labels": NO_BOUNDS},
            BilledTokens(11, 0, 2200, True),
            id="images of a model without a setting",
        ),
        pytest.param(
            {**LEFT, "status": 0, "sent_bytes": 0}, BilledTokens(11, 0, 0, True), id="left before the answer"
        ),
        pytest.param(
            {**LEFT, "status": 0, "upstream_bytes": 0}, None, id="left before the call reached the upstream"
        ),
        pytest.param({"failed": True, "reported": TokenCounts(100, output=0)}, None, id="an error event"),
        pytest.param(
            {**LEFT, "failed": True, "text": TEXT, "complete": True, "flags": frozenset()},
            BilledTokens(11, 0, 20, True),
            id="an error after some text",
        ),
        pytest.param({"shape": "other"}, None, id="neither JSON nor a stream"),
        pytest.param(
            {"reported": TokenCounts(), "final": False}, None, id="an answer without text and usage"
        ),
        pytest.param(
            {**LEFT, "shape": "encoded", "sent_bytes": 80},
            BilledTokens(11, 0, 20, True),
            id="an encoding that is not read",
        ),
        pytest.param({"reported": TokenCounts(1001, output=20)}, NO_INPUT, id="input above its bound"),
        pytest.param({"reported": TokenCounts(100, output=51)}, NO_OUTPUT, id="output above its bound"),
        pytest.param(
            {
                "reported": TokenCounts(100, output=51),
                "labels": {**NO_BOUNDS, "max_output": "50", "output_ceiling": "60"},
            },
            BilledTokens(100, 0, 51, False),
            id="output above the caller's bound, not above the model's",
        ),
        pytest.param(
            {"reported": TokenCounts(100, output=10**8), "labels": NO_BOUNDS},
            NO_OUTPUT,
            id="absurd output",
        ),
        pytest.param(
            {"reported": TokenCounts(10**10, output=20), "labels": NO_BOUNDS}, NO_INPUT, id="absurd input"
        ),
        pytest.param({"reported": TokenCounts(100, 101, None, 20)}, NO_INPUT, id="cached above input"),
        pytest.param({"reported": TokenCounts(100, 60, 60, 20)}, NO_INPUT, id="cache above input"),
        pytest.param(
            {"impossible": True, "final": False, "reported": TokenCounts(100), "text": TEXT},
            BilledTokens(100, 0, 20, True, implausible=True),
            id="the text of output that cannot be",
        ),
        pytest.param({"impossible": True}, REPORTED, id="a later report that can be"),
        pytest.param(
            {"text": TEXT}, BilledTokens(100, 40, 40, True, 10), id="text after usage that seemed final"
        ),
        pytest.param({"failed": True, "undelivered": True}, None, id="an error before any text, with usage"),
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
        "first": None,
    }
    return json.dumps(values | changes, separators=(",", ":")).encode()


def counts(**seen: str) -> tuple[int | None, int | None, int | None]:
    read = parse(line(usage=seen)).reported
    return read.input, read.cached, read.output


def test_a_line_is_read() -> None:
    read = parse(line(flags="DC,UC", upstream=None))
    assert read.reported == TokenCounts(7, None, None, 2)
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
        ('{"prompt_tokens":7,"total_tokens":7}', (7, None, None)),
        ('{"prompt_tokens":7,"completion_tokens":2,"total_tokens":29}', (7, None, 22)),
        ('{"prompt_tokens":7,"completion_tokens":null}', (7, None, None)),
        ('{"prompt_tokens":7.0,"completion_tokens":2.5}', (7, None, None)),
        ('{"prompt_tokens":true,"completion_tokens":"2"}', (None, None, None)),
        ('{"prompt_tokens":-7,"completion_tokens":2}', (None, None, 2)),
        ('{"input_tokens":7,"output_tokens":2,"input_tokens_details":{"cached_tokens":4}}', (7, 4, 2)),
        ('{"input_tokens":7,"output_tokens":2}', (7, None, 2)),
        (
            '{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0,"input_tokens":7,"output_tokens":2}',
            (7, None, 2),
        ),
        ('{"prompt_tokens":7,"completion_tokens":2,"input_tokens":0,"output_tokens":0}', (7, None, 2)),
        ('{"prompt_tokens":7,"completion_tokens":0,"input_tokens":0}', (7, None, 0)),
        ('{"input_tokens":7,"cache_read_input_tokens":4,"output_tokens":2}', (11, 4, 2)),
        (
            '{"input_tokens":7,"cache_read_input_tokens":null,"cache_creation_input_tokens":3,"output_tokens":2}',
            (10, None, 2),
        ),
        ('{"cache_read_input_tokens":4,"output_tokens":2}', (None, 4, 2)),
        ("{}", (None, None, None)),
        ('{"prompt_tokens":7,', (7, None, None)),
        ('{"prompt_tokens":7,"completion_tokens":2,"x":"\x00', (7, None, 2)),
        ("[]", (None, None, None)),
    ],
)
def test_usage_is_read_by_any_of_its_names(usage: str, expected: tuple[int | None, ...]) -> None:
    assert counts(last=usage) == expected


@pytest.mark.parametrize("usage", ['{"prompt_tokens":7,"total_tokens":7}', '{"total_tokens":7}'])
def test_embeddings_have_no_output(usage: str) -> None:
    labels = '{"service":"a/b","dialect":"embeddings"}'
    assert parse(line(usage={"final": usage}, labels=labels)).reported == TokenCounts(input=7, output=0)


def test_the_end_of_a_stream_need_not_repeat_its_beginning() -> None:
    first = '{"input_tokens":7,"cache_read_input_tokens":4,"output_tokens":1}'
    assert counts(first=first, last='{"output_tokens":20}') == (11, 4, 20)
    assert counts(first=first, last='{"input_tokens":null,"output_tokens":20}') == (11, 4, 20)
    assert counts(first=first, last='{"input_tokens":8,"output_tokens":20}') == (12, 4, 20)
    assert counts(first=first, final='{"input_tokens":0,"output_tokens":0}') == (11, 4, 1)


LEFT_EARLY = {"flags": "DC", "details": "downstream_remote_disconnect"}


@pytest.mark.parametrize(
    ("changes", "final"),
    [
        ({}, True),
        (LEFT_EARLY, False),
        ({"details": "max_duration_timeout"}, False),
        ({**LEFT_EARLY, "usage": {"final": '{"prompt_tokens":7,"completion_tokens":2}'}}, True),
        ({"usage": {"first": '{"input_tokens":7}'}}, False),
        ({"usage": None}, False),
    ],
)
def test_whether_usage_covers_the_whole_answer(changes: dict[str, Any], final: bool) -> None:
    assert parse(line(**changes)).final is final


def test_what_was_reported_for_single_answers_is_added_up() -> None:
    seen = {"choices": "3 30 12", "last": '{"prompt_tokens":10,"completion_tokens":4,"cached_tokens":5}'}
    assert parse(line(usage=seen)).reported == TokenCounts(input=10, cached=5, output=12)
    of_two_prompts = parse(line(usage=seen, labels='{"service":"a/b","inputs":"2"}')).reported
    assert of_two_prompts == TokenCounts(input=20, cached=10, output=12)


def test_text_and_times_are_read() -> None:
    read = parse(line(usage={"content": "3 2900 1"}, first=12))
    assert (read.text, read.duration_ms, read.first_byte_ms) == (TextCounts(3, 2900, 1), 5, 12)
    assert parse(line(usage={"content": ""})).text is None
    assert parse(line(usage={"content": "0 0 0"})).text is None


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
    event = event_of(msgspec.structs.replace(WHOLE, duration_ms=250), REPORTED, "gateway-0")
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
    assert (read.input_tokens, read.cached_input_tokens, read.cache_write_input_tokens) == (100, 40, 10)
    assert (read.output_tokens, read.status, read.estimated) == (20, 200, False)
    assert (read.duration_ms, read.first_byte_ms) == (250, None)
    assert not read.estimated


def test_an_event_says_that_its_tokens_are_estimated() -> None:
    event = event_of(WHOLE, BilledTokens(100, 40, 20, True), "gateway-0")
    (read,) = parse_events(json.dumps([event]).encode(), BATCH).events
    assert read.estimated
