"""Answers that upstreams send although no documentation has them: what their calls pay, and what passes."""

import json
from typing import Any

import pytest

from farebox.gateway.interface import UsageRedaction
from farebox.gateway.metering.usage import BilledTokens, billed_tokens, parse
from tests.gateway.envoy.test_response_filter import DOCUMENT, LONGEST_EVENT, STREAM, Answer, cut

NOTHING = UsageRedaction.NOTHING
DONE = b"data: [DONE]\n\n"
WORDS = "one two three four"


def data(document: Any, end: str = "\n") -> bytes:
    return f"data: {json.dumps(document)}{end}{end}".encode()


def text(words: str = WORDS, usage: Any = None, **more: Any) -> bytes:
    document = {"choices": [{"index": 0, "delta": {"content": words}, "finish_reason": None, **more}]}
    return data(document if usage is None else document | {"usage": usage})


def last(prompt: Any, completion: Any, **more: Any) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, **more}
    return data({"choices": [], "usage": usage})


def paid(answer: Answer, *, left: bool = False, **labels: str) -> BilledTokens | None:
    """What the call pays. `left`: its client left early."""
    line = {
        "at": "1772323200.250000",
        "details": "downstream_remote_disconnect" if left else "via_upstream",
        "flags": "DC" if left else "-",
        "id": "r-1",
        "labels": json.dumps({"service": "a/b", "estimate_input": "9", **labels}),
        "sent": len(answer.text),
        "status": 200,
        "upstream": 300,
        "usage": answer.reported,
    }
    return billed_tokens(parse(json.dumps(line).encode()))


def of(*events: bytes, left: bool = False, kind: bytes = STREAM, **options: Any) -> BilledTokens | None:
    """What a call pays that is answered by these pieces."""
    answer = Answer(NOTHING, list(events), kind, **options)
    assert answer.text == b"".join(events)
    return paid(answer, left=left, dialect=options.get("dialect", "chat"))


ESTIMATED = BilledTokens(7, 0, 4, estimated=True)


@pytest.mark.parametrize("completion", [0, None, "4", {}])
def test_text_without_a_count_is_estimated(completion: Any) -> None:
    assert of(text(), last(7, completion), DONE) == ESTIMATED
    message = {"choices": [{"message": {"content": WORDS}}]}
    usage = {"prompt_tokens": 7, "completion_tokens": completion}
    for document in (message | {"usage": usage}, {"usage": usage} | message):
        assert of(json.dumps(document).encode(), kind=DOCUMENT) == ESTIMATED


def test_zeros_take_nothing_back() -> None:
    reported = BilledTokens(7, 0, 4, estimated=False)
    zeros = last(7, 0, total_tokens=7)
    assert of(text(), last(7, 4), zeros, DONE) == reported
    assert of(text() + last(7, 4) + zeros + DONE) == reported
    assert of(text() + last(7, 4) + last(0, 0) + DONE) == reported
    assert of(text(usage={"prompt_tokens": 7, "completion_tokens": 4}), zeros, DONE) == reported


def test_text_after_usage_that_seems_final_is_charged() -> None:
    """Some report the input in an event without choices that comes first."""
    assert of(last(7, 1), text(), DONE) == BilledTokens(7, 0, 5, estimated=True)
    first = text("one", usage={"prompt_tokens": 7, "completion_tokens": 1})
    assert of(first, text(finish_reason="stop"), DONE) == BilledTokens(7, 0, 5, estimated=True)


@pytest.mark.parametrize("count", [10**8, 10**9, 2**63, 10**400, 1e30, 51])
def test_output_that_cannot_be_is_not_reported(count: float) -> None:
    for pieces in ([text(), last(7, count), DONE], [text() + last(7, count) + DONE]):
        answer = Answer(NOTHING, pieces, ceiling=50)
        seen = paid(answer, max_output="50")
        assert seen is not None
        assert (seen.output_tokens, seen.estimated, seen.implausible) == (4, True, True)
    each = [text("a", usage={"prompt_tokens": 7, "completion_tokens": number}) for number in (1, 2)]
    absurd = text("b", usage={"prompt_tokens": 7, "completion_tokens": count})
    third = text("c", usage={"prompt_tokens": 7, "completion_tokens": 4})
    for left in (True, False):
        seen = paid(Answer(NOTHING, [*each, absurd], ceiling=50), left=left, max_output="50")
        assert seen == BilledTokens(7, 0, 3, estimated=True, implausible=True)
        seen = paid(Answer(NOTHING, [*each, absurd, third, DONE], ceiling=50), left=left, max_output="50")
        assert seen == BilledTokens(7, 0, 4, estimated=False)


@pytest.mark.parametrize("count", [10**9, 10**400, 1e30, -5])
def test_a_sum_of_choices_forgets_what_cannot_be(count: float) -> None:
    def event(index: int, completion: float) -> bytes:
        usage = {"prompt_tokens": 7, "completion_tokens": completion}
        return data({"choices": [{"index": index, "delta": {"content": "a"}}], "usage": usage})

    pieces = [event(0, 3), event(1, 2), event(0, count), event(1, 4), event(0, 5)]
    answer = Answer(NOTHING, pieces, choices=2, by_choice=True)
    seen = paid(answer, left=True)
    assert seen is not None
    assert (seen.input_tokens, seen.output_tokens) == (7, 9)


START = {
    "type": "message_start",
    "message": {"content": [], "usage": {"input_tokens": 900, "output_tokens": 3}},
}
FAILED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


def test_an_error_before_any_text_costs_nothing() -> None:
    assert of(data(START), data(FAILED), dialect="messages") is None
    assert of(data(START) + data(FAILED), dialect="messages") is None
    delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": WORDS}}
    for pieces in ([data(START), data(delta), data(FAILED)], [data(START) + data(delta) + data(FAILED)]):
        assert of(*pieces, dialect="messages") == BilledTokens(900, 0, 7, estimated=True)


def test_a_response_that_failed_pays_for_what_came_before() -> None:
    usage = {"input_tokens": 7, "output_tokens": 40}
    failed = {"type": "response.failed", "response": {"error": {"code": "server_error"}, "usage": usage}}
    delta = {"type": "response.output_text.delta", "delta": WORDS}
    assert of(data(failed), dialect="responses") is None
    reported = BilledTokens(7, 0, 40, estimated=False)
    assert of(data(delta), data(failed), dialect="responses") == reported
    assert of(data(delta) + data(failed), dialect="responses") == reported


def test_an_error_in_a_choice_costs_nothing_without_text() -> None:
    choice = {"error": {"code": 502, "message": "Provider returned error"}, "finish_reason": "error"}
    usage = {"prompt_tokens": 7, "completion_tokens": 0}
    assert of(data({"choices": [choice]}), DONE) is None
    assert of(data({"choices": [choice], "usage": usage}), DONE) is None
    document = {"choices": [{**choice, "message": {"content": ""}}], "usage": usage}
    assert of(json.dumps(document).encode(), kind=DOCUMENT) is None
    assert of(text(), data({"choices": [choice]}), last(7, 4), DONE) == BilledTokens(7, 0, 4, estimated=False)


@pytest.mark.parametrize(
    "document",
    [
        {"code": 50001, "msg": "No channel", "data": None},
        {"base_resp": {"status_code": 1004}, "choices": None},
        {"success": False, "data": []},
    ],
)
def test_an_answer_without_anything_in_it_costs_nothing(document: Any) -> None:
    assert of(json.dumps(document).encode(), kind=DOCUMENT) is None


@pytest.mark.parametrize("dialect", ["chat", "messages"])
def test_a_document_without_usage_is_estimated_wherever_it_is_cut(dialect: str) -> None:
    words = ('A "quoted" word\\ and more. ' * 40).strip()
    answer: Any = {"choices": [{"message": {"content": words}}], "model": "m" * 90}
    if dialect == "messages":
        answer = {"content": [{"type": "text", "text": words}], "model": "m" * 90}
    whole = json.dumps(answer).encode()
    expected = of(whole, kind=DOCUMENT, dialect=dialect)
    assert expected is not None
    for size in (1, 2, 7, 100):
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert of(*pieces, kind=DOCUMENT, dialect=dialect) == expected


def test_the_text_and_the_images_of_a_long_event_are_counted() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * (3 * LONGEST_EVENT)}}
    stream = data({"choices": [{"delta": {"content": WORDS, "images": [image]}}]}) + text(" five")
    for step in (1, 7):
        places = list(range(0, 400, step)) + list(range(0, len(stream), 16_000))
        answer = Answer(NOTHING, [*cut(stream, places)])
        assert answer.reported["content"] == "2 5000 1"
        assert answer.text == stream


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_follows_a_long_event_is_read_as_ever(end: str) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 4}
    long = data({"choices": [{"delta": {"content": "", "x": "x" * (2 * LONGEST_EVENT)}}]}, end)
    final = data({"choices": [], "usage": usage}, end)
    for cuts in ([len(long) - 1], [len(long)], [len(long) - len(end)], [len(long) + 5], []):
        answer = Answer(UsageRedaction.ALL, cut(long + final, [*range(0, 600_000, 16_000), *cuts]))
        assert answer.usage == {"final": usage}
        assert answer.text == long


def test_heartbeats_pass_at_once() -> None:
    """Clients wait for them."""
    usage = {"prompt_tokens": 7, "completion_tokens": 4}
    pieces = [text(), b": wait\n", b"\n", b": wa", b"it\r\n", b":\r", b"\n", b"data", last(7, 4)[4:]]
    kept = [text(), b": wait\n", b"\n", b"", b": wait\r\n", b":\r", b"\n", b"", b""]
    answer = Answer(UsageRedaction.ALL, pieces)
    assert answer.usage == {"final": usage}
    assert answer.pieces == kept


def test_an_error_is_not_removed_with_the_usage_beside_it() -> None:
    error = {"error": {"message": "No more capacity"}, "choices": []}
    event = data({**error, "usage": {"prompt_tokens": 7, "completion_tokens": 0}})
    seen = Answer(UsageRedaction.ALL, [event]).text
    assert json.loads(seen[6:]) == {**error, "usage": None}


def test_a_byte_order_mark_may_be_cut() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 4}
    document = b"\xef\xbb\xbf" + json.dumps({"choices": [], "usage": usage}).encode()
    pieces = [document[at : at + 1] for at in range(len(document))]
    assert of(*pieces, kind=DOCUMENT) == BilledTokens(7, 0, 4, estimated=False)


def test_what_a_caller_names_error_is_not_read_again_and_again() -> None:
    def steps(number: int) -> int:
        schema = {"properties": [{"error": {"type": "integer"}}] * number}
        stream = data({"response": {"tools": [schema]}})
        answer = Answer(NOTHING, [stream], dialect="responses", compiled=False)
        assert answer.reported == {}
        return answer.steps

    assert 0 < steps(1000) < 3 * steps(500)


def test_names_of_functions_are_text() -> None:
    call = {"index": 0, "function": {"name": "read_file", "arguments": '{"path"'}}
    seen = Answer(NOTHING, [data({"choices": [{"delta": {"tool_calls": [call]}}]})])
    pieces, tokens, _ = map(int, seen.reported["content"].split())
    without = {"index": 0, "function": {"arguments": '{"path"'}}
    less = Answer(NOTHING, [data({"choices": [{"delta": {"tool_calls": [without]}}]})])
    assert tokens - int(less.reported["content"].split()[1]) >= 2000
    assert pieces == 2


ERROR = {":status": "400"}
KEYS = [
    "AIzaSyD-9tSrke72_PouQMnMX-a7eZSW0jkFMBWY",
    "gsk_aB3dE5gH7jK9",
    "xai-Ab12Cd34",
    "AKIAIOSFODNN7EXAMPLE",
    "Bearer abc.def-123",
    "eyJhbGciOi.J9",
    "d41d8cd98f00b204e9800998ecf8427e",
    "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    "hf_AbCdEfGh",
    "pplx-1234abcd",
]


@pytest.mark.parametrize("key", KEYS)
def test_keys_of_any_form_are_not_shown(key: str) -> None:
    body = json.dumps({"error": {"message": f"'model' is wrong for {key}, says Qwen2.5-VL-72B-Instruct-AWQ"}})
    seen = Answer(NOTHING, [body.encode()], DOCUMENT, headers=ERROR)
    assert key.removeprefix("Bearer ").encode()[-6:] not in seen.text
    assert b"***" in seen.text
    assert b"Qwen2.5-VL-72B-Instruct-AWQ" in seen.text


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"<html>nginx sk-12345678</html>", {}),
        (b'{"detail":"' + b"x " * 40_000 + b'"}', {}),
        (b"\x78\x9c\x00\x01", {"content-encoding": "deflate"}),
    ],
)
def test_an_error_that_cannot_be_shown_is_replaced(body: bytes, headers: dict[str, str]) -> None:
    seen = Answer(NOTHING, [body], b"text/html", headers={**ERROR, **headers})
    error = json.loads(seen.text)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "upstream_rejected")
    assert seen.headers == {":status": "400", "content-type": "application/json"}
