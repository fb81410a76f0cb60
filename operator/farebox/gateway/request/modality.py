"""Whether a request is text only. An approximation that never takes other content for text.

The length of a text bounds its tokens (`farebox.domain.admission.estimates.bound_input`). A reference to an
image, a document or a search tool is not bounded by its length, nor is a chat template, which is a program.
Content of unknown type does not count as text.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

_TEXT_TYPES: Final = frozenset(
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
_REFERENCES: Final = frozenset(
    {"source", "uuid", "file_id", "file_data", "file_url", "plugins", "container", "chat_template"}
)
_REFERENCE_PARTS: Final = ("image", "audio", "video", "file", "search", "mcp")
_SEEN: Final = (
    "messages",
    "input",
    "system",
    "prompt",
    "tools",
    "functions",
    "documents",
    "chat_template_kwargs",
)


def is_text_only(body: bytes, fields: Mapping[str, msgspec.Raw]) -> bool:
    """Whether a body has no reference, and no possible reference, to content that is not text."""
    if not _hints(body):
        return True
    if any(_refers(name) for name in fields):
        return False
    try:
        return all(
            _is_text(json.loads(bytes(fields[name]), object_pairs_hook=_once))
            for name in _SEEN
            if name in fields
        )
    except (ValueError, RecursionError):
        return False


def _hints(body: bytes) -> bool:
    """Whether there may be a reference; most bodies have none. Unrolled, because every call runs it."""
    return (
        b'"type"' in body
        or b"\\u00" in body
        or b"image" in body
        or b"audio" in body
        or b"video" in body
        or b"file" in body
        or b'"source"' in body
        or b'"uuid"' in body
        or b"search" in body
        or b'"plugins"' in body
        or b'"mcp' in body
        or b'"container"' in body
        or b'"chat_template"' in body
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without duplicate keys, since the upstream might read either. Raises ValueError."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("duplicate key")
    return entries


def _is_text(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_text(each) for each in value)
    if not isinstance(value, dict):
        return True
    if any(_refers(name) for name in value):
        return False
    kind = value.get("type", "text")
    if not isinstance(kind, str) or kind not in _TEXT_TYPES:
        return False
    # The schema of a tool has types and names of its own, and a model sees it as text.
    return all(
        _is_text(each)
        for name, each in value.items()
        if name not in ("parameters", "input_schema", "function", "input")
    )


def _refers(name: str) -> bool:
    return name in _REFERENCES or any(part in name for part in _REFERENCE_PARTS)
