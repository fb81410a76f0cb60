"""Media in requests: which pieces are found, and which bytes are not counted as text (B28)."""

import json
from typing import Any

import msgspec
import pytest

from farebox.domain.admission.types import MediaPieces
from farebox.gateway.request.body import parse
from farebox.gateway.request.content import Content
from farebox.gateway.request.endpoints import CHAT, MESSAGES, RESPONSES, APIEndpoint
from farebox.gateway.request.plain import is_plain
from tests.gateway.harness import UNIT, Harness, model, service

DATA = "A" * 40_000
PNG = f"data:image/png;base64,{DATA}"
PDF = f"data:application/pdf;base64,{DATA}"
QUOTES = 2


def content(endpoint: APIEndpoint, *parts: Any, field: str = "messages", **more: Any) -> Content:
    """The content of a request with these parts in one message."""
    body = {"model": "m", field: [{"role": "user", "content": list(parts)}], **more}
    return parse(endpoint, json.dumps(body).encode()).content


def pieces(encoded: str, **counts: int) -> MediaPieces:
    return MediaPieces(encoded_bytes=len(encoded) + QUOTES, **counts)


FOUND: list[tuple[str, APIEndpoint, dict[str, Any], MediaPieces]] = [
    ("image", CHAT, {"type": "image_url", "image_url": {"url": PNG}}, pieces(PNG, images=1)),
    ("image, vLLM", CHAT, {"image_url": {"url": PNG}}, pieces(PNG, images=1)),
    ("image, flat", CHAT, {"type": "image_url", "image_url": PNG}, pieces(PNG, images=1)),
    (
        "audio",
        CHAT,
        {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}},
        pieces(DATA, audios=1),
    ),
    ("video", CHAT, {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{DATA}"}},
     pieces(f"data:video/mp4;base64,{DATA}", videos=1)),
    ("file", CHAT, {"type": "file", "file": {"filename": "a", "file_data": PDF}}, pieces(PDF, files=1)),
    ("input_image", RESPONSES, {"type": "input_image", "image_url": PNG}, pieces(PNG, images=1)),
    ("input_file", RESPONSES, {"type": "input_file", "file_data": PDF}, pieces(PDF, files=1)),
    (
        "Anthropic's image",
        MESSAGES,
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}},
        pieces(DATA, images=1),
    ),
    (
        "Anthropic's document",
        MESSAGES,
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": DATA}},
        pieces(DATA, files=1),
    ),
    (
        "image of a tool",
        MESSAGES,
        {
            "type": "tool_result",
            "tool_use_id": "t",
            "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
            ],
        },
        pieces(DATA, images=1),
    ),
    (
        "image elsewhere",
        CHAT,
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        MediaPieces(images=1),
    ),
    (
        "image elsewhere, Anthropic's",
        MESSAGES,
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        MediaPieces(images=1),
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("endpoint", "part", "media"), [each[1:] for each in FOUND], ids=[e[0] for e in FOUND]
)
def test_b28_a_piece_of_media_is_found_and_its_bytes_are_not_text(
    endpoint: APIEndpoint, part: dict[str, Any], media: MediaPieces
) -> None:
    field = "input" if endpoint is RESPONSES else "messages"
    found = content(endpoint, part, field=field)
    assert found.media == media
    assert not found.text_only
    twice = content(endpoint, part, {"type": "text", "text": "and"}, part, field=field).media
    assert twice.encoded_bytes == 2 * media.encoded_bytes


TEXTS: list[tuple[str, dict[str, Any]]] = [
    ("in a text part", {"type": "text", "text": PNG}),
    ("in a part of an unknown type", {"type": "x", "url": PNG}),
    ("in a document that is text", {"type": "document",
                                    "source": {"type": "text", "media_type": "text/plain", "data": DATA}}),
    ("in a text file", {"type": "file", "file": {"file_data": f"data:text/plain;base64,{DATA}"}}),
    ("in a text file in capitals", {"type": "file", "file": {"file_data": f"DATA:TEXT/plain;base64,{DATA}"}}),
    ("in a JSON file", {"type": "input_file", "file_data": f"data:application/json;base64,{DATA}"}),
    ("in the caption of an image", {"type": "image_url", "image_url": {"url": "https://a", "detail": PNG}}),
    ("in the name of a file", {"type": "file", "file": {"filename": PNG}}),
    ("in arguments of a tool", {"type": "tool_use", "input": {"type": "image", "source": {"data": DATA}}}),
    ("in the title of a document", {"type": "document", "title": PNG, "source": {"type": "url", "url": "u"}}),
]  # fmt: skip


@pytest.mark.parametrize("part", [each[1] for each in TEXTS], ids=[each[0] for each in TEXTS])
def test_b28_text_cannot_be_hidden_as_media(part: dict[str, Any]) -> None:
    assert content(CHAT, part).media.encoded_bytes == 0


def test_a_schema_of_a_tool_is_text() -> None:
    properties = {"image": {"type": "image_url", "image_url": {"url": PNG}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}}
    assert content(CHAT, {"type": "text", "text": "x"}, tools=[tool]) == Content()


async def test_b28_a_picture_passes_a_limit_on_tokens_and_pays_by_the_piece() -> None:
    """LiteLLM's issue 32865: a picture of 200 kB was refused for good."""
    harness = Harness()
    harness.put(service(limits={"tpm": 50_000}), model(requests={"imageTokens": 900}))
    harness.report_balance(UNIT)
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 2_000_000}"}}
    asked = {"model": "chat", "messages": [{"role": "user", "content": [picture]}], "max_tokens": 50}
    route = await harness.forwarded(asked)
    assert 900 < int(route.labels["estimate_input"]) < 1000
    assert (await harness.forwarded()).labels["service"] == "team-a/chat", "there is money for others"


AGENT: list[Any] = [
    {"role": "system", "content": "You read files, images and videos"},
    {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function"}]},
    {"role": "tool", "tool_call_id": "c", "content": "done"},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": "y"}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "u", "content": "x"}]},
]


@pytest.mark.parametrize("message", AGENT)
def test_messages_of_agents_need_no_walk(message: dict[str, Any]) -> None:
    """The walk takes microseconds for each object, and agents send hundreds."""
    fields = parse(CHAT, json.dumps({"model": "m", "messages": [message]}).encode())
    assert is_plain(fields.raw, fields.fields, "")
    assert fields.content == Content()


@pytest.mark.parametrize(
    "messages",
    [
        b'[{"type":"image_url","type":"text"}]',
        b'[{"type":"text","type":"image_url"}]',
        b'[{"role":"user","content":[{"ty\\u0070e":"image_url"}]}]',
        b'[{"role":"user","content":[{"image_url":"x"}]}]',
        b'[{"role":"user","content":"x","audio":{"id":"a"}}]',
        b'[{"role":"user","content":[{"type":"text","file_id":"f"}]}]',
        b'[{"role":"user","content":{"type":"image_url"}}]',
        b"[1]",
    ],
)
def test_what_is_not_plainly_text_is_walked(messages: bytes) -> None:
    fields = {"messages": msgspec.Raw(messages)}
    assert not is_plain(messages, fields, "")
