"""Envoy's CORS filter: web pages of configured origins may call the gateway. Without origins it is absent.

It answers preflight requests itself, before any decision, and adds its headers to all answers of such pages.
Keys travel in headers and never in cookies, so credentials in the sense of CORS are not allowed.
"""

from collections.abc import Sequence
from typing import Final

from farebox.gateway.envoy import TYPES, Json, http_filter

_NAME: Final = "cors"
_ALLOWED_HEADERS: Final = (
    "accept, authorization, content-type, x-api-key, api-key, anthropic-version, anthropic-beta, "
    "anthropic-dangerous-direct-browser-access, openai-beta, openai-organization, openai-project, "
    "x-requested-with, traceparent, tracestate, "
    "x-stainless-arch, x-stainless-helper-method, x-stainless-lang, x-stainless-os, "
    "x-stainless-package-version, x-stainless-poll-helper, x-stainless-retry-count, x-stainless-runtime, "
    "x-stainless-runtime-version, x-stainless-timeout, x-stainless-async, x-stainless-helper"
)
"""Those of the official clients in a browser, although not all of them reach an upstream."""
_EXPOSED_HEADERS: Final = (
    "x-request-id, retry-after, x-should-retry, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
    "x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, "
    "x-ratelimit-reset-tokens"
)


def cors_filters(origins: Sequence[str]) -> list[Json]:
    """The filter, if there are origins."""
    return [http_filter(_NAME, "cors.v3.Cors", {})] if origins else []


def cors_policy(origins: Sequence[str]) -> Json:
    """The fields of a virtual host that configure the filter; "*" allows all origins."""
    if not origins:
        return {}
    matchers = [{"safe_regex": {"regex": ".*"}} if origin == "*" else {"exact": origin} for origin in origins]
    policy = {
        "@type": f"{TYPES}filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": matchers,
        "allow_methods": "GET, POST, OPTIONS",
        "allow_headers": _ALLOWED_HEADERS,
        "expose_headers": _EXPOSED_HEADERS,
        "max_age": "600",
    }
    return {"typed_per_filter_config": {http_filter(_NAME, "", {})["name"]: policy}}
