"""The endpoints that the gateway offers, and which fields of their bodies matter to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path that is forwarded.

    Args:
        path: as callers write it; what follows "/v1" is the path at an upstream, behind its base URL.
        output_fields: the caller's bounds on the length of an answer, the usual one first; none: it has none.
        choice_fields: how many answers the caller wants.
        asks_for_usage: a stream tells what was used only if `stream_options` ask for it.
        refused: fields that must be absent, null or false, with the reason.
    """

    path: str
    output_fields: tuple[str, ...] = ()
    choice_fields: tuple[str, ...] = ()
    asks_for_usage: bool = False
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def operation(self) -> str:
        """What follows "/v1"."""
        return self.path.removeprefix("/v1")


_STORED: Final = "conversations are not stored here, and one backend serves many: send the whole conversation"

CHAT: Final = Endpoint(
    "/v1/chat/completions", ("max_completion_tokens", "max_tokens"), ("n",), asks_for_usage=True
)
COMPLETIONS: Final = Endpoint("/v1/completions", ("max_tokens",), ("n", "best_of"), asks_for_usage=True)
EMBEDDINGS: Final = Endpoint("/v1/embeddings")
RESPONSES: Final = Endpoint(
    "/v1/responses",
    ("max_output_tokens",),
    refused=(
        ("background", "a call that goes on without its caller cannot be metered: leave it out"),
        ("previous_response_id", _STORED),
        ("conversation", _STORED),
        ("prompt", "prompts are not stored here: send the input itself"),
    ),
)
MESSAGES: Final = Endpoint("/v1/messages", ("max_tokens",))

ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    endpoint.path: endpoint for endpoint in (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES)
}
"""By their path."""
MODELS_PATH: Final = "/v1/models"
"""Answered by the gateway itself."""
