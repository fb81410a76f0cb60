"""Answers in the formats of OpenAI's Responses and Anthropic's Messages, whole or as named events.

Unlike the chunks of `reply`, an event has a name, which is its `type`, and there is no final [DONE].
"""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from farebox.simulator.generator import Completion


@dataclass(frozen=True, slots=True)
class ResponsesReply:
    """The answer of POST /v1/responses. The last event has the usage."""

    id: str
    created: int
    model: str
    answer: Completion
    input_tokens: int
    cached_tokens: int

    def whole(self) -> dict[str, Any]:
        """The body of an answer without streaming."""
        return self._response(self.answer.text, finished=True)

    async def events(self, pieces: AsyncIterator[str]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a stream, each when its piece is available."""
        position = {"item_id": f"msg_{self.id}", "output_index": 0, "content_index": 0}
        part = {"type": "output_text", "text": "", "annotations": []}
        whole_part = part | {"text": self.answer.text}
        number = 0

        def event(kind: str, **content: Any) -> dict[str, Any]:
            nonlocal number
            number += 1
            return {"type": f"response.{kind}", "sequence_number": number - 1, **content}

        yield event("created", response=self._response("", finished=False))
        yield event("output_item.added", output_index=0, item=self._item("", finished=False))
        yield event("content_part.added", **position, part=part)
        async for piece in pieces:
            yield event("output_text.delta", **position, delta=piece, logprobs=[])
        yield event("output_text.done", **position, text=self.answer.text, logprobs=[])
        yield event("content_part.done", **position, part=whole_part)
        yield event("output_item.done", output_index=0, item=self._item(self.answer.text, finished=True))
        end = "incomplete" if self.answer.finish_reason == "length" else "completed"
        yield event(end, response=self.whole())

    def _response(self, text: str, *, finished: bool) -> dict[str, Any]:
        cut = self.answer.finish_reason == "length"
        status = ("incomplete" if cut else "completed") if finished else "in_progress"
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if finished and cut else None,
            "model": self.model,
            "output": [self._item(text, finished=True)] if finished else [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": self._usage() if finished else None,
        }

    def _item(self, text: str, *, finished: bool) -> dict[str, Any]:
        content = [{"type": "output_text", "text": text, "annotations": []}] if finished else []
        return {
            "id": f"msg_{self.id}",
            "type": "message",
            "role": "assistant",
            "status": "completed" if finished else "in_progress",
            "content": content,
        }

    def _usage(self) -> dict[str, Any]:
        given = len(self.answer.tokens)
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": given,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input_tokens + given,
        }


@dataclass(frozen=True, slots=True)
class MessagesReply:
    """The answer of POST /v1/messages.

    Anthropic's `input_tokens` excludes the tokens that are read from the cache or written to it; those of
    this class include them.
    """

    id: str
    model: str
    answer: Completion
    input_tokens: int
    cached_tokens: int
    written_tokens: int = 0

    def whole(self) -> dict[str, Any]:
        """The body of an answer without streaming."""
        content = [{"type": "text", "text": self.answer.text}]
        return self._message(content, self._stop_reason(), len(self.answer.tokens))

    async def events(self, pieces: AsyncIterator[str]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a stream. The first has the input tokens, the last but one the output tokens."""
        yield {"type": "message_start", "message": self._message([], None, 0)}
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        async for piece in pieces:
            delta = {"type": "text_delta", "text": piece}
            yield {"type": "content_block_delta", "index": 0, "delta": delta}
        yield {"type": "content_block_stop", "index": 0}
        end = {"stop_reason": self._stop_reason(), "stop_sequence": None}
        yield {
            "type": "message_delta",
            "delta": end,
            "usage": {"output_tokens": len(self.answer.tokens)},
        }
        yield {"type": "message_stop"}

    def _stop_reason(self) -> str:
        return "max_tokens" if self.answer.finish_reason == "length" else "end_turn"

    def _message(self, content: list[Any], stop_reason: str | None, given: int) -> dict[str, Any]:
        return {
            "id": f"msg_{self.id}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": {
                "input_tokens": self.input_tokens - self.cached_tokens - self.written_tokens,
                "cache_creation_input_tokens": self.written_tokens,
                "cache_read_input_tokens": self.cached_tokens,
                "output_tokens": given,
            },
        }
