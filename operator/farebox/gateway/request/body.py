"""Request bodies: strict parsing, and rewriting that keeps every byte of the values it does not set.

Parsing is strict where JSON readers differ, because the upstream must serve what the gateway admitted: a
duplicate key, or one in other capitals, has different meanings to different readers. Values that do not
matter here are neither read nor changed: numbers keep their digits, and strings keep their escapes.
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Final, TypeVar

import msgspec

from farebox.api import StreamUsage
from farebox.domain.admission.types import Denied
from farebox.gateway.interface import UsageRedaction
from farebox.gateway.request.endpoints import ENDPOINTS, APIEndpoint
from farebox.gateway.request.modality import is_text_only

MAX_DEPTH: Final = 64
MAX_KEYS: Final = 256
MAX_PIECES: Final = 250_000
"""The most strings, and the most lists and objects, of a body that may be nested too deeply."""
MAX_CHOICES: Final = 128
MAX_TOKENS_ASKED: Final = 2**31 - 1
_MAX_MODEL_LENGTH: Final = 253


class _Key(str):
    """A key of an object. It equals only itself, so a duplicate key does not replace another in a dict."""

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class _Keys:
    """Makes the keys of one object at a time, at most MAX_KEYS."""

    def __init__(self) -> None:
        self.left = 0

    def make(self, type_: type, text: str) -> _Key:
        """See msgspec's dec_hook."""
        self.left -= 1
        if self.left < 0:
            raise Denied(400, "too_many_keys", f"An object has more than {MAX_KEYS} keys")
        return _Key(text)


Fields = dict[str, msgspec.Raw]
T = TypeVar("T")
_KEYS: Final = _Keys()
_OBJECT: Final = msgspec.json.Decoder(dict[_Key, msgspec.Raw], dec_hook=_KEYS.make)
_TEXTS: Final = msgspec.json.Decoder(list[str])
_MODEL: Final = msgspec.json.Decoder(str)
_FLAG: Final = msgspec.json.Decoder(bool | None)
_COUNT: Final = msgspec.json.Decoder(int | None)
_encode: Final = msgspec.json.Encoder().encode
_TRUE: Final = msgspec.Raw(b"true")
_ABSENT: Final = (b"null", b"false")

_STEP: Final = [1 if byte in b"[{" else -1 if byte in b"]}" else 0 for byte in range(256)]
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")

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
        options: `stream_options` of a stream that the gateway asks for usage; otherwise None.
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

    def asks_for_usage(self, stream_usage: StreamUsage) -> bool:
        """Whether the gateway asks the stream for its usage (B16)."""
        return self.options is not None and stream_usage is not StreamUsage.NEVER

    @property
    def length(self) -> int:
        """The size in bytes."""
        return len(self.raw)

    def text_only(self) -> bool:
        """Whether the model's input is only text in the body."""
        return is_text_only(self.raw, self.fields)

    def rewritten(
        self,
        served_name: str,
        stream_usage: StreamUsage = StreamUsage.LAST_EVENT,
        max_output: int | None = None,
    ) -> bytes:
        """The body for the upstream: `model` is the served name, and a stream reports its usage (B16).

        Args:
            stream_usage: `streamUsage` of the Model; Never keeps `stream_options` as the caller sent them.
            max_output: a bound on each answer, if the caller set none.
        """
        fields: dict[str, Any] = {**self.fields, "model": served_name}
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
    """Parse a body.

    Raises:
        Denied: it is not JSON in UTF-8, not an object, nested beyond MAX_DEPTH or too complex; a key
            is duplicated or differs in case from a governed key; `model` is missing; a field that the gateway
            reads has a wrong type, or asks for an unsupported feature.
    """
    fields = _object(body, "The body")
    _check_nesting(body)
    model = _model(fields)
    stream = _read(_FLAG, fields, "stream", "true or false") or False
    inputs = _inputs(endpoint, fields)
    for name, reason in endpoint.refused:
        if name in fields and bytes(fields[name]) not in _ABSENT:
            raise Denied(400, "not_offered", f"Field {name} is not supported: {reason}")
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
    )


def _object(text: bytes | msgspec.Raw, what: str) -> Fields:
    """The fields of an object as they were written, each key once."""
    try:
        if isinstance(text, bytes):
            text.decode()
        _KEYS.left = MAX_KEYS
        entries = _OBJECT.decode(text)
    except msgspec.ValidationError:
        raise Denied(400, "invalid_type", f"{what} is not a JSON object") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Denied(400, "invalid_json", f"{what} is not JSON: {error}") from None
    except UnicodeDecodeError as error:
        message = f"{what} is not UTF-8: byte {error.start}"
        raise Denied(400, "invalid_utf8", message) from None
    fields: Fields = {}
    for key, value in entries.items():
        name = str(key)
        if name in fields:
            raise Denied(400, "duplicate_key", f"{what} has a duplicate key {name!r}")
        if name not in GOVERNED and name.casefold() in GOVERNED:
            raise Denied(400, "ambiguous_key", f"{what} has the key {name!r}. Write {name.casefold()!r}")
        fields[name] = value
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
    if given.count(b'"') > 2 * MAX_PIECES:
        raise Denied(400, "too_complex", f"Field {name} has more than {MAX_PIECES} strings")
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


def _check_nesting(body: bytes) -> None:
    """Refuse JSON that is nested beyond MAX_DEPTH, or has more pieces than can be counted quickly.

    Every step is a single scan in C, so that one call cannot delay the others.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if body.count(b'"') > 2 * MAX_PIECES:
        raise Denied(400, "too_complex", f"The body has more than {MAX_PIECES} strings")
    brackets = b"".join(body.split(b'"')[::2]).translate(None, _NO_BRACKETS)
    if len(brackets) > 2 * MAX_PIECES:
        raise Denied(400, "too_complex", f"The body has more than {MAX_PIECES} lists and objects")
    if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise Denied(400, "nested_too_deeply", f"The body is nested more than {MAX_DEPTH} levels deep")
