"""GET /v1/models and /v1/key: what a key may call, what that costs, and what its limits have left (B31)."""

import json
from datetime import timedelta
from typing import Any

import pytest

from farebox.gateway.interface import ImmediateResponse
from farebox.gateway.lookups.answers import LOOKUPS_PER_MINUTE
from farebox.gateway.lookups.views import price_of_token
from tests.gateway.harness import NOW, UNIT, Harness, account, api_key, model, service

TIERS = [
    {"upToInputTokens": 1000, "input": "0.500", "cachedInput": "0.050", "output": "1.500", "cacheWrite": "2"},
    {"input": "1", "cachedInput": "0.001", "output": "12"},
]
FIRST = {
    "prompt": "0.0000005",
    "completion": "0.0000015",
    "input_cache_read": "0.00000005",
    "input_cache_write": "0.000002",
}
SECOND = {
    "prompt": "0.000001",
    "completion": "0.000012",
    "input_cache_read": "0.000000001",
    "input_cache_write": "0.000001",
}


@pytest.fixture
async def harness() -> Harness:
    return Harness()


async def asked(harness: Harness, path: str, **given: Any) -> tuple[int, Any]:
    """GET a path; its status, and the JSON."""
    found = await harness.decide(harness.head(path, given.pop("method", "GET"), **given), None)
    assert isinstance(found, ImmediateResponse)
    return found.status, json.loads(found.body) if found.body else None


async def test_a_model_says_what_it_can_do_and_costs(harness: Harness) -> None:
    prices = {"currency": "EUR", "tiers": TIERS}
    harness.put(model(limits={"contextTokens": 32768, "maxOutputTokens": 8192}, prices=prices))
    status, found = await asked(harness, "/v1/models/chat")
    assert status == 200
    assert found == {
        "id": "chat",
        "object": "model",
        "created": 0,
        "owned_by": "team-a",
        "active": True,
        "state": "active",
        "reason": None,
        "context_length": 32768,
        "max_output_tokens": 8192,
        "pricing": {
            "currency": "EUR",
            **FIRST,
            "tiers": [
                {"up_to_input_tokens": 1000, **FIRST},
                {"up_to_input_tokens": None, **SECOND},
            ],
        },
    }


@pytest.mark.parametrize("nano", [0, 1, 500, 10**9, 10**12 + 7])
def test_the_price_of_a_token_is_exact_and_has_no_exponent(nano: int) -> None:
    text = price_of_token(nano)
    assert set(text) <= set("0123456789.")
    units, _, decimals = text.partition(".")
    assert int(units) * 10**9 + int(decimals.ljust(9, "0")) == nano


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ([], ("active", None)),
        ([service(postpaid=False)], ("inactive", "POSTPAID_DISABLED")),
        ([model(retired=True)], ("inactive", "MODEL_RETIRED")),
        ([service(modelRef={"name": "gone"})], ("inactive", "MODEL_NOT_FOUND")),
        ([service(status={"phase": "Stopped", "stopReasons": ["Overdue"]})], ("inactive", "OVERDUE")),
        ([service(status={"phase": "Creating"})], ("inactive", "CREATING")),
    ],
)
async def test_the_reason_of_an_inactive_model_is_that_of_the_error(
    harness: Harness, changed: list[Any], state: tuple[str, str | None]
) -> None:
    harness.put(*changed)
    _, found = await asked(harness, "/v1/models/chat")
    assert (found["state"], found["reason"], found["active"]) == (*state, state[1] is None)
    answer = await harness.call()
    if state[1] is not None:
        assert isinstance(answer, ImmediateResponse)
        assert json.loads(answer.body)["error"]["message"] == f"endpoint is inactive: {state[1]}"


async def test_an_overdue_account_makes_its_models_inactive_before_the_operator_does(
    harness: Harness,
) -> None:
    harness.report_balance(0, 2)
    _, found = await asked(harness, "/v1/models/chat")
    assert (found["state"], found["reason"]) == ("inactive", "OVERDUE")
    _, key = await asked(harness, "/v1/key")
    assert key["services"][0]["account"] == "overdue"


async def test_what_is_not_known_is_unknown(harness: Harness) -> None:
    harness.clock.pass_(1000)
    _, found = await asked(harness, "/v1/models/chat")
    assert (found["state"], found["reason"], found["active"]) == ("unknown", "BALANCE_UNKNOWN", True)
    _, key = await asked(harness, "/v1/key")
    assert key["services"][0]["account"] == "unknown"


async def test_a_trailing_slash_is_the_same_path(harness: Harness) -> None:
    for path in ("/v1/models", "/v1/models/chat", "/v1/key"):
        assert await asked(harness, f"{path}/") == await asked(harness, path)


async def test_a_key_says_its_services_and_what_its_limits_have_left(harness: Harness) -> None:
    expires = (NOW + timedelta(days=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
    harness.put(
        service(limits={"rpm": 10, "tpm": 10_000}),
        service("other"),
        service("hidden"),
        service("chat", "team-b"),
        api_key(
            expiresAt=expires,
            services={"names": ["chat", "other", "gone"]},
            quota={"tokens": 5000, "period": "Day"},
        ),
    )
    forward = await harness.forwarded()
    used = int(forward.labels["estimate_input"]) + 100
    status, found = await asked(harness, "/v1/key")
    assert status == 200
    minute, midnight = "2026-03-01T12:01:31Z", "2026-03-02T00:00:00Z"
    assert found == {
        "object": "key",
        "name": "ci",
        "namespace": "team-a",
        "created_at": "1970-01-01T00:00:00Z",
        "expires_at": expires,
        "all_services": False,
        "quota": {
            "dimension": "key_quota_day",
            "limit": 5000,
            "used": used,
            "remaining": 5000 - used,
            "reset_at": midnight,
        },
        "services": [
            {
                "id": "chat",
                "state": "active",
                "reason": None,
                "account": "active",
                "limits": [
                    {"dimension": "rpm", "limit": 10, "used": 1, "remaining": 9, "reset_at": minute},
                    {
                        "dimension": "tpm",
                        "limit": 10_000,
                        "used": used,
                        "remaining": 10_000 - used,
                        "reset_at": minute,
                    },
                ],
            },
            {"id": "other", "state": "active", "reason": None, "account": "active", "limits": []},
        ],
    }
    assert (await asked(harness, "/v1/key"))[1] == found, "asking uses nothing"


async def test_a_key_says_its_reservation(harness: Harness) -> None:
    term = {"start": NOW - timedelta(hours=1), "end": NOW + timedelta(hours=1)}
    status = {
        "phase": "Running",
        "conditions": service()["status"]["conditions"],
        "reservation": {
            "state": "Active",
            "periodStart": term["start"].isoformat(),
            "periodEnd": term["end"].isoformat(),
        },
    }
    reservation = {"inputTPM": 1000, "outputTPM": 500, "days": 30}
    harness.put(service(reservation=reservation, status=status))
    _, found = await asked(harness, "/v1/key")
    limits = found["services"][0]["limits"]
    assert [(each["dimension"], each["limit"]) for each in limits] == [
        ("reservation_input", 1000),
        ("reservation_output", 500),
    ]


async def test_the_balance_is_not_shown(harness: Harness) -> None:
    harness.put(account("Hard"))
    harness.report_balance(1234567 * UNIT, 2)
    for path in ("/v1/key", "/v1/models"):
        assert "1234567" not in json.dumps((await asked(harness, path))[1])


@pytest.mark.parametrize("path", ["/v1/key", "/v1/usage", "/v1/calls", "/v1/calls/r-1", "/v1/models"])
async def test_a_look_up_needs_a_key_and_a_get(harness: Harness, path: str) -> None:
    status, found = await asked(harness, path, headers={"authorization": None})
    assert (status, found["error"]["code"]) == (401, "invalid_api_key")
    answer = await harness.decide(harness.head(path, "POST"), b"{}")
    assert isinstance(answer, ImmediateResponse)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    harness.put(api_key(disabled=True))
    assert (await asked(harness, path))[1]["error"]["code"] == "api_key_disabled"


async def test_head_has_no_body(harness: Harness) -> None:
    for path in ("/v1/key", "/v1/models"):
        assert await asked(harness, path, method="HEAD") == (200, None)


async def test_look_ups_count_on_a_limit_of_their_own(harness: Harness) -> None:
    harness.put(service(limits={"rpm": 1}))
    for left in range(LOOKUPS_PER_MINUTE - 1, -1, -1):
        answer = await harness.decide(harness.head("/v1/key", "GET"), None)
        assert isinstance(answer, ImmediateResponse)
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
    status, found = await asked(harness, "/v1/key")
    assert (status, found["error"]["message"]) == (429, "rate limit exceeded on dimension: lookups")
    assert (await asked(harness, "/v1/models"))[0] == 200
    await harness.forwarded()
