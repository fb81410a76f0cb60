"""The requests that the simulator accepts, and its errors.

Fields without effect here (temperature, tools, user, ...) are ignored. Fields that would make the answer
wrong if they were ignored (`n`, images) are refused.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

TokenIds = list[Annotated[int, Field(ge=0, strict=True)]]
MAX_MIN_TOKENS = 1_000_000
Positive = Annotated[int, Field(ge=1)]


class RequestError(Exception):
    """A refused request, in the format of OpenAI's errors.

    Args:
        status: the HTTP status code.
        message: a sentence for the caller, naming the field.
        param: the field, if there is one.
        code: the machine-readable code, if OpenAI has one.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """The JSON body of the response."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class SimulatorRequest(BaseModel):
    """The fields of every endpoint's body."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str


class StreamOptions(BaseModel):
    """`continuous_usage_stats` is vLLM's: every chunk has the usage so far."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationRequest(SimulatorRequest):
    """The fields of chat and text completions. `min_tokens` is vLLM's minimum length of the answer."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_MIN_TOKENS)] = 0
    n: Literal[1] | None = None

    @property
    def token_limit(self) -> int | None:
        """The maximum number of tokens of the answer."""
        return self.max_tokens


class TextPart(BaseModel):
    """The only content part of a model without vision and audio."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None


class Message(BaseModel):
    """One message of a chat."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return " ".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Positive | None = None

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens` is the newer name, and takes precedence."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(GenerationRequest):
    """POST /v1/completions: one prompt, as text or as token ids."""

    prompt: str | TokenIds

    @property
    def token_limit(self) -> int | None:
        """OpenAI's default for this endpoint is 16."""
        return self.max_tokens or 16


class ResponsesPart(BaseModel):
    """A part of an item's content, including the model's output of an earlier turn."""

    type: Literal["input_text", "output_text"]
    text: str


class ResponsesItem(BaseModel):
    """One message of the input."""

    type: Literal["message"] = "message"
    role: Literal["developer", "system", "user", "assistant"]
    content: str | list[ResponsesPart]

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return " ".join(part.text for part in self.content)


class ResponsesRequest(SimulatorRequest):
    """POST /v1/responses, without anything stored on the server."""

    input: str | Annotated[list[ResponsesItem], Field(min_length=1)]
    instructions: str | None = None
    stream: bool = False
    max_output_tokens: Positive | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_MIN_TOKENS)] = 0
    previous_response_id: None = None

    @property
    def texts(self) -> list[str]:
        """The texts of all messages, the instructions first."""
        items = [self.input] if isinstance(self.input, str) else [item.text for item in self.input]
        return [self.instructions, *items] if self.instructions else items


class MessagesTurn(BaseModel):
    """One message of Anthropic's."""

    role: Literal["user", "assistant", "system"]  # Claude Code sends system messages between others
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return " ".join(part.text for part in self.content)


class MessagesRequest(SimulatorRequest):
    """POST /v1/messages, as in Anthropic's API and vLLM."""

    messages: Annotated[list[MessagesTurn], Field(min_length=1)]
    system: str | list[TextPart] | None = None
    max_tokens: Positive
    min_tokens: Annotated[int, Field(ge=0, le=MAX_MIN_TOKENS)] = 0
    stream: bool = False

    @property
    def texts(self) -> list[str]:
        """The texts of all messages, the system prompt first."""
        turns = [turn.text for turn in self.messages]
        if isinstance(self.system, list):
            return [" ".join(part.text for part in self.system), *turns]
        return [self.system, *turns] if self.system else turns

    @property
    def writes_cache(self) -> bool:
        """Whether a part has `cache_control`: then Anthropic reports what it writes to its cache."""
        contents = (self.system, *(turn.content for turn in self.messages))
        parts = (part for content in contents if isinstance(content, list) for part in content)
        return any(part.cache_control is not None for part in parts)


class EmbeddingRequest(SimulatorRequest):
    """POST /v1/embeddings: one input or several, as texts or as token ids."""

    input: str | TokenIds | Annotated[list[str | TokenIds], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=4096)] = 64

    @property
    def inputs(self) -> list[str | TokenIds]:
        """The inputs as a list; each gets a vector."""
        if isinstance(self.input, str):
            return [self.input]
        if all(isinstance(item, int) for item in self.input):
            return [[item for item in self.input if isinstance(item, int)]]
        return [item for item in self.input if not isinstance(item, int)]
