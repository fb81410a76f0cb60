"""The simulator, called by the real OpenAI client over a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from farebox.errors import ConfigurationError
from farebox.simulator import Profile, run, serving
from farebox.simulator.generator import NATURAL_TOKENS, WORDS, Pace, compose
from farebox.simulator.tokens import BLOCK_TOKENS, MESSAGE_TOKENS, PrefixCache, tokenize
from tests.support.ports import free_port

MODEL = "Qwen/Qwen3-8B"
INSTANT = Pace(ttft_ms=0, tokens_per_second=0)
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello there"}]
HELLO_TOKENS = 4 + MESSAGE_TOKENS


@asynccontextmanager
async def client_of(pace: Pace = INSTANT) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        serving("127.0.0.1", 0, Profile(MODEL, pace)) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client


async def eventually_refused(port: int) -> None:
    """Returns once nothing listens on the port; pytest's timeout is the limit."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue  # it was in the backlog when the listener closed
        writer.close()
        await asyncio.sleep(0.01)


async def eventually_connected(port: int) -> None:
    """Returns once something listens on the port; pytest's timeout is the limit."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.01)
        else:
            writer.close()
            return


def test_the_counting_rule() -> None:
    assert tokenize("Hello there") == ["Hell", "o", "ther", "e"]
    assert tokenize("  \n") == []
    assert all(len(tokenize(word)) == 1 for word in WORDS), "an answer's words must be one token each"


@pytest.mark.parametrize(
    ("limit", "at_least", "length", "reason"),
    [
        (None, 0, NATURAL_TOKENS, "stop"),
        (NATURAL_TOKENS, 0, NATURAL_TOKENS, "stop"),
        (5, 0, 5, "length"),
        (1000, 0, NATURAL_TOKENS, "stop"),
        (1000, 1000, 1000, "stop"),
        (10, 1000, 10, "length"),
        (None, 200, 200, "stop"),
    ],
)
def test_the_length_of_an_answer(limit: int | None, at_least: int, length: int, reason: str) -> None:
    answer = compose(limit, at_least)
    assert (len(answer.tokens), answer.finish_reason) == (length, reason)
    assert tokenize(answer.text) == list(answer.tokens)


def test_a_prefix_is_cached_in_whole_blocks_and_never_to_the_last_token() -> None:
    cache = PrefixCache()
    prompt = [str(number) for number in range(3 * BLOCK_TOKENS)]
    assert cache.admit(prompt) == 0
    assert cache.admit(prompt) == 2 * BLOCK_TOKENS, "the last block holds the token that must be computed"
    assert cache.admit([*prompt, "more"]) == 2 * BLOCK_TOKENS
    assert cache.admit([*prompt, "more"]) == 3 * BLOCK_TOKENS
    assert cache.admit(["other", *prompt[1:]]) == 0, "a block counts only behind the same beginning"


def test_the_prefix_cache_forgets_the_oldest() -> None:
    cache = PrefixCache(max_blocks=2)
    old, new = (["old"] * (2 * BLOCK_TOKENS + 1), ["new"] * (2 * BLOCK_TOKENS + 1))
    cache.admit(old)
    cache.admit(new)
    assert cache.admit(new) == 2 * BLOCK_TOKENS
    assert cache.admit(old) == 0


@pytest.mark.parametrize("pace", [(-1, 0), (0, -1)])
def test_a_negative_pace_is_refused(pace: tuple[int, int]) -> None:
    with pytest.raises(ConfigurationError):
        Pace(*pace)


async def test_health_and_the_list_of_models() -> None:
    async with client_of() as client:
        assert [model.id for model in (await client.models.list()).data] == [MODEL]
        health = str(client.base_url).removesuffix("/v1/") + "/health"
        async with aiohttp.request("GET", health) as response:
            assert response.status == 200


async def test_a_chat_answer_has_honest_usage() -> None:
    async with client_of() as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.usage is not None
    text = answer.choices[0].message.content
    assert text is not None
    assert answer.usage.prompt_tokens == HELLO_TOKENS
    assert answer.usage.completion_tokens == len(tokenize(text)) == NATURAL_TOKENS
    assert answer.usage.total_tokens == HELLO_TOKENS + NATURAL_TOKENS
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_max_tokens_cuts_the_answer(field: str) -> None:
    async with client_of() as client:
        limit: Any = {field: 3}
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO, **limit)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert answer.choices[0].message.content == " ".join(WORDS[:3])
    assert answer.choices[0].finish_reason == "length"


async def test_a_repeated_prompt_is_cached() -> None:
    words = " ".join(["word"] * (4 * BLOCK_TOKENS))
    async with client_of() as client:
        cached = []
        for _ in range(2):
            answer = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": words}]
            )
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            assert answer.usage.prompt_tokens == 4 * BLOCK_TOKENS + MESSAGE_TOKENS
            cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, 3 * BLOCK_TOKENS]


async def test_a_stream_says_the_same_as_a_whole_answer_and_has_usage_when_asked() -> None:
    async with client_of() as client:
        whole = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=7)
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=7, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    *answer, last = chunks
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in answer) == whole.choices[0].message.content
    )
    assert answer[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in answer if chunk.choices[0].finish_reason] == [
        "length"
    ]
    assert all(chunk.usage is None for chunk in answer)
    assert last.choices == []
    assert last.usage == whole.usage


async def test_a_stream_has_no_usage_unless_asked() -> None:
    async with client_of() as client:
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


async def test_continuous_usage_counts_up_as_from_vllm() -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    async with client_of() as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=3, stream=True, stream_options=options
        )
        counts = [chunk.usage.completion_tokens async for chunk in stream if chunk.usage is not None]
    assert counts == [0, 1, 2, 3, 3, 3]


async def test_text_completions_whole_and_streamed() -> None:
    async with client_of() as client:
        whole = await client.completions.create(model=MODEL, prompt="Once upon a", max_tokens=4)
        stream = await client.completions.create(model=MODEL, prompt="Once upon a", max_tokens=4, stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
        from_ids = await client.completions.create(model=MODEL, prompt=[1, 2, 3])
    assert whole.usage is not None
    assert from_ids.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 4)
    assert text == whole.choices[0].text
    assert (from_ids.usage.prompt_tokens, from_ids.usage.completion_tokens) == (3, 16)


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings_depend_on_the_input_alone(encoding: Any) -> None:
    async with client_of() as client:
        answer = await client.embeddings.create(
            model=MODEL, input=["same thing", "other", "same thing"], dimensions=8, encoding_format=encoding
        )
        one = await client.embeddings.create(model=MODEL, input="same thing", dimensions=8)
    first, other, again = (item.embedding for item in answer.data)
    assert first == again != other
    if encoding == "float":
        assert len(first) == 8
        assert first == pytest.approx(one.data[0].embedding, abs=1e-6)
    assert answer.usage.prompt_tokens == 3 + 2 + 3


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "other", "messages": HELLO}, 404, "model"),
        ({"messages": HELLO}, 400, "model"),
        ({"model": MODEL, "messages": []}, 400, "messages"),
        ({"model": MODEL, "messages": HELLO, "max_tokens": 0}, 400, "max_tokens"),
        ({"model": MODEL, "messages": HELLO, "n": 2}, 400, "n"),
        (b"{", 400, None),
        (b"[]", 400, None),
    ],
)
async def test_errors_are_in_openai_form_and_name_the_field(
    body: Any, status: int, param: str | None
) -> None:
    async with client_of() as client, aiohttp.ClientSession() as session:
        sent: Any = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with session.post(f"{client.base_url}chat/completions", **sent) as response:
            error = (await response.json())["error"]
    assert response.status == status
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"]


async def test_the_client_raises_its_own_error_for_an_unknown_model() -> None:
    async with client_of() as client:
        with pytest.raises(openai.NotFoundError, match="does not exist") as caught:
            await client.chat.completions.create(model="other", messages=HELLO)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "nothing", 404), ("GET", "chat/completions", 405)]
)
async def test_unknown_routes_and_methods_are_in_openai_form(method: str, path: str, status: int) -> None:
    async with client_of() as client, aiohttp.request(method, f"{client.base_url}{path}") as response:
        assert response.status == status
        assert (await response.json())["error"]["message"]


async def test_the_pace_is_kept() -> None:
    loop = asyncio.get_running_loop()
    async with client_of(Pace(ttft_ms=150, tokens_per_second=50)) as client:
        start = loop.time()
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=11, stream=True)
        times = [loop.time() - start async for chunk in stream if chunk.choices[0].delta.content]
        start = loop.time()
        await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=11)
        whole = loop.time() - start
    # Only lower bounds: a busy machine can be late, but a token that comes early is a fault.
    assert times[0] >= 0.149
    assert times[-1] >= 0.349
    assert whole >= 0.349


async def test_a_stop_lets_a_running_stream_finish_and_takes_no_new_call() -> None:
    stop, port = asyncio.Event(), free_port()
    server = asyncio.create_task(
        run(host="127.0.0.1", port=port, model=MODEL, ttft_ms=0, tokens_per_second=20, stop=stop)
    )
    await eventually_connected(port)
    base = f"http://127.0.0.1:{port}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="unused", max_retries=0) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=20, stream=True)
        pieces = []
        async for chunk in stream:
            pieces.append(chunk.choices[0].delta.content or "")
            if len(pieces) == 3:
                stop.set()
                await eventually_refused(port)
    await server
    assert len(tokenize("".join(pieces))) == 20


async def test_a_client_that_goes_away_leaves_the_server_well() -> None:
    async with client_of(Pace(ttft_ms=0, tokens_per_second=200)) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, extra_body={"min_tokens": 100_000}
        )
        async for _ in stream:
            break
        await stream.close()
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
        assert answer.choices[0].message.content == WORDS[0]
    # Leaving the context waits for running answers: it would take 500 s if the first were still made.
