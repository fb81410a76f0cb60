"""The line that Envoy writes about each call: what `usage` reads."""

from pathlib import Path

from farebox.gateway.envoy.parts import TYPES, Json
from farebox.gateway.envoy.usage_filter import NAMESPACE
from farebox.gateway.ext_proc import messages


def access_log(log_file: Path) -> Json:
    """A line for each call that was forwarded. The keys are sorted, "at" is first: `usage` relies on that."""
    labels = {"filter": messages.LABELS, "path": [{"key": "labels"}], "value": {"present_match": True}}
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
                    "flags": "%RESPONSE_FLAGS%",
                    "id": "%REQ(X-REQUEST-ID)%",
                    "labels": f"%DYNAMIC_METADATA({messages.LABELS}:labels)%",
                    "ms": "%DURATION%",
                    "sent": "%BYTES_SENT%",
                    "status": "%RESPONSE_CODE%",
                    "upstream": "%UPSTREAM_WIRE_BYTES_SENT%",
                    "usage": f"%DYNAMIC_METADATA({NAMESPACE})%",
                }
            },
        },
    }
