"""Real calls of the demo: the official OpenAI client, through the gateway, with the key of the samples."""

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openai import APIConnectionError, APIStatusError, OpenAI

from tests.support.api import path_of
from tests.support.stack import Stack
from tests.tools.demo.expect import Wrong
from tests.tools.demo.fixture_services import Calls, FixtureServices

_POLL_SECONDS = 0.05
_QUESTION = "How many tokens has this question, and what does it cost to answer it?"
_WORD = "word "
"""A token, for the simulator."""


@dataclass(frozen=True)
class Answer:
    """A call that was served: what it used, and the text, as far as it is shown."""

    used: Calls
    text: str


@dataclass(frozen=True)
class Refusal:
    """A call that was refused."""

    status: int
    type: str
    message: str


class Caller:
    """The team's application.

    Args:
        patience: seconds for the gateway to see what was just changed.
    """

    def __init__(self, stack: Stack, services: FixtureServices, patience: float) -> None:
        self._services = services
        self._patience = patience
        self.url = f"{stack.gateway_url()}/v1"
        self._client = OpenAI(base_url=self.url, api_key=_token(stack, services, patience), max_retries=0)

    def ask(self) -> Answer:
        """One call, as soon as it is served."""
        return self._served(lambda: self._chat(_QUESTION, max_tokens=40))

    def stream(self) -> Answer:
        """One call whose answer comes in pieces; the client asks for its usage at the end."""
        return self._served(self._stream)

    def until_refused(self, tokens: int) -> tuple[list[Answer], Refusal]:
        """Make calls of this number of tokens, one after another, until one is refused."""
        answers: list[Answer] = []
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            try:
                # Another first word each time: what the model server has cached costs less.
                answers.append(self._chat(f"call{len(answers)} {_WORD * tokens}", max_tokens=8))
            except APIStatusError as error:
                return answers, _refusal(error)
        raise Wrong(f"no call was refused within {self._patience:g} s, after {len(answers)} that were served")

    def refused(self) -> Refusal:
        """One call that must be refused."""
        try:
            answer = self._chat(_QUESTION, max_tokens=40)
        except APIStatusError as error:
            return _refusal(error)
        raise Wrong(f"a call was served that should be refused: {answer.text!r}")

    def _served(self, call: Callable[[], Answer]) -> Answer:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return call()
            except (APIStatusError, APIConnectionError) as error:
                if time.monotonic() > deadline:
                    raise Wrong(f"a call is not served: {error}") from error
                time.sleep(_POLL_SECONDS)

    def _chat(self, text: str, max_tokens: int) -> Answer:
        name = self._services.chat.partition("/")[2]
        answer = self._client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": text}], max_tokens=max_tokens
        )
        return Answer(self._calls(answer.usage), answer.choices[0].message.content or "")

    def _stream(self) -> Answer:
        name = self._services.chat.partition("/")[2]
        text, usage = "", None
        for chunk in self._client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": _QUESTION}],
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        ):
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            usage = chunk.usage or usage
        return Answer(self._calls(usage), text)

    def _calls(self, usage: Any) -> Calls:
        assert usage is not None, "an answer says what it used"
        details = usage.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details else 0
        model = self._services.model("qwen3-8b")
        return Calls(1, self._services.chat, model, usage.prompt_tokens, usage.completion_tokens, cached)


def _refusal(error: APIStatusError) -> Refusal:
    body = error.body if isinstance(error.body, dict) else {}
    return Refusal(error.status_code, str(body.get("type", "")), str(body.get("message", error.message)))


def _token(stack: Stack, services: FixtureServices, patience: float) -> str:
    """The key that the operator made for the samples' APIKey."""
    deadline = time.monotonic() + patience
    secret = f"/api/v1/namespaces/{services.team}/secrets"
    while time.monotonic() < deadline:
        found = stack.api.find(path_of("APIKey", services.team, "app")) or {}
        if name := found.get("status", {}).get("secretName"):
            data = stack.api.get(f"{secret}/{name}")["data"]
            return base64.b64decode(data["api-key"]).decode()
        time.sleep(_POLL_SECONDS)
    raise Wrong(f"APIKey {services.team}/app has no Secret")
