"""The table of dialects: where APIs and providers have text and usage, what names it has, what ends a stream.

One table for both readers: `envoy.response_filter` gives DIALECTS to the script in Envoy, and `token_counts`
reads the usage that the script copied. A provider with other names is one more entry, with a recorded answer
in tests/gateway/metering/upstreams.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from msgspec import Struct


@dataclass(frozen=True, slots=True)
class Dialect:
    """The answers of one API.

    A stream of any dialect has failed with an event whose top-level `type` is "error", or with an `error` at
    the top level or in `response` that is not empty.

    Args:
        text: fields with text of the model in an event of a stream, wherever they are.
        document_text: the same in an answer that is one document.
        final: the usage of a stream that covers all of it: "no choices" (in an event without choices),
            "response" (within `response`), or "stop reason" (in an event with one). Other usage is final too
            when it is followed by `[DONE]`, or comes with the finish reason of the only choice.
    """

    text: tuple[str, ...] = ()
    document_text: tuple[str, ...] = ()
    final: str = "no choices"


MAX_REPORTED_TOKENS: Final = 20_000_000
"""No model has a longer context. A larger count is an error of the upstream (B30)."""
_CHAT_TEXT: Final = ("content", "reasoning_content", "reasoning", "refusal", "arguments")
DIALECTS: Final[Mapping[str, Dialect]] = {
    "chat": Dialect(_CHAT_TEXT, _CHAT_TEXT),
    "completions": Dialect(("text",), ("text",)),
    "embeddings": Dialect(),
    "messages": Dialect(("text", "thinking", "partial_json"), ("text", "thinking"), "stop reason"),
    # Other events than deltas repeat the text.
    "responses": Dialect(("delta",), ("text", "arguments"), "response"),
}
"""By `APIEndpoint.dialect`."""
USAGE_OBJECTS: Final = ("message", "response", "choices", "x_groq")
"""Objects at the top level of a document that may have the usage: Anthropic's first event, OpenAI's
responses, Moonshot's choices, Groq's streams."""
ANSWER_FIELDS: Final = ("choices", "content", "output", "data", "embeddings")
"""Fields at the top level of a document that is an answer. Another document costs nothing (B27)."""


@dataclass(frozen=True, slots=True)
class UsageNames:
    """The names of token counts in a usage object.

    Args:
        cached, cache_write: paths of input that is read from a cache, and written to it; the largest counts.
            A path is a name, and the name within that object, or "".
        input_has_cache: whether the input includes both.
        total: whether output that only `total_tokens` includes is output too.
    """

    input: str
    output: str
    cached: tuple[tuple[str, str], ...]
    cache_write: tuple[tuple[str, str], ...]
    input_has_cache: bool = True
    total: bool = False


CHAT: Final = UsageNames(
    "prompt_tokens",
    "completion_tokens",
    cached=(
        (
            "prompt_tokens_details",
            "cached_tokens",
        ),  # OpenAI, Azure, vLLM, SGLang, Gemini, Groq, xAI, OpenRouter
        ("prompt_cache_hit_tokens", ""),  # DeepSeek
        ("cached_tokens", ""),  # Moonshot
        ("cache_read_input_tokens", ""),  # LiteLLM
    ),
    cache_write=(
        ("prompt_tokens_details", "cache_write_tokens"),  # OpenRouter
        ("prompt_tokens_details", "cache_creation_tokens"),  # LiteLLM
        ("cache_creation_input_tokens", ""),  # LiteLLM
    ),
    # Gemini and xAI count reasoning in total_tokens alone.
    total=True,
)
RESPONSES: Final = UsageNames(
    "input_tokens", "output_tokens", cached=(("input_tokens_details", "cached_tokens"),), cache_write=()
)
MESSAGES: Final = UsageNames(
    "input_tokens",
    "output_tokens",
    cached=(("cache_read_input_tokens", ""),),
    cache_write=(("cache_creation_input_tokens", ""),),
    input_has_cache=False,
)


class TokenCounts(Struct, frozen=True):
    """Tokens of an answer as an upstream reported them; None: not reported. Input includes cached input."""

    input: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    output: int | None = None


def usage_names(usage: Mapping[str, Any]) -> UsageNames:
    """The names that a usage object uses. Its dialect does not say it: providers mix them.

    Some send the names of both APIs, and zeros under those of the other.
    """
    used = usage.get(RESPONSES.input) or usage.get(RESPONSES.output)
    if usage.get(CHAT.input) or usage.get(CHAT.output):
        return CHAT
    if not used and (CHAT.input in usage or CHAT.output in usage):
        return CHAT
    if "cache_read_input_tokens" in usage or "cache_creation_input_tokens" in usage:
        return MESSAGES
    return RESPONSES


def token_counts(usage: Mapping[str, Any], dialect: str) -> TokenCounts:
    """Read a usage object. A value that is not a whole number of at least 0 counts as not reported."""
    names = usage_names(usage)
    inputs, outputs = _count(usage.get(names.input)), _count(usage.get(names.output))
    cached, cache_write = _largest(usage, names.cached), _largest(usage, names.cache_write)
    total = _count(usage.get("total_tokens"))
    if dialect == "embeddings":
        # They have no output, and some report nothing but the total (Voyage).
        outputs = outputs or 0
        inputs = total if names.input not in usage else inputs
    if names.total and inputs is not None and outputs is not None and total is not None:
        outputs = max(outputs, total - inputs)
    if not names.input_has_cache and inputs is not None:
        inputs += (cached or 0) + (cache_write or 0)
    return TokenCounts(inputs, cached, cache_write, outputs)


def merged(first: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    """Two usage objects of one answer: the later value counts, unless it is empty or 0.

    The end of an Anthropic stream need not repeat the counts of its beginning, and zeros take nothing back.
    """
    result = dict(first)
    for name, value in last.items():
        if value or name not in result:
            result[name] = value
    return result


def _largest(usage: Mapping[str, Any], paths: tuple[tuple[str, str], ...]) -> int | None:
    largest = None
    for name, inner in paths:
        value = usage.get(name)
        if value is None:
            continue
        if inner:
            value = value.get(inner) if isinstance(value, dict) else None
        count = _count(value)
        if count is not None and (largest is None or count > largest):
            largest = count
    return largest


def _count(value: Any) -> int | None:
    """A number of tokens; None for any other value."""
    if type(value) is int:
        return value if value >= 0 else None
    if type(value) is float and value.is_integer() and value >= 0:
        return int(value)
    return None
