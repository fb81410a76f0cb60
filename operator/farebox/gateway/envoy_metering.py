"""How Envoy reads the usage of an answer, and the line that it writes about each call."""

from pathlib import Path
from typing import Final

from farebox.gateway import extproc
from farebox.gateway.envoy_parts import FILTERS, TYPES, Json, http_filter

_MOST_INSPECTED: Final = 10 * 2**20
"""Bytes of an answer, or of one event of a stream, that are read for their usage: as many as Envoy allows."""


_FIELDS: Final = {
    "input": ("usage", "prompt_tokens"),
    "output": ("usage", "completion_tokens"),
    "cached": ("usage", "prompt_tokens_details", "cached_tokens"),
}
"""Where each event has its usage, by the names that `usage` reads."""

_RECORD: Final = "metadata.typed_filter_metadata['envoy.ai.token_usage']"
"""What the filter says of an answer that came to its end (envoy.data.ai.v3.TokenUsage)."""
_JSON_TYPE: Final = {"regex": "application/json.*"}
_ASKED: Final[Json] = {
    "single_predicate": {
        "input": {
            "name": "request-headers",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
                "header_name": extproc.USAGE_HEADER,
            },
        },
        "value_match": {"exact": extproc.EACH_EVENT},
    }
}


def usage_filters() -> list[Json]:
    """One reads the usage of an answer that comes to its end; the others take its place where each event of a
    stream has the usage so far, so that it is known when the client leaves.

    A call never has both: reading events is most of what a stream costs Envoy. The last filter is for an
    upstream that was asked for a stream and answers with JSON.
    """
    parser = {"@type": f"{TYPES}content_parsers.json.v3.JsonContentParser", "rules": _sse_rules()}
    events = {
        "content_parser": {"name": "envoy.content_parsers.json", "typed_config": parser},
        "max_event_size": 64 * 1024,
    }
    return [
        _unless(
            _ASKED,
            http_filter(
                "ai_protocol_manager",
                "ai_protocol_manager.v3.AiProtocolManager",
                {"response_handling": {"token_usage": {"limits": _limits()}}},
            ),
        ),
        _unless(
            {"not_matcher": _ASKED},
            http_filter("sse_to_metadata", "sse_to_metadata.v3.SseToMetadata", {"response_rules": events}),
        ),
        _unless(
            {"not_matcher": _ASKED},
            http_filter(
                "json_to_metadata",
                "json_to_metadata.v3.JsonToMetadata",
                {"response_rules": {"rules": _json_rules(), "allow_content_types_regex": _JSON_TYPE}},
            ),
        ),
    ]


def _limits() -> Json:
    return {
        "max_sse_event_size": _MOST_INSPECTED,
        "max_json_body_size": _MOST_INSPECTED,
        "max_parsed_sse_events": 2**31,
    }


def _json_rules() -> list[Json]:
    return [
        {
            "selectors": [{"key": key} for key in path],
            "on_present": {"metadata_namespace": extproc.EACH_EVENT, "key": name, "type": "NUMBER"},
        }
        for name, path in _FIELDS.items()
    ]


def _sse_rules() -> list[Json]:
    return [{"rule": rule} for rule in _json_rules()]


def _unless(predicate: Json, inner: Json) -> Json:
    """The filter, but not for calls for which the predicate holds."""
    skip = {"@type": f"{FILTERS.removesuffix('http.')}common.matcher.action.v3.SkipFilter"}
    matcher = {"predicate": predicate, "on_match": {"action": {"name": "skip", "typed_config": skip}}}
    return {
        "name": inner["name"],
        "typed_config": {
            "@type": f"{TYPES}common.matching.v3.ExtensionWithMatcher",
            "extension_config": inner,
            "xds_matcher": {"matcher_list": {"matchers": [matcher]}},
        },
    }


def access_log(log_file: Path) -> Json:
    """A line for each call that was forwarded. The keys are sorted, "at" is first: `usage` relies on that."""
    labels = {"filter": extproc.LABELS, "path": [{"key": "labels"}], "value": {"present_match": True}}
    return {
        "name": "envoy.access_loggers.file",
        "filter": {"metadata_filter": {"matcher": labels, "match_if_key_not_found": False}},
        "typed_config": {
            "@type": f"{TYPES}access_loggers.file.v3.FileAccessLog",
            "path": str(log_file),
            "log_format": {
                "json_format": {
                    "at": "%EMIT_TIME(%s.%6f)%",
                    "details": "%RESPONSE_CODE_DETAILS%",
                    "each": f"%DYNAMIC_METADATA({extproc.EACH_EVENT})%",
                    "flags": "%RESPONSE_FLAGS%",
                    "id": "%REQ(X-REQUEST-ID)%",
                    "labels": f"%DYNAMIC_METADATA({extproc.LABELS}:labels)%",
                    "ms": "%DURATION%",
                    "sent": "%BYTES_SENT%",
                    "status": "%RESPONSE_CODE%",
                    "upstream": "%UPSTREAM_WIRE_BYTES_SENT%",
                    "usage": _usage(),
                }
            },
        },
    }


def _usage() -> Json:
    """Each value by itself: to write the whole record as JSON costs Envoy twice as much.

    An expression says 0 for what is not there. Of the input alone it matters which of them is meant (`used`).
    """
    return {
        "extraction_status": f"%CEL({_RECORD}.extraction_status)%",
        "input_token_details": {"cached_tokens": f"%CEL({_RECORD}.input_token_details.cached_tokens)%"},
        "input_tokens": f"%CEL(has({_RECORD}.input_tokens) ? {_RECORD}.input_tokens : 'unknown')%",
        "output_tokens": f"%CEL({_RECORD}.output_tokens)%",
    }
