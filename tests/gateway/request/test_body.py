"""Request bodies: hostile ones are refused, and values that the gateway does not set are unchanged."""

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.api import StreamUsage
from farebox.domain.admission.types import Denied
from farebox.gateway.interface import UsageRedaction
from farebox.gateway.request.body import parse
from farebox.gateway.request.endpoints import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    ENDPOINTS,
    MESSAGES,
    RESPONSES,
    APIEndpoint,
)
from farebox.gateway.request.json_objects import MAX_KEYS
from farebox.gateway.request.structure import MAX_DEPTH
from tests.domain.strategies import THOROUGH

EACH = StreamUsage.EACH_EVENT


def nested(levels: int) -> bytes:
    """A chat nested `levels` deep; the body itself is the first level."""
    return b'{"model":"m","x":%s%s}' % (b"[" * (levels - 1), b"]" * (levels - 1))


Case = tuple[str, APIEndpoint, bytes, str]
MALFORMED: list[Case] = [
    ("empty", CHAT, b"", "invalid_json"),
    ("no JSON", CHAT, b"model=m", "invalid_json"),
    ("cut off", CHAT, b'{"model":"m"', "invalid_json"),
    ("more behind", CHAT, b'{"model":"m"}{"model":"n"}', "invalid_json"),
    ("a NUL behind", CHAT, b'{"model":"m"}\0', "invalid_json"),
    ("byte order mark", CHAT, b'\xef\xbb\xbf{"model":"m"}', "invalid_json"),
    ("UTF-16", CHAT, '{"model":"m"}'.encode("utf-16"), "invalid_utf8"),
    ("single quotes", CHAT, b"{'model':'m'}", "invalid_json"),
    ("a comment", CHAT, b'{"model":"m"/**/}', "invalid_json"),
    ("a comma too many", CHAT, b'{"model":"m",}', "invalid_json"),
    ("NaN", CHAT, b'{"model":"m","temperature":NaN}', "invalid_json"),
    ("Infinity", CHAT, b'{"model":"m","temperature":Infinity}', "invalid_json"),
    ("leading zero", CHAT, b'{"model":"m","max_tokens":01}', "invalid_json"),
    ("control character", CHAT, b'{"model":"m","x":"\x01"}', "invalid_json"),
    ("bad escape", CHAT, b'{"model":"m","x":"\\x41"}', "invalid_json"),
    ("half a surrogate pair", CHAT, b'{"model":"\\ud800"}', "invalid_json"),
    ("bad UTF-8 in a value", CHAT, b'{"model":"m","x":"\xff"}', "invalid_utf8"),
    ("bad UTF-8 in a key", CHAT, b'{"model":"m","\xc0\x80":1}', "invalid_utf8"),
    ("surrogate in UTF-8", CHAT, b'{"model":"m","x":"\xed\xa0\x80"}', "invalid_utf8"),
    ("overlong UTF-8", CHAT, b'{"model":"m","x":"\xc1\xbf"}', "invalid_utf8"),
    ("array", CHAT, b'[{"model":"m"}]', "invalid_type"),
    ("string", CHAT, b'"model"', "invalid_type"),
    ("null", CHAT, b"null", "invalid_type"),
    ("number", CHAT, b"1", "invalid_type"),
    ("no model", CHAT, b"{}", "missing_model"),
    ("empty model", CHAT, b'{"model":""}', "missing_model"),
    ("model null", CHAT, b'{"model":null}', "invalid_type"),
    ("model a number", CHAT, b'{"model":1}', "invalid_type"),
    ("model a list", CHAT, b'{"model":["m"]}', "invalid_type"),
    ("long model", CHAT, b'{"model":"%s"}' % (b"m" * 254), "invalid_type"),
    ("model twice", CHAT, b'{"model":"m","model":"n"}', "duplicate_key"),
    ("model twice, escaped", CHAT, b'{"model":"m","mode\\u006c":"n"}', "duplicate_key"),
    ("stream twice", CHAT, b'{"model":"m","stream":false,"stream":true}', "duplicate_key"),
    ("max_tokens twice", CHAT, b'{"model":"m","max_tokens":1,"max_tokens":9}', "duplicate_key"),
    ("any key twice", CHAT, b'{"model":"m","x":1,"x":1}', "duplicate_key"),
    ("Model", CHAT, b'{"model":"m","Model":"n"}', "ambiguous_key"),
    ("STREAM", CHAT, b'{"model":"m","stream":false,"STREAM":true}', "ambiguous_key"),
    ("long s", CHAT, '{"model":"m","\u017ftream":true}'.encode(), "ambiguous_key"),
    ("Kelvin", CHAT, '{"model":"m","max_to\u212aens":9}'.encode(), "ambiguous_key"),
    ("stream a string", CHAT, b'{"model":"m","stream":"true"}', "invalid_type"),
    ("stream a number", CHAT, b'{"model":"m","stream":1}', "invalid_type"),
    ("stream a list", CHAT, b'{"model":"m","stream":[]}', "invalid_type"),
    ("many prompts", COMPLETIONS, b'{"model":"m","prompt":[%s""]}' % (b'"",' * 300_000), "too_complex"),
    ("a long key", CHAT, b'{"model":"m","%s":1}' % (b"k" * 2000), "too_complex"),
    ("many numbers", CHAT, b'{"model":"m","x":[%s1]}' % (b"1," * 400_000), "too_complex"),
    ("300 keys", CHAT, b'{"model":"m",%s}' % b",".join(b'"%d":1' % n for n in range(300)), "too_many_keys"),
    ("too deep", CHAT, nested(MAX_DEPTH + 1), "nested_too_deeply"),
    ("very deep", CHAT, nested(100_000), "nested_too_deeply"),
    ("many lists", CHAT, b'{"model":"m","x":[%s1]}' % (b"[]," * 300_000), "too_complex"),
    (
        "many towers",
        CHAT,
        b'{"model":"m","x":[%s1]}' % ((b"[" * 60 + b"]" * 60 + b",") * 10_000),
        "too_complex",
    ),
    ("many texts", CHAT, b'{"model":"m","x":[%s1]}' % (b'"[",' * 300_000), "too_complex"),
    (
        "many keys",
        CHAT,
        b'{"model":"m",%s}' % b",".join(b'"%d":1' % n for n in range(300_000)),
        "too_complex",
    ),
]
"""Refused at every endpoint."""
UNSUPPORTED: list[Case] = [
    ("options a list", CHAT, b'{"model":"m","stream":true,"stream_options":[]}', "invalid_type"),
    (
        "no usage, a string",
        CHAT,
        b'{"model":"m","stream":true,"stream_options":{"include_usage":"no"}}',
        "invalid_type",
    ),
    (
        "options' key twice",
        CHAT,
        b'{"model":"m","stream":true,"stream_options":{"include_usage":true,"include_usage":false}}',
        "duplicate_key",
    ),
    (
        "options' key in capitals",
        CHAT,
        b'{"model":"m","stream":true,"stream_options":{"Include_Usage":false}}',
        "ambiguous_key",
    ),
    ("max_tokens a string", CHAT, b'{"model":"m","max_tokens":"9"}', "invalid_type"),
    ("max_tokens a fraction", CHAT, b'{"model":"m","max_tokens":9.5}', "invalid_type"),
    ("max_tokens negative", CHAT, b'{"model":"m","max_tokens":-1}', "invalid_type"),
    ("max_tokens huge", CHAT, b'{"model":"m","max_tokens":1%s}' % (b"0" * 400), "invalid_type"),
    ("max_tokens true", CHAT, b'{"model":"m","max_tokens":true}', "invalid_type"),
    ("no answer at all", CHAT, b'{"model":"m","max_completion_tokens":0}', "invalid_type"),
    ("no answer, old", CHAT, b'{"model":"m","max_tokens":0}', "invalid_type"),
    ("no response", RESPONSES, b'{"model":"m","max_output_tokens":0}', "invalid_type"),
    ("no message", MESSAGES, b'{"model":"m","max_tokens":0}', "invalid_type"),
    ("llama.cpp's bound", CHAT, b'{"model":"m","max_tokens":1,"n_predict":999}', "not_offered"),
    ("llama.cpp's, none", COMPLETIONS, b'{"model":"m","max_tokens":1,"n_predict":-1}', "not_offered"),
    ("llama.cpp's, 0", CHAT, b'{"model":"m","max_tokens":1,"n_predict":0}', "not_offered"),
    ("inputs mixed", EMBEDDINGS, b'{"model":"m","input":["a",1]}', "invalid_type"),
    ("n is 0", CHAT, b'{"model":"m","n":0}', "invalid_type"),
    ("n is huge", CHAT, b'{"model":"m","n":129}', "invalid_type"),
    ("best_of is huge", COMPLETIONS, b'{"model":"m","best_of":1000}', "invalid_type"),
    ("prompts mixed", COMPLETIONS, b'{"model":"m","prompt":["a",1]}', "invalid_type"),
    ("background", RESPONSES, b'{"model":"m","background":true}', "not_offered"),
    ("background, odd", RESPONSES, b'{"model":"m","background":1}', "not_offered"),
    ("previous answer", RESPONSES, b'{"model":"m","previous_response_id":"r"}', "not_offered"),
    ("conversation", RESPONSES, b'{"model":"m","conversation":{"id":"c"}}', "not_offered"),
    ("stored prompt", RESPONSES, b'{"model":"m","prompt":{"id":"p"}}', "not_offered"),
]
"""Refused where the field has a meaning; other endpoints ignore it."""
HOSTILE = MALFORMED + UNSUPPORTED


@pytest.mark.parametrize(
    ("endpoint", "body", "code"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
def test_hostile_bodies_are_refused(endpoint: APIEndpoint, body: bytes, code: str) -> None:
    with pytest.raises(Denied) as caught:
        parse(endpoint, body)
    assert caught.value.code == code
    assert caught.value.message


def test_bodies_as_deep_and_as_many_keyed_as_allowed_are_read() -> None:
    assert parse(CHAT, nested(MAX_DEPTH)).model == "m"
    deep: Any = 1
    for level in range(MAX_DEPTH - 1):
        deep = [deep] if level % 2 else {"a": deep}
    assert parse(CHAT, json.dumps({"model": "m", "x": deep}).encode()).model == "m"
    with pytest.raises(Denied, match="64 levels"):
        parse(CHAT, json.dumps({"model": "m", "x": [deep]}).encode())
    many = {"model": "m"} | dict.fromkeys(map(str, range(MAX_KEYS - 1)))
    assert len(parse(CHAT, json.dumps(many).encode()).fields) == MAX_KEYS
    with pytest.raises(Denied, match="256 keys"):
        parse(CHAT, json.dumps(many | {"one": "more"}).encode())


def test_brackets_in_strings_are_not_nesting() -> None:
    for text in ('["\\[{' * 1000, "\\" * 99 + "[" * 99, '\\"[' * 99, '"' + "[" * 99 + "\\"):
        body = json.dumps({"model": "m", "x": text, "y": [[]] * 500, "z": text}).encode()
        assert parse(CHAT, body).model == "m"


def code_of(endpoint: APIEndpoint, body: bytes) -> str:
    """The code of the denial; "" if the body is accepted. Any other exception fails the test."""
    try:
        parse(endpoint, body)
    except Denied as denied:
        return denied.code if denied.status == 400 else f"{denied.status} {denied.code}"
    return ""


def test_malformed_bodies_are_refused_at_every_endpoint() -> None:
    for name, _, body, code in MALFORMED:
        found = {path: code_of(endpoint, body) for path, endpoint in ENDPOINTS.items()}
        assert found == dict.fromkeys(ENDPOINTS, code), name


def test_unsupported_fields_are_ignored_where_they_have_no_meaning() -> None:
    for name, refusing, body, code in UNSUPPORTED:
        found = {path: code_of(endpoint, body) for path, endpoint in ENDPOINTS.items()}
        assert found[refusing.path] == code, name
        assert "" in found.values(), name
        assert set(found.values()) <= {code, "", "not_offered"}, name


@pytest.mark.parametrize("stream", [b"", b',"stream":null', b',"stream":false'])
def test_options_of_a_call_without_a_stream_are_unchanged(stream: bytes) -> None:
    body = parse(CHAT, b'{"model":"m","stream_options":{"include_usage":false}%s}' % stream)
    assert not body.stream
    assert b'"stream_options":{"include_usage":false}' in body.rewritten("served", EACH)


@pytest.mark.parametrize(
    "options",
    [
        b"",
        b',"stream_options":null',
        b',"stream_options":{}',
        b',"stream_options":{"include_usage":false}',
        b',"stream_options":{"include_usage":null,"continuous_usage_stats":false}',
    ],
)
@pytest.mark.parametrize("continuous", [True, False])
def test_usage_is_requested_for_every_stream(options: bytes, continuous: bool) -> None:
    body = parse(CHAT, b'{"model":"m","stream":true%s}' % options)
    written = json.loads(body.rewritten("served", EACH if continuous else StreamUsage.LAST_EVENT))
    assert written["stream_options"]["include_usage"] is True
    if continuous:
        assert written["stream_options"]["continuous_usage_stats"] is True
    else:
        assert written["stream_options"].get("continuous_usage_stats", False) is False


ASKED: list[tuple[bytes, UsageRedaction, UsageRedaction]] = [
    # The options; what is hidden of an upstream that tells usage at the end, and with each event.
    (b"", UsageRedaction.ALL, UsageRedaction.ALL),
    (b'{"include_usage":false}', UsageRedaction.ALL, UsageRedaction.ALL),
    (b'{"include_usage":null,"continuous_usage_stats":true}', UsageRedaction.ALL, UsageRedaction.ALL),
    (b'{"include_usage":true}', UsageRedaction.NOTHING, UsageRedaction.EACH_EVENT),
    (
        b'{"include_usage":true,"continuous_usage_stats":false}',
        UsageRedaction.NOTHING,
        UsageRedaction.EACH_EVENT,
    ),
    (b'{"include_usage":true,"continuous_usage_stats":true}', UsageRedaction.NOTHING, UsageRedaction.NOTHING),
]


@pytest.mark.parametrize(("options", "at_the_end", "continuous"), ASKED)
def test_usage_is_redacted_for_callers_that_did_not_ask(
    options: bytes, at_the_end: UsageRedaction, continuous: UsageRedaction
) -> None:
    given = b',"stream_options":' + options if options else b""
    for endpoint in (CHAT, COMPLETIONS):
        body = parse(endpoint, b'{"model":"m","stream":true%s}' % given)
        assert body.redaction() is at_the_end
        assert body.redaction(EACH) is continuous


@pytest.mark.parametrize("endpoint", [RESPONSES, MESSAGES, EMBEDDINGS, CHAT])
def test_nothing_is_redacted_where_the_gateway_added_no_request_for_usage(endpoint: APIEndpoint) -> None:
    stream = b"false" if endpoint is CHAT else b"true"
    body = parse(endpoint, b'{"model":"m","stream":%s}' % stream)
    assert body.redaction(EACH) is UsageRedaction.NOTHING


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=ENDPOINTS)
@pytest.mark.parametrize("stream", [b"true", b"false", b"null"])
def test_added_usage_options_are_known_and_redacted(endpoint: APIEndpoint, stream: bytes) -> None:
    body = parse(endpoint, b'{"model":"m","stream":%s}' % stream)
    assert body.asks_for_usage(StreamUsage.LAST_EVENT) is (
        endpoint in (CHAT, COMPLETIONS) and stream == b"true"
    )
    assert body.asks_for_usage(StreamUsage.LAST_EVENT) is (b"include_usage" in body.rewritten("served"))
    assert body.asks_for_usage(StreamUsage.LAST_EVENT) is (body.redaction() is UsageRedaction.ALL)


@pytest.mark.parametrize("options", [b"", b',"stream_options":{"include_usage":true}'])
def test_a_server_that_refuses_stream_options_gets_only_the_callers(options: bytes) -> None:
    body = parse(CHAT, b'{"model":"m","stream":true%s}' % options)
    assert body.rewritten("m", StreamUsage.NEVER) == b'{"model":"m","stream":true%s}' % options
    assert body.redaction(StreamUsage.NEVER) is UsageRedaction.NOTHING
    assert not body.asks_for_usage(StreamUsage.NEVER)


def test_other_options_of_a_stream_keep_their_bytes() -> None:
    body = parse(CHAT, b'{"model":"m","stream":true,"stream_options":{"x": [1.0,  "\\u00e9"]}}')
    assert b'{"x":[1.0,  "\\u00e9"],"include_usage":true}' in body.rewritten("served")


@pytest.mark.parametrize("endpoint", [RESPONSES, MESSAGES, EMBEDDINGS])
def test_endpoints_that_report_usage_by_default_get_no_option(endpoint: APIEndpoint) -> None:
    body = parse(endpoint, b'{"model":"m","stream":true}')
    assert body.rewritten("served", EACH) == b'{"model":"served","stream":true}'


def test_values_keep_every_byte() -> None:
    odd = (
        b'{ "temperature" : 1.0e-0 , "seed":123456789012345678901234567890, "model" : "m",'
        b'"x":"\\u00e9\\/\xc3\xa9","y":[ 1 , 2.50 ,{ "a" : null } ], "\\u006b":-0.0 }'
    )
    assert parse(CHAT, odd).rewritten("Qwen/Qwen3-8B") == (
        b'{"temperature":1.0e-0,"seed":123456789012345678901234567890,"model":"Qwen/Qwen3-8B",'
        b'"x":"\\u00e9\\/\xc3\xa9","y":[ 1 , 2.50 ,{ "a" : null } ],"k":-0.0}'
    )


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
RAW = st.builds(
    lambda value, ascii_, indent: json.dumps(value, ensure_ascii=ascii_, indent=indent).encode(),
    JSON,
    st.booleans(),
    st.sampled_from([None, 0, 2]),
)


@THOROUGH
@given(
    fields=st.dictionaries(st.text(string.ascii_lowercase, min_size=1, max_size=6), RAW, max_size=6),
    stream=st.booleans(),
    space=st.sampled_from([b"", b" ", b"\n\t"]),
    endpoint=st.sampled_from(list(ENDPOINTS.values())),
)
def test_rewriting_keeps_the_bytes_of_every_value(
    fields: dict[str, bytes], stream: bool, space: bytes, endpoint: APIEndpoint
) -> None:
    fields = {name: raw for name, raw in fields.items() if name not in ("n", "prompt", "model", "stream")}
    fields |= {"model": b'"m"', "stream": b"true" if stream else b"false"}
    written = b",".join(
        b"%s%s%s:%s%s" % (space, json.dumps(name).encode(), space, space, raw) for name, raw in fields.items()
    )
    body = parse(endpoint, b"{%s%s}" % (written, space))
    again = parse(endpoint, body.rewritten("served"))
    assert again.model == "served"
    for name, raw in fields.items():
        if name != "model":
            assert bytes(again.fields[name]) == raw
    extra = {"stream_options"} if stream and endpoint.asks_for_usage else set()
    assert set(again.fields) == set(fields) | extra


@pytest.mark.parametrize(
    ("endpoint", "fields", "asked", "choices"),
    [
        (CHAT, {}, None, 1),
        (CHAT, {"max_tokens": None}, None, 1),
        (CHAT, {"max_tokens": 5}, 5, 1),
        (CHAT, {"max_completion_tokens": 7}, 7, 1),
        (CHAT, {"max_completion_tokens": 7, "max_tokens": 9}, 9, 1),
        (CHAT, {"max_tokens": 5, "n": 3}, 5, 3),
        (CHAT, {"n": None}, None, 1),
        (COMPLETIONS, {"max_tokens": 5, "n": 2, "best_of": 4}, 5, 4),
        (COMPLETIONS, {"prompt": "text"}, None, 1),
        (COMPLETIONS, {"prompt": ["a", "b", "c"]}, None, 3),
        (COMPLETIONS, {"prompt": ["a", "b", "c"], "n": 2}, None, 6),
        (COMPLETIONS, {"prompt": [1, 2, 3]}, None, 1),
        (COMPLETIONS, {"prompt": [[1, 2], [3]]}, None, 2),
        (COMPLETIONS, {"prompt": []}, None, 1),
        (COMPLETIONS, {"prompt": ["[", "]"]}, None, 2),
        (EMBEDDINGS, {"input": ["a", "b"], "max_tokens": 9}, 0, 1),
        (RESPONSES, {"max_output_tokens": 11, "max_tokens": 99}, 11, 1),
        (MESSAGES, {"max_tokens": 12}, 12, 1),
    ],
)
def test_how_long_the_answers_may_be(
    endpoint: APIEndpoint, fields: dict[str, Any], asked: int | None, choices: int
) -> None:
    body = parse(endpoint, json.dumps({"model": "m", **fields}).encode())
    assert (body.asked_output, body.choices) == (asked, choices)


@pytest.mark.parametrize(
    ("endpoint", "fields", "inputs"),
    [
        (CHAT, {"input": ["a", "b"], "prompt": ["a", "b"]}, 1),
        (RESPONSES, {"input": ["a", "b"]}, 1),
        (COMPLETIONS, {}, 1),
        (COMPLETIONS, {"prompt": "text"}, 1),
        (COMPLETIONS, {"prompt": ["a", "[", "{"], "n": 2}, 3),
        (COMPLETIONS, {"prompt": [[1, 2], [3]]}, 2),
        (EMBEDDINGS, {"input": "text"}, 1),
        (EMBEDDINGS, {"input": []}, 1),
        (EMBEDDINGS, {"input": ["a", "b", "c"]}, 3),
        (EMBEDDINGS, {"input": [1, 2, 3]}, 1),
        (EMBEDDINGS, {"input": [[1, 2], [3]]}, 2),
        (EMBEDDINGS, {"input": [{"text": "a"}, {"text": "b"}]}, 2),
    ],
)
def test_how_many_texts_the_model_reads_separately(
    endpoint: APIEndpoint, fields: dict[str, Any], inputs: int
) -> None:
    assert parse(endpoint, json.dumps({"model": "m", **fields}).encode()).inputs == inputs


def test_a_prompt_alone_may_be_asked_for() -> None:
    body = parse(COMPLETIONS, b'{"model":"m","prompt":"x","echo":true,"logprobs":1,"max_tokens":0}')
    assert body.asked_output == 0


def test_a_bound_is_written_where_the_caller_set_none() -> None:
    assert b'"max_tokens":64' in parse(CHAT, b'{"model":"m"}').rewritten("s", max_output=64)
    assert b'"max_output_tokens":64' in parse(RESPONSES, b'{"model":"m"}').rewritten("s", max_output=64)
    kept = parse(CHAT, b'{"model":"m","max_tokens":5}').rewritten("s", max_output=64)
    assert kept == b'{"model":"s","max_tokens":5}'
    null = parse(CHAT, b'{"model":"m","max_tokens":null}').rewritten("s", max_output=64)
    assert null == b'{"model":"s","max_tokens":64}'


TEXT = {"role": "user", "content": "hello"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "an image of a file"}]}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y"}}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("fields", "text_only"),
    [
        ({"messages": [TEXT]}, True),
        ({"messages": [PARTS]}, True),
        ({"messages": [TEXT], "tools": [TOOL], "response_format": {"type": "json_object"}}, True),
        ({"messages": [TEXT], "tools": [{"name": "f", "input_schema": {"type": "object"}}]}, True),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]}, True),
        ({"messages": [TEXT, IMAGE]}, False),
        ({"messages": [{"role": "user", "content": [{"image_url": "https://x"}]}]}, False),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, False),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, False),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "image"}]}]}
                ]
            },
            False,
        ),
        ({"messages": [{"role": "user", "content": [{"type": ["text"], "text": ""}]}]}, False),
        ({"messages": [TEXT], "tools": [{"type": "web_search_20250305", "name": "web_search"}]}, False),
        ({"messages": [TEXT], "web_search_options": {}}, False),
        ({"messages": [TEXT], "mcp_servers": []}, False),
        ({"messages": [TEXT], "chat_template_kwargs": {"enable_thinking": False}}, True),
        ({"messages": [TEXT], "chat_template": "{{ 'x' * 1000000 }}"}, False),
        ({"messages": [TEXT], "chat_template_kwargs": {"chat_template": "{{ 'x' * 1000000 }}"}}, False),
        ({"input": "hello"}, True),
        ({"input": [{"type": "message", "role": "user", "content": "x"}]}, True),
        ({"input": [{"type": "item_reference", "id": "x"}]}, False),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, False),
        ({"input": "hi", "tools": [{"type": "file_search", "vector_store_ids": []}]}, False),
    ],
)
def test_requests_with_content_other_than_text_are_found(fields: dict[str, Any], text_only: bool) -> None:
    body = json.dumps({"model": "m", **fields}).encode()
    assert parse(RESPONSES if "input" in fields else CHAT, body).content.text_only is text_only


def test_a_reference_cannot_be_hidden() -> None:
    hidden = [
        b'{"model":"m","messages":[{"content":[{"\\u0074ype":"image_url","x":{}}]}]}',
        b'{"model":"m","messages":[{"content":[{"\\u0069mage_url":"https://x"}]}]}',
        b'{"model":"m","messages":[],"chat_tem\\u0070late":"x"}',
    ]
    for body in hidden:
        assert not parse(CHAT, body).content.text_only
    twice = b'{"model":"m","messages":[{"content":[{"type":"image_url","type":"text"}]}]}'
    assert code_of(CHAT, twice) == "duplicate_key"
