"""OpenAI's Responses and Anthropic's Messages, by their own clients over a real socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anthropic
import openai
import pytest
from anthropic.types import MessageParam, TextBlockParam

from farebox.simulator import Profile, serving
from farebox.simulator.generator import NATURAL_TOKENS, WORDS, Pace
from farebox.simulator.tokens import BLOCK_TOKENS, MESSAGE_TOKENS

MODEL = "Qwen/Qwen3-8B"
HELLO = "Hello there"
HELLO_TOKENS = 4 + MESSAGE_TOKENS
LONG = " ".join(["word"] * (4 * BLOCK_TOKENS))
TURN: list[MessageParam] = [{"role": "user", "content": HELLO}]


@asynccontextmanager
async def openai_client() -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        serving("127.0.0.1", 0, Profile(MODEL, Pace(0, 0))) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client


@asynccontextmanager
async def anthropic_client() -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with (
        serving("127.0.0.1", 0, Profile(MODEL, Pace(0, 0))) as url,
        anthropic.AsyncAnthropic(base_url=url, api_key="unused", max_retries=0) as client,
    ):
        yield client


async def test_a_response_has_honest_usage_and_says_why_it_ended() -> None:
    async with openai_client() as client:
        whole = await client.responses.create(model=MODEL, input=HELLO, instructions="Be kind")
        cut = await client.responses.create(model=MODEL, input=HELLO, max_output_tokens=3)
    assert whole.usage is not None
    assert whole.usage.input_tokens == HELLO_TOKENS + 2 + MESSAGE_TOKENS
    assert whole.usage.output_tokens == NATURAL_TOKENS
    assert whole.status == "completed"
    assert cut.status == "incomplete"
    assert cut.output_text == " ".join(WORDS[:3])


async def test_a_streamed_response_says_the_same_and_ends_with_its_usage() -> None:
    async with openai_client() as client:
        whole = await client.responses.create(model=MODEL, input=HELLO)
        async with client.responses.stream(model=MODEL, input=HELLO) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert final.output_text == whole.output_text
    assert final.usage == whole.usage


async def test_a_repeated_input_is_cached_in_responses() -> None:
    async with openai_client() as client:
        for _ in range(2):
            answer = await client.responses.create(model=MODEL, input=LONG, max_output_tokens=1)
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.cached_tokens == 3 * BLOCK_TOKENS


async def test_a_message_has_honest_usage_and_says_why_it_ended() -> None:
    async with anthropic_client() as client:
        whole = await client.messages.create(model=MODEL, max_tokens=1000, messages=TURN, system="Be kind")
        cut = await client.messages.create(model=MODEL, max_tokens=3, messages=TURN)
    assert whole.usage.input_tokens == HELLO_TOKENS + 2 + MESSAGE_TOKENS
    assert whole.usage.output_tokens == NATURAL_TOKENS
    assert (whole.stop_reason, cut.stop_reason) == ("end_turn", "max_tokens")
    assert cut.content[0].type == "text"
    assert cut.content[0].text == " ".join(WORDS[:3])


async def test_a_streamed_message_says_the_same() -> None:
    async with anthropic_client() as client:
        whole = await client.messages.create(model=MODEL, max_tokens=1000, messages=TURN)
        async with client.messages.stream(model=MODEL, max_tokens=1000, messages=TURN) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
    assert whole.content[0].type == "text"
    assert text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens


async def test_a_repeated_prompt_is_cached_in_messages_and_left_out_of_the_input() -> None:
    turn: list[MessageParam] = [{"role": "user", "content": LONG}]
    async with anthropic_client() as client:
        for _ in range(2):
            answer = await client.messages.create(model=MODEL, max_tokens=1, messages=turn)
    assert answer.usage.cache_read_input_tokens == 3 * BLOCK_TOKENS
    assert answer.usage.input_tokens == BLOCK_TOKENS + MESSAGE_TOKENS


async def test_a_marked_prompt_is_written_to_the_cache_and_then_read_from_it() -> None:
    marked: TextBlockParam = {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}
    usages = []
    async with anthropic_client() as client:
        for _ in range(2):
            turn: list[MessageParam] = [{"role": "user", "content": [marked]}]
            answer = await client.messages.create(model=MODEL, max_tokens=1, messages=turn)
            usages.append(answer.usage)
    counts = [
        (usage.input_tokens, usage.cache_creation_input_tokens, usage.cache_read_input_tokens)
        for usage in usages
    ]
    rest, cached = BLOCK_TOKENS + MESSAGE_TOKENS, 3 * BLOCK_TOKENS
    assert counts == [(rest, cached, 0), (rest, 0, cached)]


async def test_a_message_without_a_limit_is_refused() -> None:
    async with anthropic_client() as client:
        with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
            await client.post("/v1/messages", body={"model": MODEL, "messages": TURN}, cast_to=object)
