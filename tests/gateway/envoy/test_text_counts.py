"""The count of tokens in text that no usage covers (B26): within a quarter of a real tokenizer's."""

import json

import pytest

from farebox.domain.billing.estimates import TextCounts, estimate_tokens
from farebox.gateway.interface import UsageRedaction
from tests.gateway.envoy.test_response_filter import Answer

SAMPLES = {
    "code": (
        'def charge(tiers, tokens):\n    """The price of a call in nano-units."""\n    for tier in tiers:\n'
        "        if tier.up_to is None or tokens.input <= tier.up_to:\n"
        "            uncached = tokens.input - tokens.cached\n"
        "            return uncached * tier.input + tokens.cached * tier.cached_input\n"
        '    raise ValueError(f"no tier for {tokens.input} tokens")\n',
        82,
    ),
    "json": (
        '{"city": "Berlin", "unit": "celsius", "days": 3, "include": ["rain", "wind"], "limit": 25}',
        34,
    ),
    "german": (
        "Ein Anruf, der vorzeitig endet, wird nach dem berechnet, was der Kunde bekommen hat. Das Gateway "
        "zählt den Text der Antwort, während er durchläuft, denn die meisten Anbieter melden den Verbrauch "
        "erst im letzten Ereignis.",
        59,
    ),
    "russian": (
        "Вызов, который заканчивается раньше, оплачивается по тому, что получил клиент. Шлюз считает текст "
        "ответа, пока он проходит.",
        48,
    ),
    "chinese": (
        "提前结束的调用按照调用方实际收到的内容计费。网关在回答经过时统计文本，因为大多数供应商只在流的最后一个事件中报告用量。",
        58,
    ),
    "formula": (
        "The integral $\\int_0^1 x^2 dx = \\frac{1}{3}$ and $\\sum_{i=1}^{n} i = \\frac{n(n+1)}{2}$ follow "
        "from $f(x) = x^2$. ",
        55,
    ),
    "identifier": ("550e8400-e29b-41d4-a716-446655440000", 24),
    "numbers": ("7919 15838 23757 31676 39595 47514 55433 63352 71271 79190", 29),
}
"""Texts, and their tokens in cl100k_base."""


def counts(pieces: list[str], *, ascii_only: bool = False) -> TextCounts:
    """The counts of a text that comes in pieces, each in an event."""
    events = [
        b"data: " + json.dumps({"choices": [{"delta": {"content": piece}}]}, ensure_ascii=ascii_only).encode()
        for piece in pieces
    ]
    answer = Answer(UsageRedaction.NOTHING, [b"\n\n".join([*events, b""])])
    return TextCounts(*map(int, answer.reported["content"].split()))


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("name", SAMPLES)
def test_text_is_estimated_within_a_quarter(name: str, ascii_only: bool) -> None:
    text, tokens = SAMPLES[name]
    assert abs(estimate_tokens(counts([text], ascii_only=ascii_only)) / tokens - 1) <= 0.25


@pytest.mark.parametrize("size", [1, 2, 7, 40])
@pytest.mark.parametrize("name", ["code", "german", "json"])
def test_where_a_text_is_cut_changes_little(name: str, size: int) -> None:
    """Some proxies send a few characters in each event, which are not tokens."""
    text, tokens = SAMPLES[name]
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    seen = counts(pieces)
    assert seen.millitokens == counts([text]).millitokens
    if not 2 <= size <= 7:
        assert abs(estimate_tokens(seen) / tokens - 1) <= 0.25


def test_a_text_is_counted_once_although_two_fields_have_it() -> None:
    both = {"choices": [{"delta": {"reasoning": "two words", "reasoning_content": "two words"}}]}
    one = {"choices": [{"delta": {"reasoning": "two words"}}]}
    seen = [
        Answer(UsageRedaction.NOTHING, [b"data: " + json.dumps(each).encode() + b"\n\n"]).reported["content"]
        for each in (both, one)
    ]
    assert seen == ["1 2000 0", "1 2000 0"]


def test_text_in_parts_is_counted() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "two words"}]}]
    event = {"choices": [{"delta": {"content": parts}}]}
    answer = Answer(UsageRedaction.NOTHING, [b"data: " + json.dumps(event).encode() + b"\n\n"])
    assert answer.reported["content"] == "1 2000 0"


def test_an_image_in_an_answer_is_not_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    event = {"choices": [{"delta": {"content": "two words", "images": [image, image]}}]}
    answer = Answer(UsageRedaction.NOTHING, [b"data: " + json.dumps(event).encode() + b"\n\n"])
    counted = TextCounts(*map(int, answer.reported["content"].split()))
    assert counted == TextCounts(pieces=1, millitokens=2000, images=2)
    assert estimate_tokens(counted, image_tokens=1100) == 2202
