"""Answers in the formats of chat and text completions, whole or as chunks. No HTTP, no pace."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from farebox.simulator.generator import Completion
from farebox.simulator.protocol import StreamOptions


@dataclass(frozen=True, slots=True)
class Form:
    """The format of an endpoint. `opening` is the chunk before the first piece, if there is one."""

    id_prefix: str
    whole_object: str
    chunk_object: str
    whole: Callable[[str], dict[str, Any]]
    opening: dict[str, Any] | None
    piece: Callable[[str], dict[str, Any]]


CHAT = Form(
    id_prefix="chatcmpl",
    whole_object="chat.completion",
    chunk_object="chat.completion.chunk",
    whole=lambda text: {"message": {"role": "assistant", "content": text}},
    opening={"delta": {"role": "assistant", "content": ""}},
    piece=lambda text: {"delta": {"content": text} if text else {}},
)
TEXT = Form(
    id_prefix="cmpl",
    whole_object="text_completion",
    chunk_object="text_completion",
    whole=lambda text: {"text": text},
    opening=None,
    piece=lambda text: {"text": text},
)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with its metadata and usage.

    `prompt_tokens` includes `cached_tokens`, as in OpenAI's `usage`.
    """

    form: Form
    id: str
    created: int
    model: str
    answer: Completion
    prompt_tokens: int
    cached_tokens: int

    def whole(self) -> dict[str, Any]:
        """The body of an answer without streaming."""
        choice = {"index": 0, "logprobs": None, "finish_reason": self.answer.finish_reason}
        choice |= self.form.whole(self.answer.text)
        usage = self._usage(len(self.answer.tokens))
        return {**self._head(self.form.whole_object), "choices": [choice], "usage": usage}

    async def chunks(
        self, pieces: AsyncIterator[str], options: StreamOptions | None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a stream, each when its piece is available.

        With `include_usage` the last chunk has the usage and no choice, and the others have `usage: null`, as
        in OpenAI's API. With vLLM's `continuous_usage_stats` every chunk has the usage so far.
        """
        options = options or StreamOptions()
        given = 0

        def chunk(finish_reason: str | None, content: dict[str, Any]) -> dict[str, Any]:
            choice = {"index": 0, "logprobs": None, "finish_reason": finish_reason, **content}
            event = {**self._head(self.form.chunk_object), "choices": [choice]}
            if options.continuous_usage_stats:
                return {**event, "usage": self._usage(given)}
            return {**event, "usage": None} if options.include_usage else event

        async for piece in pieces:
            if given == 0 and self.form.opening is not None:
                yield chunk(None, self.form.opening)
            given += 1
            yield chunk(None, self.form.piece(piece))
        yield chunk(self.answer.finish_reason, self.form.piece(""))
        if options.include_usage:
            yield {**self._head(self.form.chunk_object), "choices": [], "usage": self._usage(given)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self, completion_tokens: int) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
