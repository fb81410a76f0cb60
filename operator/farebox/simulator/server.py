"""The simulator's HTTP server: routes, JSON and server-sent events, errors in OpenAI's format, graceful stop.

A stop closes the listener and lets running answers finish, bounded by the pod's grace period. There is no
authentication: in a cluster, the NetworkPolicy of the backends' namespace restricts access.
"""

import asyncio
import base64
import json
import secrets
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import structlog
from aiohttp import web
from pydantic import ValidationError

from farebox.ports import listen
from farebox.simulator.dialects import MessagesReply, ResponsesReply
from farebox.simulator.generator import Pace, compose, embed, paced
from farebox.simulator.protocol import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerationRequest,
    MessagesRequest,
    RequestError,
    ResponsesRequest,
    SimulatorRequest,
)
from farebox.simulator.reply import CHAT, TEXT, Form, Reply
from farebox.simulator.tokens import MESSAGE_TOKENS, PrefixCache, cacheable, tokenize

DRAIN_SECONDS = 600.0
"""The time that running answers have after a stop; in a cluster the pod's grace period is shorter."""
MAX_BODY_BYTES = 16 * 2**20
ANY_MODEL = "*"
"""The model name that accepts requests for every model."""

log = structlog.get_logger(__name__)
AnyRequest = TypeVar("AnyRequest", bound=SimulatorRequest)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Profile:
    """The simulated model and its pace."""

    model: str
    pace: Pace


async def run(
    *, host: str, port: int, model: str, ttft_ms: float, tokens_per_second: float, stop: asyncio.Event
) -> None:
    """Serve until `stop` is set, then let running answers finish.

    Args:
        model: the name that requests must use; any other gets a 404, as from vLLM.
        ttft_ms: time to the first token in milliseconds.
        tokens_per_second: of each answer; 0 means without pauses.

    Raises:
        ConfigurationError: the pace is negative, or the port is in use.
    """
    profile = Profile(model, Pace(ttft_ms, tokens_per_second))
    async with serving(host, port, profile) as url:
        log.info("simulator.listening", url=url, model=model, pace=str(profile.pace))
        await stop.wait()
        log.info("simulator.stopping")


@asynccontextmanager
async def serving(host: str, port: int, profile: Profile) -> AsyncIterator[str]:
    """Serve inside the `async with`; yields the base URL. Port 0 selects a free port."""
    runner = web.AppRunner(Simulator(profile).app(), access_log=None, shutdown_timeout=DRAIN_SECONDS)
    await runner.setup()
    try:
        await listen(runner, host, port, "--port")
        bound = runner.addresses[0][1]
        yield f"http://{host}:{bound}"
    finally:
        await runner.cleanup()


class Simulator:
    """The handlers of one simulated model."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._cache = PrefixCache()
        self._started = int(time.time())

    def app(self) -> web.Application:
        """The application with its routes."""
        app = web.Application(middlewares=[openai_errors], client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/health", self.health)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/v1/embeddings", self.embeddings)
        app.router.add_post("/v1/responses", self.respond)
        app.router.add_post("/v1/messages", self.message)
        return app

    async def health(self, request: web.Request) -> web.Response:
        """200 with an empty body while the server listens, as in vLLM."""
        return web.Response()

    async def models(self, request: web.Request) -> web.Response:
        """A list with the simulated model."""
        entry = {"id": self._profile.model, "object": "model", "created": self._started}
        return web.json_response({"object": "list", "data": [{**entry, "owned_by": "farebox"}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        body = await self._read(request, ChatRequest)
        prompt = [token for message in body.messages for token in tokenize(message.text)]
        framing = MESSAGE_TOKENS * len(body.messages)
        return await self._generate(request, body, prompt, framing, CHAT)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        body = await self._read(request, CompletionRequest)
        return await self._generate(request, body, tokens_of(body.prompt), 0, TEXT)

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/responses."""
        body = await self._read(request, ResponsesRequest)
        prompt = [token for text in body.texts for token in tokenize(text)]
        reply = ResponsesReply(
            id=secrets.token_hex(12),
            created=int(time.time()),
            model=body.model,
            answer=compose(body.max_output_tokens, body.min_tokens),
            input_tokens=len(prompt) + MESSAGE_TOKENS * len(body.texts),
            cached_tokens=self._cache.admit(prompt),
        )
        return await self._answer(request, body.stream, reply)

    async def message(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/messages."""
        body = await self._read(request, MessagesRequest)
        prompt = [token for text in body.texts for token in tokenize(text)]
        cached = self._cache.admit(prompt)
        reply = MessagesReply(
            id=secrets.token_hex(12),
            model=body.model,
            answer=compose(body.max_tokens, body.min_tokens),
            input_tokens=len(prompt) + MESSAGE_TOKENS * len(body.texts),
            cached_tokens=cached,
            written_tokens=cacheable(prompt) - cached if body.writes_cache else 0,
        )
        return await self._answer(request, body.stream, reply)

    async def embeddings(self, request: web.Request) -> web.Response:
        """POST /v1/embeddings. The vectors depend only on the input, and have no meaning."""
        body = await self._read(request, EmbeddingRequest)
        inputs = [tokens_of(item) for item in body.inputs]
        await asyncio.sleep(self._profile.pace.due(0))
        vectors = [encode_vector(embed(tokens, body.dimensions), body) for tokens in inputs]
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(vectors)
        ]
        total = sum(len(tokens) for tokens in inputs)
        usage = {"prompt_tokens": total, "total_tokens": total}
        return web.json_response({"object": "list", "model": body.model, "data": data, "usage": usage})

    async def _read(self, request: web.Request, kind: type[AnyRequest]) -> AnyRequest:
        """The body of a request. Raises RequestError: invalid JSON, an invalid field, or another model."""
        raw = await request.read()
        try:
            body = kind.model_validate(json.loads(raw))
        except ValidationError as error:
            raise refusal(error) from error
        except ValueError as error:
            raise RequestError(400, f"The body is not valid JSON: {error}.") from error
        if self._profile.model not in (ANY_MODEL, body.model):
            message = f"The model `{body.model}` does not exist. This server has `{self._profile.model}`."
            raise RequestError(404, message, param="model", code="model_not_found")
        return body

    async def _generate(
        self, request: web.Request, body: GenerationRequest, prompt: Sequence[str], framing: int, form: Form
    ) -> web.StreamResponse:
        """Answer a prompt in the format of its endpoint, whole or as a stream."""
        pace = self._profile.pace
        reply = Reply(
            form=form,
            id=f"{form.id_prefix}-{secrets.token_hex(12)}",
            created=int(time.time()),
            model=body.model,
            answer=compose(body.token_limit, body.min_tokens),
            prompt_tokens=len(prompt) + framing,
            cached_tokens=self._cache.admit(prompt),
        )
        if body.stream:
            chunks = reply.chunks(paced(reply.answer, pace), body.stream_options)
            return await stream(request, chunks, reply.id, EventStream.UNNAMED)
        await asyncio.sleep(pace.due(len(reply.answer.tokens) - 1))
        return web.json_response(reply.whole())

    async def _answer(
        self, request: web.Request, streamed: bool, reply: ResponsesReply | MessagesReply
    ) -> web.StreamResponse:
        """Answer in a dialect, whole or as a stream."""
        pace = self._profile.pace
        if streamed:
            events = reply.events(paced(reply.answer, pace))
            return await stream(request, events, reply.id, EventStream.NAMED)
        await asyncio.sleep(pace.due(len(reply.answer.tokens) - 1))
        return web.json_response(reply.whole())


class EventStream(Enum):
    """The format of a stream: UNNAMED chunks and a final [DONE], or events NAMED by their `type`."""

    UNNAMED = "unnamed"
    NAMED = "named"


async def stream(
    request: web.Request, chunks: AsyncGenerator[dict[str, Any], None], reply_id: str, events: EventStream
) -> web.StreamResponse:
    """The chunks as server-sent events. The stream ends if the client disconnects."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                name = f"event: {chunk['type']}\n".encode() if events is EventStream.NAMED else b""
                data = json.dumps(chunk, separators=(",", ":")).encode()
                await response.write(name + b"data: " + data + b"\n\n")
        if events is EventStream.UNNAMED:
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
    except ConnectionResetError:
        log.debug("simulator.client_gone", id=reply_id)
    return response


def tokens_of(text: str | Sequence[int]) -> list[str]:
    """The tokens of a text, or of a list of token ids."""
    return tokenize(text) if isinstance(text, str) else [str(token) for token in text]


def encode_vector(vector: Sequence[float], body: EmbeddingRequest) -> list[float] | str:
    """The vector in the requested encoding: numbers, or little-endian float32 in base64."""
    if body.encoding_format == "float":
        return list(vector)
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def refusal(error: ValidationError) -> RequestError:
    """The first error in a body, as a sentence that names the field."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    message = f"`{field}`: {first['msg']}." if field else f"The body is invalid: {first['msg']}."
    return RequestError(400, message, param=field or None)


@web.middleware
async def openai_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Convert every error to OpenAI's format, those of the router (404, 405, 413) included."""
    try:
        return await handler(request)
    except RequestError as error:
        return web.json_response(error.body(), status=error.status)
    except web.HTTPException as error:
        refused = RequestError(error.status, f"{request.method} {request.path}: {error.reason}.")
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return web.json_response(refused.body(), status=error.status, headers=allow)
