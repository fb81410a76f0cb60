"""Recognizes requests that contain nothing but text and functions, in one pass in C. Most requests do.

The types below have the keys that such messages, parts and tools have in the APIs of OpenAI and Anthropic.
Any other key or type fails the pass, and then `content.py` walks the request. A duplicate key cannot hide
another type, because every occurrence is checked.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

MAX_BYTES: Final = 1024 * 1024
MAX_BRACES: Final = 20_000
"""Larger requests are walked in steps, so that the pass takes at most a few milliseconds."""

TEXT_TYPES: Final = frozenset(
    {
        "text",
        "input_text",
        "output_text",
        "refusal",
        "message",
        "function",
        "function_call",
        "function_call_output",
        "custom",
        "custom_tool_call",
        "custom_tool_call_output",
        "tool_use",
        "tool_result",
        "thinking",
        "redacted_thinking",
        "reasoning",
        "reasoning_text",
        "summary_text",
        "ephemeral",
    }
)
"""The types of messages, parts and tools that are text."""
_Skipped = Raw | UnsetType


class _Item(Struct, forbid_unknown_fields=True):
    """A message, an item of a conversation, or a part of one."""

    type: Literal[tuple(sorted(TEXT_TYPES))] | UnsetType = UNSET  # type: ignore[valid-type]
    content: "str | list[_Item | str] | UnsetType | None" = UNSET
    output: "str | list[_Item] | UnsetType | None" = UNSET
    summary: "list[_Item] | UnsetType | None" = UNSET
    role: _Skipped = UNSET
    text: _Skipped = UNSET
    name: _Skipped = UNSET
    id: _Skipped = UNSET
    call_id: _Skipped = UNSET
    tool_call_id: _Skipped = UNSET
    tool_use_id: _Skipped = UNSET
    tool_calls: _Skipped = UNSET
    function_call: _Skipped = UNSET
    arguments: _Skipped = UNSET
    input: _Skipped = UNSET
    is_error: _Skipped = UNSET
    status: _Skipped = UNSET
    phase: _Skipped = UNSET
    annotations: list[Any] | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    thinking: str | UnsetType = UNSET
    signature: str | UnsetType = UNSET
    encrypted_content: str | UnsetType | None = UNSET
    cache_control: "_CacheControl | UnsetType | None" = UNSET


class _CacheControl(Struct, forbid_unknown_fields=True):
    """A mark of what a provider caches."""

    type: str
    ttl: str | UnsetType = UNSET


class _Tool(Struct, forbid_unknown_fields=True):
    """A function, or a tool of the caller's own."""

    type: Literal["function", "custom"] | UnsetType = UNSET
    function: _Skipped = UNSET
    name: _Skipped = UNSET
    description: _Skipped = UNSET
    parameters: _Skipped = UNSET
    input_schema: _Skipped = UNSET
    strict: _Skipped = UNSET
    format: _Skipped = UNSET
    cache_control: _CacheControl | UnsetType | None = UNSET


_LIST_ITEMS: Final = msgspec.json.Decoder(str | list[_Item | str] | None)
_TOOLS: Final = msgspec.json.Decoder(list[_Tool] | None)
_DECODERS: Final = (
    ("messages", _LIST_ITEMS),
    ("input", _LIST_ITEMS),
    ("system", _LIST_ITEMS),
    ("tools", _TOOLS),
    ("functions", _TOOLS),
)
_REFERENCES: Final = frozenset(
    {"source", "uuid", "file_id", "file_data", "file_url", "plugins", "container", "chat_template"}
)
_REFERENCE_PARTS: Final = ("image", "audio", "video", "file", "search", "mcp")
_WALKED: Final = ("prompt", "documents", "chat_template_kwargs")
_names: dict[str, bool] = {}
_MAX_NAMES: Final = 1024


def is_plain(body: bytes, fields: Mapping[str, Raw], inputs_field: str) -> bool:
    """Whether a body contains only text and functions. False if in doubt.

    Args:
        inputs_field: a field whose list of texts or token ids `body.py` checks.
    """
    if len(body) > MAX_BYTES or body.count(b"{") > MAX_BRACES:
        return False
    for name in fields:
        if name in _WALKED and name != inputs_field:
            return False
        if refers(name):
            return False
    try:
        for name, decoder in _DECODERS:
            if name in fields and name != inputs_field:
                decoder.decode(fields[name])
    except (msgspec.MsgspecError, RecursionError):
        return False
    return inputs_field not in fields or b"{" not in bytes(fields[inputs_field])


def refers(name: str) -> bool:
    """Whether a key may refer to content that is not text."""
    known = _names.get(name)
    if known is None:
        known = name in _REFERENCES or any(part in name for part in _REFERENCE_PARTS)
        if len(_names) < _MAX_NAMES and len(name) < 64:
            _names[name] = known
    return known
