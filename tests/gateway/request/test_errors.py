"""Errors in OpenAI's form, with who has to act (the table of statuses)."""

import json

import pytest

from farebox.domain.admission.types import Denied, LimitRequest, LimitStatus, Window
from farebox.gateway.interface import RequestHead
from farebox.gateway.request.errors import (
    STATUSES,
    denial_response,
    error_body,
    error_response,
    too_large,
)
from farebox.gateway.request.limit_headers import duration, limit_headers

HEAD = RequestHead("POST", "/v1/chat/completions", {}, frozenset(), "10.0.0.7", "req-1")


@pytest.mark.parametrize(
    ("status", "type_", "source"),
    [
        (400, "invalid_request_error", "client"),
        (401, "authentication_error", "client"),
        (402, "permission_error", "gateway"),
        (403, "permission_error", "client"),
        (404, "invalid_request_error", "client"),
        (413, "invalid_request_error", "client"),
        (429, "rate_limit_error", "gateway"),
        (502, "upstream_error", "upstream"),
        (503, "unavailable_error", "gateway"),
        (504, "upstream_error", "upstream"),
    ],
)
def test_the_table_of_statuses(status: int, type_: str, source: str) -> None:
    assert json.loads(error_body(status, "a_code", "a sentence", "req-1")) == {
        "error": {
            "type": type_,
            "code": "a_code",
            "message": "a sentence",
            "source": source,
            "request_id": "req-1",
        }
    }


def test_every_status_has_a_form() -> None:
    for status in STATUSES:
        answer = error_response(status, "c", 'with "quotes" and \n lines', "r")
        assert json.loads(answer.body)["error"]["message"] == 'with "quotes" and \n lines'
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"] == "r"


def test_an_unknown_model_is_a_type_of_its_own() -> None:
    error = json.loads(denial_response(Denied(404, "model_not_found", "m"), "r").body)["error"]
    assert (error["type"], error["code"]) == ("model_not_found", "model_not_found")


def test_a_body_that_is_too_large() -> None:
    answer = too_large(HEAD, 1024)
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["code"], error["request_id"]) == (413, "request_too_large", "req-1")
    assert "1024" in error["message"]


def limit_status(dimension: str, limit: int, used: int, retry: int | None, reset: int | None) -> LimitStatus:
    return LimitStatus(LimitRequest(dimension, dimension, Window.SLIDING, limit, 1), used, retry, reset)


def test_headers_describe_the_limit_that_refused_and_the_tightest_of_the_others() -> None:
    rpm = limit_status("rpm", 60, 10, 0, 30_000)
    tpm = limit_status("tpm", 1000, 1000, 12_001, 61_000)
    day = limit_status("key_quota_day", 5000, 4990, 0, 7_200_000)
    assert limit_headers([rpm, tpm, day], tpm) == {
        "retry-after": "13",
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "50",
        "x-ratelimit-reset-requests": "30s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m1s",
    }
    assert limit_headers([rpm, day], rpm)["x-ratelimit-remaining-tokens"] == "10"


def test_a_limit_that_waiting_does_not_lift_is_not_retried() -> None:
    lifetime = limit_status("key_quota_lifetime", 100, 100, None, None)
    assert limit_headers([lifetime], lifetime) == {
        "x-should-retry": "false",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "0",
    }


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (999, "999ms"),
        (1000, "1s"),
        (1001, "2s"),
        (60_000, "1m0s"),
        (3_600_000, "1h0m0s"),
    ],
)
def test_durations(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text
