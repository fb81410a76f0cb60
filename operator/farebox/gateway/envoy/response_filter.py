"""Envoy's filter of answers: headers, errors, usage, and text that no usage covers yet.

The filter is a script in Envoy, because answers pass through Envoy only. It is in four files;
`response_filter.lua` has the entry. It copies usage verbatim and counts text; `metering.usage` interprets
both. The gateway asks every stream for its usage (B16), in every event if the upstream supports it. A caller
that did not ask must not see it: many clients read `choices[0]` of every event, which a usage event does not
have. Others add up the usage of all events.

What is the provider's or the operator's own does not pass (B29): headers that are not in an allow list, and
errors about credentials, money or limits of the operator, which are replaced by errors of the gateway.
"""

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Final

from farebox.domain.billing.estimates import WEIGHTS
from farebox.gateway.envoy import Json, http_filter
from farebox.gateway.ext_proc import messages
from farebox.gateway.metering.dialects import ANSWER_FIELDS, DIALECTS, USAGE_OBJECTS, Dialect

NAMESPACE: Final = "farebox.usage"
"""The dynamic metadata of the script, for `metering.usage`. All values are texts:

    first     the usage that begins a stream of Anthropic's, a JSON object
    last      the usage that the upstream reported last
    final     the same, if it covers the whole answer
    choices   "SEEN INPUT OUTPUT": the sum of what was reported for single answers of a call
    content   "PIECES MILLITOKENS IMAGES": text after the last usage (`farebox.domain.billing.estimates`)
    impossible "1": usage with more output than the answer can have was left out (B30)
    failed    the answer is an error, or ends in one: "1" after some text, "0" before any
    shape     "other": neither JSON nor a stream of events; "encoded": in an encoding that is not read
    error     the beginning of an answer that is an error by its status
"""
LOCAL_REPLY_HEADER: Final = f"{messages.PRIVATE_PREFIX}local-reply"
"""Marks Envoy's own replies to a call that was forwarded."""
ALLOWED_HEADERS: Final = (
    ":status",
    "content-type",
    "content-length",
    "content-encoding",
    "content-language",
    "cache-control",
    "date",
    "retry-after",
    "transfer-encoding",
    "vary",
    "x-accel-buffering",
    "x-should-retry",
)
"""The headers of an upstream that callers see. Others may identify the operator at the provider, set cookies
or redirect clients."""
_SCRIPT: Final = "".join(
    files("farebox.gateway.envoy").joinpath(name).read_text(encoding="utf-8")
    for name in ("json_reader.lua", "text_counter.lua", "usage_reader.lua", "response_filter.lua")
)
_REFUSED: Final = (
    "The provider of the model refused the gateway's credentials or account. "
    "Contact the cluster administrator"
)
_ERRORS: Final = {
    "refused": (502, "upstream_error", "api_error", "provider_refused", _REFUSED),
    "redirected": (
        *(502, "upstream_error", "api_error", "upstream_redirect"),
        "The model backend answered with a redirect. Contact the cluster administrator",
    ),
    "limited": (
        *(0, "rate_limit_error", "rate_limit_error", "upstream_rate_limited"),
        "The model backend accepts no more calls at the moment. Retry later",
    ),
    "rejected": (
        *(0, "invalid_request_error", "invalid_request_error", "upstream_rejected"),
        "The model backend rejected the request without a readable reason. "
        "Check the fields of the request and the size of its content",
    ),
    "failed": (
        *(0, "upstream_error", "api_error", "upstream_failed"),
        "The model backend failed to answer the call. Retry later",
    ),
}
"""Errors that replace those of an upstream: status (0: unchanged), type, Anthropic's type, code, message."""


_KEYS: Final = (
    *("sk-", "rk-", "pk-", "key-", "org-", "proj_", "gsk_", "xai-", "pplx-", "hf_", "nvapi-", "fw_", "pa-"),
    *(
        "csk-",
        "ghp_",
        "tgp_",
        "jina_",
        "or-",
        "apikey-",
        "token-",
        "AKIA-",
        "dop_",
        "glpat-",
        "secret_",
        "sess-",
    ),
)
"""The beginnings of keys, and of the names of organizations and projects."""


def script(allowed_headers: Sequence[str] = ()) -> str:
    """The script.

    Args:
        allowed_headers: names that pass besides ALLOWED_HEADERS.
    """
    errors = ", ".join(f"{name} = {_error(*error)}" for name, error in _ERRORS.items())
    dialects = ", ".join(f"{name} = {_dialect(dialect)}" for name, dialect in DIALECTS.items())
    return (
        f'RULES, USAGE, LOCAL_REPLY = "{messages.ANSWER}", "{NAMESPACE}", "{LOCAL_REPLY_HEADER}"\n'
        f"ALLOWED = {_set(name.lower() for name in (*ALLOWED_HEADERS, *allowed_headers))}\n"
        f"ERRORS = {{ {errors} }}\n"
        f"KEYS = {_set(_KEYS)}\n"
        f"DIALECTS = {{ {dialects} }}\n"
        f"WEIGHTS = {{ {', '.join(f'{name} = {weight}' for name, weight in WEIGHTS.items())} }}\n"
        f"WITHIN = {_set(USAGE_OBJECTS)}\nANSWERS = {_set(ANSWER_FIELDS)}\n{_SCRIPT}"
    )


def _set(names: Iterable[str]) -> str:
    """Names as a table of Lua whose values are true."""
    return f"{{ {', '.join(f'[{json.dumps(name)}] = true' for name in names)} }}"


def _dialect(dialect: Dialect) -> str:
    """A dialect as a table of Lua: fields without their first quotes, as they are searched for."""
    text, document = (
        ", ".join(f"'{name}\"'" for name in names) for names in (dialect.text, dialect.document_text)
    )
    return f'{{ text = {{ {text} }}, document_text = {{ {document} }}, final = "{dialect.final}" }}'


def _error(status: int, type_: str, messages_type: str, code: str, message: str) -> str:
    """An error as a table of Lua, with bodies in OpenAI's and Anthropic's formats."""
    rest = {"code": code, "message": message, "source": "upstream", "request_id": "REQUEST_ID"}
    other = json.dumps({"error": {"type": type_, **rest}})
    in_messages = json.dumps({"type": "error", "error": {"type": messages_type, **rest}})
    return f"{{ status = {status}, other = [==[{other}]==], messages = [==[{in_messages}]==] }}"


def response_filter(allowed_headers: Sequence[str] = ()) -> Json:
    """The filter."""
    source = {"inline_string": script(allowed_headers)}
    return http_filter("lua", "lua.v3.Lua", {"default_source_code": source})


def decompressors() -> list[Json]:
    """Filters that decompress answers. Some upstreams compress although nobody accepts it."""
    gzip = {"window_bits": 15, "max_inflate_ratio": 1032}
    return [
        _decompressor("gzip", "Gzip", gzip),
        _decompressor("brotli", "Brotli", {}),
        _decompressor("zstd", "Zstd", {}),
    ]


def _decompressor(name: str, message: str, config: Json) -> Json:
    library = {
        "name": name,
        "typed_config": {
            "@type": f"type.googleapis.com/envoy.extensions.compression.{name}.decompressor.v3.{message}",
            **config,
        },
    }
    off = {"enabled": {"default_value": False, "runtime_key": "farebox.never"}}
    return http_filter(
        "decompressor",
        "decompressor.v3.Decompressor",
        {
            "decompressor_library": library,
            "request_direction_config": {"common_config": off, "advertise_accept_encoding": False},
            "response_direction_config": {"common_config": {"ignore_no_transform_header": True}},
        },
    )
