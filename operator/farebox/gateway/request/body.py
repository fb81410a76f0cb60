"""Request bodies: strict parsing, and rewriting that keeps every byte of the values it does not set.

Parsing is strict where JSON readers differ, because the upstream must serve what the gateway admitted: a
duplicate key, or one in other capitals, has different meanings to different readers. Values that do not
matter here are neither read nor changed: numbers keep their digits, and strings keep their escapes.
"""

from collections.abc import Generator, Mapping
from typing import Any, Final, TypeVar, cast

import msgspec

from farebox.api import StreamUsage
from farebox.domain.admission.types import Denied
from farebox.gateway.interface import UsageRedaction
from farebox.gateway.request.content import Content, survey
from farebox.gateway.request.endpoints import ENDPOINTS, APIEndpoint
from farebox.gateway.request.json_objects import Fields, read_object
from farebox.gateway.request.structure import SMALL, check_nesting, check_structure

MAX_CHOICES: Final = 128
MAX_TOKENS_ASKED: Final = 2**31 - 1
_MAX_MODEL_LENGTH: Final = 253

T = TypeVar("T")
_TEXTS: Final = msgspec.json.Decoder(list[str])
_MODEL: Final = msgspec.json.Decoder(str)
_FLAG: Final = msgspec.json.Decoder(bool | None)
_COUNT: Final = msgspec.json.Decoder(int | None)
_encode: Final = msgspec.json.Encoder().encode
_NOTHING: Final[Mapping[str, Any]] = {}
_TRUE: Final = msgspec.Raw(b"true")
_ABSENT: Final = (b"null", b"false")

GOVERNED: Final = frozenset(
    {"model", "stream", "stream_options", "include_usage", "continuous_usage_stats"}.union(
        *(
            {*each.output_fields, *each.choice_fields, each.inputs_field, *(name for name, _ in each.refused)}
            for each in ENDPOINTS.values()
        )
    )
)
"""The keys that the gateway reads. Other spellings are refused, because some readers ignore case."""


class RequestBody(msgspec.Struct, frozen=True):
    """A parsed body.

    Args:
        asked_output: the caller's bound on each answer in tokens, or None; 0 where there is no answer.
        choices: how many answers the caller wants.
        inputs: how many texts the model reads separately, such as the prompts of a list.
        options: `stream_options` of a stream that has to be asked for its usage; otherwise None.
        content: what it contains besides text.
    """

    endpoint: APIEndpoint
    fields: Fields
    raw: bytes
    model: str
    stream: bool
    asked_output: int | None
    choices: int
    inputs: int
    options: Fields | None
    content: Content

    def asks_for_usage(self, stream_usage: StreamUsage) -> bool:
        """Whether the gateway asks the stream for its usage (B16)."""
        return self.options is not None and stream_usage is not StreamUsage.NEVER

    @property
    def length(self) -> int:
        """The size in bytes."""
        return len(self.raw)

    def rewritten(
        self,
        served_name: str,
        stream_usage: StreamUsage = StreamUsage.LAST_EVENT,
        max_output: int | None = None,
        added: Mapping[str, Any] = _NOTHING,
    ) -> bytes:
        """The body for the upstream: `model` is the served name, and a stream reports its usage (B16).

        Args:
            stream_usage: `streamUsage` of the Model; Never keeps `stream_options` as the caller sent them.
            max_output: a bound on each answer, if the caller set none.
            added: fields that replace the caller's.
        """
        fields: dict[str, Any] = {**self.fields, "model": served_name, **added}
        if self.options is not None and stream_usage is not StreamUsage.NEVER:
            more = {"continuous_usage_stats": _TRUE} if stream_usage is StreamUsage.EACH_EVENT else {}
            fields["stream_options"] = {**self.options, "include_usage": _TRUE, **more}
        if max_output is not None and self.asked_output is None:
            fields[self.endpoint.output_fields[-1]] = max_output
        return _encode(fields)

    def redaction(self, stream_usage: StreamUsage = StreamUsage.LAST_EVENT) -> UsageRedaction:
        """The usage that `rewritten` asks for and the caller did not."""
        if self.options is None or stream_usage is StreamUsage.NEVER:
            return UsageRedaction.NOTHING
        if not _flag(self.options, "include_usage"):
            return UsageRedaction.ALL
        each_event = stream_usage is StreamUsage.EACH_EVENT
        if each_event and not _flag(self.options, "continuous_usage_stats"):
            return UsageRedaction.EACH_EVENT
        return UsageRedaction.NOTHING


def parse(endpoint: APIEndpoint, body: bytes) -> RequestBody:
    """Parse a body in one go; see `parsing`."""
    steps = parsing(endpoint, body)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(RequestBody, end.value)


def parsing(endpoint: APIEndpoint, body: bytes) -> Generator[None, None, RequestBody]:
    """Parse a body in steps of at most a few milliseconds, so that other calls can go on between them.

    Raises:
        Denied: it is not JSON in UTF-8, not an object, nested beyond MAX_DEPTH or too complex; a key
            is duplicated or differs in case from a governed key; `model` is missing; a field that the gateway
            reads has a wrong type, or asks for an unsupported feature.
    """
    if len(body) > SMALL:
        yield from check_structure(body)
        yield
        fields = _object(body, "The body")
        yield
    else:
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise Denied(400, "invalid_utf8", f"The body is not UTF-8: byte {error.start}") from None
        fields = _object(body, "The body")
        check_nesting(body)
    model = _model(fields)
    stream = _read(_FLAG, fields, "stream", "true or false") or False
    inputs = _inputs(endpoint, fields)
    for name, reason in endpoint.refused:
        if name in fields and bytes(fields[name]) not in _ABSENT:
            raise Denied(400, "not_offered", f"Field {name} is not supported: {reason}")
    content = yield from survey(body, fields, endpoint.inputs_field)
    return RequestBody(
        endpoint=endpoint,
        fields=fields,
        raw=body,
        model=model,
        stream=stream,
        asked_output=_asked_output(endpoint, fields),
        choices=_choices(endpoint, fields) * (inputs if endpoint.output_fields else 1),
        inputs=inputs,
        options=_options(fields) if stream and endpoint.asks_for_usage else None,
        content=content,
    )


def _object(text: bytes | msgspec.Raw, what: str) -> Fields:
    """The fields of an object, each key once, none in other capitals than the governed keys."""
    fields = read_object(text, what)
    for name in fields:
        if name not in GOVERNED and name.casefold() in GOVERNED:
            raise Denied(400, "ambiguous_key", f"{what} has the key {name!r}. Write {name.casefold()!r}")
    return fields


def _model(fields: Mapping[str, msgspec.Raw]) -> str:
    model = _read(_MODEL, fields, "model", "a string")
    if not model:
        raise Denied(400, "missing_model", "Field model is missing. GET /v1/models lists all models")
    if len(model) > _MAX_MODEL_LENGTH:
        raise Denied(400, "invalid_type", f"Field model is longer than {_MAX_MODEL_LENGTH} characters")
    return model


def _read(
    decoder: msgspec.json.Decoder[T], fields: Mapping[str, msgspec.Raw], name: str, what: str
) -> T | None:
    """The value of a field; None if it is absent."""
    value = fields.get(name)
    if value is None:
        return None
    try:
        return decoder.decode(value)
    except msgspec.DecodeError:
        raise Denied(400, "invalid_type", f"Field {name} must be {what}") from None


def _count(fields: Mapping[str, msgspec.Raw], name: str, least: int, most: int) -> int | None:
    if name not in fields:
        return None
    count = _read(_COUNT, fields, name, f"an integer from {least} to {most}")
    if count is not None and not least <= count <= most:
        raise Denied(400, "invalid_type", f"Field {name} must be an integer from {least} to {most}")
    return count


def _asked_output(endpoint: APIEndpoint, fields: Mapping[str, msgspec.Raw]) -> int | None:
    """The caller's output bound; the larger of two fields, because upstreams differ in which they use."""
    if not endpoint.output_fields:
        return 0
    largest = None
    for name in endpoint.output_fields:
        asked = _count(fields, name, endpoint.least_output, MAX_TOKENS_ASKED)
        if asked is not None and (largest is None or asked > largest):
            largest = asked
    return largest


def _choices(endpoint: APIEndpoint, fields: Mapping[str, msgspec.Raw]) -> int:
    """Answers per input."""
    most = 1
    for name in endpoint.choice_fields:
        most = max(most, _count(fields, name, 1, MAX_CHOICES) or 1)
    return most


def _inputs(endpoint: APIEndpoint, fields: Mapping[str, msgspec.Raw]) -> int:
    """How many texts, or lists of token ids, the body has; a single list of ids is one input."""
    name = endpoint.inputs_field
    if name not in fields:
        return 1
    given = bytes(fields[name])
    first = given[1:].lstrip()[:1] if given[:1] == b"[" else b""
    if first in (b"[", b"{"):
        return max(1, given.count(first) - (first == b"["))
    if first != b'"':
        return 1
    try:
        return len(_TEXTS.decode(given))
    except msgspec.DecodeError:
        message = f"Field {name} must be a string, or a list of strings or token ids"
        raise Denied(400, "invalid_type", message) from None


def _options(fields: Mapping[str, msgspec.Raw]) -> Fields:
    """`stream_options`, an object whose flags are booleans."""
    options = fields.get("stream_options")
    if options is None or bytes(options) == b"null":
        return {}
    read = _object(options, "Field stream_options")
    for name in ("include_usage", "continuous_usage_stats"):
        _flag(read, name)
    return read


def _flag(options: Mapping[str, msgspec.Raw], name: str) -> bool:
    return bool(_read(_FLAG, options, name, "true or false"))
