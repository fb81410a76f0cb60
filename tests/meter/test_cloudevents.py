"""CloudEvents: required attributes, bounds, and the rejection of single events."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.meter.cloudevents import BATCH, STRUCTURED, InvalidBody, parse, parse_binary
from farebox.meterapi.usage import UsageEvent
from tests.ledger.support import CHAT, usage
from tests.meter.support import cloud_event


def rejection_of(event: Any) -> str:
    """The rejection message of an event, in a batch with a valid one."""
    parsed = parse(json.dumps([event, cloud_event("good")]).encode(), BATCH)
    assert [item.id for item in parsed.events] == ["good"]
    assert list(parsed.indexes) == [1]
    (rejection,) = parsed.rejected
    assert (rejection.index, rejection.reason) == (0, "InvalidEvent")
    return rejection.message


def test_every_field_is_read() -> None:
    data = {
        "model": "qwen3-8b",
        "apiKey": "key-1",
        "inputTokens": 7,
        "cachedInputTokens": 3,
        "outputTokens": 5,
        "requestId": "req-1",
        "status": 200,
        "cacheWriteInputTokens": 2,
        "estimated": True,
        "durationMs": 1200,
        "firstByteMs": 80,
        "unknown": {"is": "ignored"},
    }
    event = cloud_event(data=data, datacontenttype="application/json", traceparent="00-1-1-00")
    parsed = parse(json.dumps(event).encode(), STRUCTURED)
    assert parsed.events == [
        UsageEvent(
            source="gateway-0",
            id="1",
            service=CHAT,
            time=usage().time,
            input_tokens=7,
            output_tokens=5,
            cached_input_tokens=3,
            model="qwen3-8b",
            api_key="key-1",
            request_id="req-1",
            status=200,
            cache_write_input_tokens=2,
            estimated=True,
            duration_ms=1200,
            first_byte_ms=80,
        )
    ]


def test_what_an_older_gateway_does_not_send_has_its_default() -> None:
    event = cloud_event(data={"inputTokens": 7, "outputTokens": 5})
    (read,) = parse(json.dumps(event).encode(), STRUCTURED).events
    assert (read.cache_write_input_tokens, read.estimated, read.duration_ms, read.first_byte_ms) == (
        0,
        False,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01T12:00:00Z", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("2026-03-01t12:00:00z", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("2026-03-01T14:00:00.5+02:00", datetime(2026, 3, 1, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-03-01T12:00:00.123456789Z", datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)),
    ],
)
def test_times_are_rfc_3339(text: str, moment: datetime) -> None:
    (event,) = parse(json.dumps(cloud_event(time=text)).encode(), STRUCTURED).events
    assert event.time == moment


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type", "subject", "time", "data"])
def test_a_missing_attribute_is_named(name: str) -> None:
    event = cloud_event()
    del event[name]
    assert name in rejection_of(event)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"type": "dev.farebox.usage.v2"}, "type"),
        ({"id": ""}, "id"),
        ({"id": "x" * 257}, "id"),
        ({"id": "a\nb"}, "id"),
        ({"id": 5}, "id"),
        ({"source": "x" * 257}, "source"),
        ({"subject": "chat"}, "subject"),
        ({"subject": "a/b/c"}, "subject"),
        ({"subject": "x" * 64 + "/chat"}, "subject"),
        ({"time": 1_700_000_000}, "time"),
        ({"time": "1700000000"}, "time"),
        ({"time": "2026-03-01"}, "time"),
        ({"time": "2026-03-01T12:00:00"}, "time"),
        ({"time": "2026-02-30T12:00:00Z"}, "time"),
        ({"time": "0001-01-01T00:00:00+23:00"}, "time"),
        ({"datacontenttype": "text/plain"}, "datacontenttype"),
        ({"data": {"inputTokens": -1, "outputTokens": 0}}, "inputTokens"),
        ({"data": {"inputTokens": 1_000_000_001, "outputTokens": 0}}, "inputTokens"),
        ({"data": {"inputTokens": 10**30, "outputTokens": 0}}, "inputTokens"),
        ({"data": {"inputTokens": "1", "outputTokens": 0}}, "inputTokens"),
        ({"data": {"inputTokens": 1.5, "outputTokens": 0}}, "inputTokens"),
        ({"data": {"inputTokens": True, "outputTokens": 0}}, "inputTokens"),
        ({"data": {"outputTokens": 0}}, "inputTokens"),
        ({"data": {"inputTokens": 1, "outputTokens": 0, "model": "x" * 254}}, "model"),
        ({"data": {"inputTokens": 1, "outputTokens": 0, "status": 1000}}, "status"),
        ({"data": {"inputTokens": 1, "outputTokens": 0, "apiKey": "x" * 254}}, "apiKey"),
        ({"data": {"inputTokens": 1, "outputTokens": 0, "apiKey": ""}}, "apiKey"),
        ({"data": {"inputTokens": 1, "outputTokens": 0, "apiKey": "a\tb"}}, "apiKey"),
        ({"data": {"inputTokens": 1, "outputTokens": 0, "requestId": "x" * 257}}, "requestId"),
        ({"data": {"inputTokens": 1, "outputTokens": 0, "cachedInputTokens": -1}}, "cachedInputTokens"),
        ({"data": {"inputTokens": 1, "outputTokens": 1_000_000_001}}, "outputTokens"),
        ({"subject": "team-a/" + "x" * 254}, "subject"),
        ({"source": "a\u202eb"}, "source"),
        ({"data": []}, "data"),
    ],
)
def test_an_attribute_out_of_bounds_is_named(changes: dict[str, Any], named: str) -> None:
    assert named in rejection_of(cloud_event() | changes)


@pytest.mark.parametrize("item", [None, 1, "event", [], [cloud_event()]])
def test_an_item_that_is_not_an_event_is_rejected_alone(item: Any) -> None:
    assert rejection_of(item)


def test_text_with_control_characters_is_rejected() -> None:
    body = json.dumps([cloud_event("\ud800")]).encode()
    with pytest.raises(InvalidBody):
        parse(body, BATCH)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
objects = st.dictionaries(st.text(max_size=8), scalars, max_size=2)
json_values = scalars | st.lists(scalars, max_size=2) | objects
attributes = st.sampled_from([*cloud_event(), "data"])


@given(st.lists(st.dictionaries(attributes, json_values, max_size=2), max_size=4))
def test_any_json_in_any_attribute_is_accepted_or_rejected(changes: list[dict[str, Any]]) -> None:
    batch = [cloud_event(str(index)) | change for index, change in enumerate(changes)]
    parsed = parse(json.dumps(batch).encode(), BATCH)
    places = [*parsed.indexes, *(item.index for item in parsed.rejected)]
    assert sorted(places) == list(range(len(batch)))
    for event in parsed.events:
        assert str(event.service).encode()
        assert event.id.encode()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        parsed = parse(body, BATCH)
    except InvalidBody:
        return
    assert len(parsed.events) + len(parsed.rejected) == len(json.loads(body))


def binary(**changes: str) -> tuple[list[tuple[str, str]], bytes]:
    """The headers and body of the event of tests.meter.support in binary mode."""
    event = cloud_event() | changes
    body = json.dumps(event.pop("data")).encode()
    return [(f"ce-{name}", value) for name, value in event.items()], body


def test_binary_and_structured_mode_read_the_same_event() -> None:
    structured = parse(json.dumps(cloud_event()).encode(), STRUCTURED)
    headers, body = binary()
    assert parse_binary(headers, body).events == structured.events
    others = [("Host", "meter"), ("Traceparent", "00-1-1-00"), ("CE-Partition", "7")]
    assert parse_binary([(name.upper(), value) for name, value in headers] + others, body) == parse_binary(
        headers, body
    )


@pytest.mark.parametrize(
    ("header", "identifier"),
    [
        ("plain-1", "plain-1"),
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("%2541", "%41"),
        ('"quoted \\"one\\""', 'quoted "one"'),
        ('"', '"'),
    ],
)
def test_attributes_in_headers_are_decoded_once(header: str, identifier: str) -> None:
    (event,) = parse_binary(*binary(id=header)).events
    assert event.id == identifier


def test_ids_with_invalid_utf8_are_rejected() -> None:
    for broken in ("%FF", "%FE", "a\udcff"):
        parsed = parse_binary(*binary(id=broken))
        assert not parsed.events
        assert parsed.rejected[0].message.startswith("id: Input should be a valid string")


def test_errors_of_a_binary_event_name_the_attribute() -> None:
    headers, body = binary()
    with pytest.raises(InvalidBody, match="ce-id is sent more than once"):
        parse_binary([*headers, ("Ce-Id", "2")], body)
    with pytest.raises(InvalidBody, match="The body is not JSON"):
        parse_binary(headers, b"tokens")
    (missed,) = parse_binary(headers[1:], body).rejected
    assert missed.message == "specversion: Field required"
    (other,) = parse_binary(*binary(type="com.example.other")).rejected
    assert other.message.startswith("type: ")
