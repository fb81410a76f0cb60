"""The endpoints that the gateway offers, and which fields of their bodies matter to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class APIEndpoint:
    """One path that is forwarded.

    Args:
        path: as callers write it; what follows "/v1" is the path at an upstream, behind its base URL.
        output_fields: the caller's bounds on the length of an answer, the usual one last; none: it has none.
        least_output: what such a bound must be at least. Many servers take 0 for a bound that was not
            set, and answer at length.
        choice_fields: how many answers the caller wants.
        inputs_field: may hold a list of inputs, each of which the model reads by itself.
        asks_for_usage: a stream tells what was used only if `stream_options` ask for it.
        refused: fields that must be absent, null or false, with the reason.
    """

    path: str
    output_fields: tuple[str, ...] = ()
    least_output: int = 1
    choice_fields: tuple[str, ...] = ()
    inputs_field: str = ""
    asks_for_usage: bool = False
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def operation(self) -> str:
        """What follows "/v1"."""
        return self.path.removeprefix("/v1")


_LLAMA_BOUND: Final = ("n_predict", "llama.cpp takes it before the bound of this API: leave it out")
_STORED: Final = "conversations are not stored here, and one backend serves many: send the whole conversation"

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
    least_output=0,  # its prompt alone is asked for, with the likelihood of each token
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
        ("background", "a call that goes on without its caller cannot be metered: leave it out"),
        ("previous_response_id", _STORED),
        ("conversation", _STORED),
        ("prompt", "prompts are not stored here: send the input itself"),
    ),
)
MESSAGES: Final = APIEndpoint("/v1/messages", ("max_tokens",), refused=(_LLAMA_BOUND,))

ENDPOINTS: Final[Mapping[str, APIEndpoint]] = {
    endpoint.path: endpoint for endpoint in (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES)
}
"""By their path."""
MODELS_PATH: Final = "/v1/models"
"""Answered by the gateway itself."""
