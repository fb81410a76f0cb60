"""The endpoints of the gateway, and the fields of their bodies that it reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final


@dataclass(frozen=True)
class APIEndpoint:
    """One path that is forwarded.

    Args:
        path: as callers write it. The part after "/v1" is appended to the base URL of an upstream.
        output_fields: the caller's bounds on the length of an answer, the usual one last; none: no bound.
        least_output: the minimum of such a bound. Many servers take 0 for an unset bound, and give a long
            answer.
        choice_fields: the fields with the number of answers.
        inputs_field: the field that may hold a list of inputs, which the model reads separately.
        asks_for_usage: whether a stream reports usage only if `stream_options` ask for it.
        refused: fields that must be absent, null or false, with the reason.
    """

    path: str
    output_fields: tuple[str, ...] = ()
    least_output: int = 1
    choice_fields: tuple[str, ...] = ()
    inputs_field: str = ""
    asks_for_usage: bool = False
    refused: tuple[tuple[str, str], ...] = ()

    @cached_property
    def dialect(self) -> str:
        """The name of the API: "chat", "completions", "embeddings", "responses" or "messages"."""
        return self.path.split("/")[2]

    @cached_property
    def operation(self) -> str:
        """The part of the path after "/v1"."""
        return self.path.removeprefix("/v1")


_LLAMA_BOUND: Final = ("n_predict", "llama.cpp prefers it to the output bound of this API. Omit it")
_STORED: Final = "the gateway stores no conversations. Send the whole conversation"

CHAT: Final = APIEndpoint(
    "/v1/chat/completions",
    ("max_completion_tokens", "max_tokens"),
    choice_fields=("n",),
    asks_for_usage=True,
    refused=(_LLAMA_BOUND,),
)
COMPLETIONS: Final = APIEndpoint(
    "/v1/completions",
    ("max_tokens",),
    least_output=0,  # a caller may want only the prompt, with the log probability of each token
    choice_fields=("n", "best_of"),
    inputs_field="prompt",
    asks_for_usage=True,
    refused=(_LLAMA_BOUND,),
)
EMBEDDINGS: Final = APIEndpoint("/v1/embeddings", inputs_field="input")
RESPONSES: Final = APIEndpoint(
    "/v1/responses",
    ("max_output_tokens",),
    refused=(
        _LLAMA_BOUND,
        ("background", "a call that outlives its connection cannot be metered. Omit it"),
        ("previous_response_id", _STORED),
        ("conversation", _STORED),
        ("prompt", "the gateway stores no prompts. Send the input"),
    ),
)
MESSAGES: Final = APIEndpoint("/v1/messages", ("max_tokens",), refused=(_LLAMA_BOUND,))

ENDPOINTS: Final[Mapping[str, APIEndpoint]] = {
    endpoint.path: endpoint for endpoint in (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES)
}
"""Endpoints by path."""
COUNT_TOKENS_PATH: Final = "/v1/messages/count_tokens"
"""Answered by the gateway itself, with an estimate."""
MODELS_PATH: Final = "/v1/models"
"""Answered by the gateway itself."""
