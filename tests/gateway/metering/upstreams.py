"""Streams and answers of upstreams, written from their public documentation or source.

Each has text of known tokens, so the true usage of any part of it is known. `PROSE` and `ARGUMENTS` are cut
at the tokens of cl100k_base.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal


def _cut(text: str) -> list[str]:
    return text.split("|")


PROSE = 3 * _cut(
    "A| call| that| ends| early| is| charged| for| what| the| caller| got|.| The| gateway| counts| the| text"
    "| of| the| answer| while| it| passes|,| because| most| providers| report| usage| only| in| the| last"
    "| event| of| a| stream|.| When| the| client| leaves| before| that| event|,| nobody| else| knows| how"
    "| much| was| delivered|.| The| estimate| is| compared| with| the| true| number| of| tokens| in| this"
    "| test|,| and| it| must| stay| within| a| quarter| of| it| for| every| provider| and| every| ending|."
)
ARGUMENTS = _cut(
    '{"|city|":| "|Berlin|",| "|unit|":| "|c|elsius|",| "|days|":| |3|,| "|include|":| ["|rain|",| "|wind|"],'
    '| "|limit|":| |25|}'
)
INPUT, CACHED = 517, 256

Kind = Literal["content", "reasoning", "tools"]
Usage = dict[str, Any]
DONE = b"data: [DONE]\n\n"


def sse(document: Any, name: str = "", *, compact: bool = True) -> bytes:
    """An event of a stream."""
    text = json.dumps(document, separators=(",", ":") if compact else None)
    return (f"event: {name}\n" if name else "").encode() + b"data: " + text.encode() + b"\n\n"


@dataclass(frozen=True)
class Recording:
    """A stream: `body` has the events with text, and how many tokens each adds.

    Args:
        reported: input, cached, written to a cache, output, as the end of the stream reports them.
        error: what the upstream sends when it fails in the middle.
        input_first: whether the input is reported before the text.
        continuous: whether each event reports the usage so far.
    """

    head: list[bytes]
    body: list[tuple[bytes, int]]
    tail: list[bytes]
    reported: tuple[int, int, int, int]
    error: bytes
    input_first: bool = False
    continuous: bool = False

    @property
    def whole(self) -> bytes:
        """All bytes."""
        return b"".join([*self.head, *(event for event, _ in self.body), *self.tail])

    def part(self, tenths: int) -> tuple[bytes, int]:
        """The beginning of the stream, and the tokens of output in it."""
        events = self.body[: max(1, len(self.body) * tenths // 10)]
        return b"".join([*self.head, *(event for event, _ in events)]), sum(tokens for _, tokens in events)


def openai_usage(output: int, reasoning: int = 0) -> Usage:
    """OpenAI's, also of vLLM, SGLang, Azure and others."""
    return {
        "prompt_tokens": INPUT,
        "completion_tokens": output,
        "total_tokens": INPUT + output,
        "prompt_tokens_details": {"cached_tokens": CACHED, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
    }


def deepseek_usage(output: int, reasoning: int = 0) -> Usage:
    """https://api-docs.deepseek.com/api/create-chat-completion"""
    return {
        "prompt_tokens": INPUT,
        "completion_tokens": output,
        "total_tokens": INPUT + output,
        "prompt_cache_hit_tokens": CACHED,
        "prompt_cache_miss_tokens": INPUT - CACHED,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def moonshot_usage(output: int, reasoning: int = 0) -> Usage:
    """https://platform.moonshot.ai/docs/api/chat"""
    return {
        "prompt_tokens": INPUT,
        "completion_tokens": output,
        "total_tokens": INPUT + output,
        "cached_tokens": CACHED,
    }


def groq_usage(output: int, reasoning: int = 0) -> Usage:
    """https://console.groq.com/docs/api-reference#chat-create"""
    return {
        "queue_time": 0.037493756,
        "prompt_tokens": INPUT,
        "prompt_time": 0.000680594,
        "completion_tokens": output,
        "completion_time": 0.463333333,
        "total_tokens": INPUT + output,
        "total_time": 0.464013927,
        "prompt_tokens_details": {"cached_tokens": CACHED},
    }


def gemini_usage(output: int, reasoning: int = 0) -> Usage:
    """https://ai.google.dev/gemini-api/docs/openai: thoughts are in the total alone."""
    return {
        "prompt_tokens": INPUT,
        "completion_tokens": output - reasoning,
        "total_tokens": INPUT + output,
        "prompt_tokens_details": {"cached_tokens": CACHED},
    }


def xai_usage(output: int, reasoning: int = 0) -> Usage:
    """https://docs.x.ai/docs/api-reference: completion_tokens are without reasoning."""
    return {
        **gemini_usage(output, reasoning),
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
        "num_sources_used": 0,
    }


def openrouter_usage(output: int, reasoning: int = 0) -> Usage:
    """https://openrouter.ai/docs/use-cases/usage-accounting"""
    return {
        **openai_usage(output, reasoning),
        "cost": 0.00014,
        "is_byok": False,
        "cost_details": {"upstream_inference_cost": None},
    }


def litellm_usage(output: int, reasoning: int = 0) -> Usage:
    """BerriAI/litellm, types/utils.py `Usage`, in front of Anthropic."""
    return {
        "completion_tokens": output,
        "prompt_tokens": INPUT,
        "total_tokens": INPUT + output,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": CACHED,
    }


def plain_usage(output: int, reasoning: int = 0) -> Usage:
    """Of servers that do not report cached tokens."""
    return {"prompt_tokens": INPUT, "completion_tokens": output, "total_tokens": INPUT + output}


@dataclass(frozen=True)
class Chat:
    """A stream of chat completions.

    Args:
        group: tokens in each event.
        usage: makes the usage object of some output, and how much of that is reasoning.
        at: where the usage stands at the end: in an event without choices, in that with the finish reason, in
            its choice, or in `x_groq`.
        each: the usage in each event: of its choice, of all choices, or none.
        reasoning: the field with reasoning, or several.
        first: events before the answer.
        more: fields of each event.
        in_choice: fields of each choice.
        deployed: whether it runs in the cluster.
    """

    name: str
    usage: Callable[..., Usage] = openai_usage
    group: int = 1
    at: Literal["no choices", "finish", "choice", "x_groq"] = "no choices"
    each: Literal["", "choice", "all"] = ""
    reasoning: tuple[str, ...] = ("reasoning_content",)
    first: tuple[bytes, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)
    in_choice: dict[str, Any] = field(default_factory=dict)
    compact: bool = True
    deployed: bool = False

    path = "/v1/chat/completions"

    def stream(self, kind: Kind = "content", choices: int = 1) -> Recording:
        """The stream of an answer."""
        tokens = ARGUMENTS if kind == "tools" else PROSE
        body, so_far = [], 0
        for at in range(0, len(tokens), self.group):
            group = tokens[at : at + self.group]
            for index in range(choices):
                so_far += len(group)
                chunk = self._chunk(index, self._delta(kind, "".join(group)))
                thought = so_far if kind == "reasoning" else 0
                if self.each == "choice":
                    chunk["usage"] = plain_usage(at + len(group))
                elif self.each == "all":
                    chunk["usage"] = self.usage(so_far, thought)
                body.append((self._event(chunk), len(group)))
        output = len(tokens) * choices
        usage = self.usage(output, output if kind == "reasoning" else 0)
        cached = 0 if self.usage is plain_usage else CACHED
        return Recording(
            [*self.first, *self._head(kind, choices)],
            body,
            [*self._end(usage, kind, choices), DONE],
            (INPUT, cached, 0, output),
            self._event({"error": {"message": "Provider returned error", "code": 502}}),
            continuous=bool(self.each),
        )

    def document(self, choices: int = 1) -> bytes:
        """The same as one document."""
        output = len(PROSE) * choices
        answers = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(PROSE)},
                "finish_reason": "stop",
                **self.in_choice,
            }
            for index in range(choices)
        ]
        usage = self.usage(output)
        return json.dumps(
            {"id": "chat-1", "object": "chat.completion", **self.more, "choices": answers, "usage": usage}
        ).encode()

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": finish, **self.in_choice}
        return {
            "id": "chat-1",
            "object": "chat.completion.chunk",
            "created": 1796083200,
            "model": "m-1",
            **self.more,
            "choices": [choice],
        }

    def _event(self, document: Any) -> bytes:
        return sse(document, compact=self.compact)

    def _delta(self, kind: Kind, text: str) -> dict[str, Any]:
        if kind == "reasoning":
            return dict.fromkeys(self.reasoning, text)
        if kind == "tools":
            return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        return {"content": text}

    def _head(self, kind: Kind, choices: int) -> Iterator[bytes]:
        for index in range(choices):
            delta: dict[str, Any] = {"role": "assistant", "content": ""}
            if kind == "tools":
                function = {"name": "weather", "arguments": ""}
                delta["tool_calls"] = [{"index": 0, "id": "call_1", "type": "function", "function": function}]
            yield self._event(self._chunk(index, delta))

    def _end(self, usage: Usage, kind: Kind, choices: int) -> Iterator[bytes]:
        reason = "tool_calls" if kind == "tools" else "stop"
        for index in range(choices):
            chunk = self._chunk(index, {}, reason)
            if self.at == "choice":
                share = usage["completion_tokens"] // choices
                chunk["choices"][0]["usage"] = self.usage(share)
            elif index == choices - 1 and self.at == "finish":
                chunk["usage"] = usage
            elif index == choices - 1 and self.at == "x_groq":
                chunk["x_groq"] = {"id": "req_1", "usage": usage}
            yield self._event(chunk)
        if self.at == "no choices":
            yield self._event({**self._chunk(0, {}), "choices": [], "usage": usage})


LOGPROBS = {
    "content": [
        {
            "token": "x",
            "logprob": -1.0,
            "bytes": [120],
            "top_logprobs": [{"token": "text", "logprob": -2.5}] * 20,
        }
    ]
}
FILTERS = {
    "hate": {"filtered": False, "severity": "safe"},
    "violence": {"filtered": False, "severity": "safe"},
}
CHATS = [
    # vllm/entrypoints/openai: continuous usage is that of the event's choice, without details.
    Chat("vllm", each="choice", deployed=True, in_choice={"logprobs": None, "token_ids": None}),
    Chat("vllm, logprobs", each="choice", deployed=True, in_choice={"logprobs": LOGPROBS}),
    # vLLM 0.11 and 0.12 name reasoning twice.
    Chat("vllm, both names of reasoning", deployed=True, reasoning=("reasoning", "reasoning_content")),
    # sglang/srt/entrypoints/openai
    Chat("sglang", each="choice", deployed=True, in_choice={"matched_stop": None}),
    # ggml-org/llama.cpp, tools/server
    Chat("llama.cpp", plain_usage, deployed=True, more={"system_fingerprint": "b6000-abcdef"}),
    # ollama/ollama, openai/openai.go
    Chat("ollama", plain_usage, reasoning=("reasoning",), more={"system_fingerprint": "fp_ollama"}),
    # huggingface/text-generation-inference, router
    Chat("tgi", plain_usage, more={"usage": None, "system_fingerprint": "3.3.4-native"}),
    # https://platform.openai.com/docs/api-reference/chat-streaming
    Chat("openai", group=1, more={"usage": None, "service_tier": "default", "obfuscation": "aB3x9"}),
    Chat("openai, logprobs", in_choice={"logprobs": LOGPROBS}),
    # https://learn.microsoft.com/azure/ai-foundry/openai/reference: the first event has neither choices nor
    # usage.
    Chat(
        "azure",
        group=2,
        first=(
            sse({"choices": [], "id": "", "prompt_filter_results": [{"content_filter_results": FILTERS}]}),
        ),
        in_choice={"content_filter_results": FILTERS},
    ),
    Chat("gemini", gemini_usage, group=60, at="finish"),
    Chat("deepseek", deepseek_usage, at="finish", first=(b": keep-alive\n\n",)),
    Chat("moonshot", moonshot_usage, group=2, at="choice"),
    Chat("groq", groq_usage, at="x_groq", reasoning=("reasoning",)),
    Chat("xai", xai_usage, at="finish", each="all", group=3),
    Chat(
        "openrouter",
        openrouter_usage,
        group=4,
        at="finish",
        reasoning=("reasoning",),
        first=(b": OPENROUTER PROCESSING\n\n",) * 2,
        more={"provider": "Together"},
    ),
    Chat("litellm", litellm_usage, group=5, at="finish", compact=False),
    # https://docs.mistral.ai/api
    Chat("mistral", plain_usage, group=3, at="finish"),
]


@dataclass(frozen=True)
class Messages:
    """A stream of Anthropic's messages (https://platform.claude.com/docs/en/build-with-claude/streaming)."""

    name: str
    group: int = 5
    cache: bool = True
    deployed: bool = False

    path = "/v1/messages"
    written = 64

    def _usage(self, output: int) -> Usage:
        if not self.cache:
            return {"input_tokens": INPUT, "output_tokens": output}
        return {
            "input_tokens": INPUT - CACHED - self.written,
            "cache_creation_input_tokens": self.written,
            "cache_read_input_tokens": CACHED,
            "output_tokens": output,
        }

    def _counts(self, output: int) -> tuple[int, int, int, int]:
        return (INPUT, CACHED, self.written, output) if self.cache else (INPUT, 0, 0, output)

    def stream(self, kind: Kind = "content", choices: int = 1) -> Recording:
        """The stream of an answer; there is only one choice."""
        tokens = ARGUMENTS if kind == "tools" else PROSE
        block, delta, name = {
            "content": ({"type": "text", "text": ""}, "text_delta", "text"),
            "reasoning": (
                {"type": "thinking", "thinking": "", "signature": ""},
                "thinking_delta",
                "thinking",
            ),
            "tools": (
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
                "input_json_delta",
                "partial_json",
            ),
        }[kind]
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": "m-1",
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(1),
        }
        head: list[Any] = [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "ping"},
        ]
        body = []
        for at in range(0, len(tokens), self.group):
            group = tokens[at : at + self.group]
            event = {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": delta, name: "".join(group)},
            }
            body.append((sse(event, event["type"]), len(group)))
        reason = {"stop_reason": "tool_use" if kind == "tools" else "end_turn", "stop_sequence": None}
        usage = {"output_tokens": len(tokens)} if self.cache else self._usage(len(tokens))
        tail: list[Any] = [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": reason, "usage": usage},
            {"type": "message_stop"},
        ]
        error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        return Recording(
            [sse(event, event["type"]) for event in head],
            body,
            [sse(event, event["type"]) for event in tail],
            self._counts(len(tokens)),
            sse(error, "error"),
            input_first=True,
        )

    def document(self, choices: int = 1) -> bytes:
        """The same as one document."""
        content = [{"type": "text", "text": "".join(PROSE)}]
        usage = self._usage(len(PROSE))
        return json.dumps(
            {"id": "msg_1", "type": "message", "role": "assistant", "content": content, "usage": usage}
        ).encode()


@dataclass(frozen=True)
class Responses:
    """A stream of OpenAI's responses (https://platform.openai.com/docs/api-reference/responses-streaming)."""

    name: str
    group: int = 2
    deployed: bool = False

    path = "/v1/responses"

    def _response(self, status: str, usage: Usage | None, output: list[Any]) -> dict[str, Any]:
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": 1796083200,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": "Answer as briefly as you can. " * 400,
            "model": "m-1",
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "text": {"format": {"type": "text"}},
            "usage": usage,
        }

    def stream(self, kind: Kind = "content", choices: int = 1) -> Recording:
        """The stream of an answer; there is only one choice."""
        tokens = ARGUMENTS if kind == "tools" else PROSE
        name = {
            "content": "response.output_text",
            "reasoning": "response.reasoning_summary_text",
            "tools": "response.function_call_arguments",
        }[kind]
        text, place = "".join(tokens), {"item_id": "item_1", "output_index": 0}
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {
            "id": "item_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [part],
        }
        head: list[Any] = [
            {"type": "response.created", "response": self._response("in_progress", None, [])},
            {"type": "response.in_progress", "response": self._response("in_progress", None, [])},
            {
                "type": "response.output_item.added",
                "output_index": 0,
                "item": {**item, "status": "in_progress", "content": []},
            },
            {
                "type": "response.content_part.added",
                "content_index": 0,
                **place,
                "part": {"type": "output_text", "text": "", "annotations": []},
            },
        ]
        body = []
        for at in range(0, len(tokens), self.group):
            group = tokens[at : at + self.group]
            event = {
                "type": f"{name}.delta",
                "content_index": 0,
                **place,
                "delta": "".join(group),
                "logprobs": [],
            }
            body.append((sse(event, event["type"]), len(group)))
        done = "arguments" if kind == "tools" else "text"
        tail: list[Any] = [
            {"type": f"{name}.done", "content_index": 0, **place, done: text},
            {"type": "response.content_part.done", "content_index": 0, **place, "part": part},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {
                "type": "response.completed",
                "response": self._response("completed", self._usage(len(tokens)), [item]),
            },
        ]
        failed = {
            **self._response("failed", None, []),
            "error": {"code": "server_error", "message": "The model failed"},
        }
        numbered = [
            sse({**event, "sequence_number": number}, event["type"]) for number, event in enumerate(head)
        ]
        return Recording(
            numbered,
            body,
            [sse(event, event["type"]) for event in tail],
            (INPUT, CACHED, 0, len(tokens)),
            sse({"type": "response.failed", "response": failed}, "response.failed"),
        )

    def _usage(self, output: int) -> Usage:
        return {
            "input_tokens": INPUT,
            "input_tokens_details": {"cached_tokens": CACHED},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": INPUT + output,
        }

    def document(self, choices: int = 1) -> bytes:
        """The same as one document."""
        part = {"type": "output_text", "text": "".join(PROSE), "annotations": []}
        item = {"id": "item_1", "type": "message", "role": "assistant", "content": [part]}
        return json.dumps(self._response("completed", self._usage(len(PROSE)), [item])).encode()


@dataclass(frozen=True)
class Completions:
    """A stream of text completions, whose continuous usage is that of the event's prompt."""

    name: str
    deployed: bool = True

    path = "/v1/completions"

    def stream(self, kind: Kind = "content", choices: int = 1) -> Recording:
        """The stream of an answer."""
        body = []
        for at, token in enumerate(PROSE):
            for index in range(choices):
                chunk = {
                    "id": "cmpl-1",
                    "object": "text_completion",
                    "created": 1796083200,
                    "model": "m-1",
                    "choices": [{"index": index, "text": token, "logprobs": None, "finish_reason": None}],
                    "usage": plain_usage(at + 1),
                }
                body.append((sse(chunk), 1))
        output = len(PROSE) * choices
        last = {"id": "cmpl-1", "object": "text_completion", "choices": [], "usage": openai_usage(output)}
        error = sse({"error": {"message": "Engine died", "type": "InternalServerError", "code": 500}})
        reported = (INPUT, CACHED, 0, output)
        return Recording([], body, [sse(last), DONE], reported, error, continuous=True)

    def document(self, choices: int = 1) -> bytes:
        """The same as one document."""
        output = len(PROSE) * choices
        answers = [{"index": index, "text": "".join(PROSE)} for index in range(choices)]
        return json.dumps(
            {"object": "text_completion", "choices": answers, "usage": openai_usage(output)}
        ).encode()


Upstream = Chat | Messages | Responses | Completions
UPSTREAMS: list[Upstream] = [
    *CHATS,
    Messages("anthropic"),
    Messages("vllm, messages", group=1, cache=False, deployed=True),
    Responses("openai, responses"),
    Responses("vllm, responses", group=1, deployed=True),
    Completions("vllm, completions"),
]
EMBEDDINGS: list[tuple[str, Usage]] = [
    ("openai", {"prompt_tokens": INPUT, "total_tokens": INPUT}),
    (
        "vllm",
        {
            "prompt_tokens": INPUT,
            "total_tokens": INPUT,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        },
    ),
    # https://docs.voyageai.com/reference/embeddings-api
    ("voyage", {"total_tokens": INPUT}),
]


def embeddings(usage: Usage) -> bytes:
    """A document with embeddings."""
    data = [{"object": "embedding", "index": 0, "embedding": [0.0123, -0.98] * 500}]
    return json.dumps({"object": "list", "data": data, "model": "m-1", "usage": usage}).encode()


def without_usage(recording: Recording) -> Recording:
    """The same stream of an upstream that reports nothing."""
    body = [(_without_usage(event), tokens) for event, tokens in recording.body]
    tail = [_without_usage(event) for event in recording.tail]
    return replace(recording, head=[_without_usage(each) for each in recording.head], body=body, tail=tail)


def _without_usage(event: bytes) -> bytes:
    return event.replace(b'"usage"', b'"used"')
