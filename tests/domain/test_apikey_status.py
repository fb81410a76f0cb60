"""API keys: their format, the ownership of an existing Secret, and the conditions (B14, B20)."""

import hashlib
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.api import ConditionStatus, ConditionType
from farebox.domain.apikey_status import (
    RANDOM_BYTES,
    APIKeyFacts,
    APIKeyVerdict,
    SecretOutcome,
    SecretWriteResult,
    decide_apikey,
    hash_of,
    is_own_secret,
    new_credential,
)

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
MADE = APIKeyFacts(
    created=NOW - timedelta(days=1),
    secret="app",
    secret_exists=True,
    creation_confirmed=True,
    disabled=False,
    expires_at=None,
)


def facts(**changes: object) -> APIKeyFacts:
    return APIKeyFacts(**{name: getattr(MADE, name) for name in MADE.__slots__} | changes)  # type: ignore[arg-type]


def true_conditions(verdict: APIKeyVerdict) -> dict[str, str]:
    """Every condition that is True, with its reason, and always Ready."""
    return {
        condition.type.value: condition.reason
        for condition in verdict.conditions
        if condition.status is ConditionStatus.TRUE or condition.type is ConditionType.READY
    }


@given(st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES))
def test_a_key_needs_no_quoting_and_only_its_hash_and_prefix_are_shown(random: bytes) -> None:
    made = new_credential(random)
    assert re.fullmatch(r"fbx_[A-Za-z0-9_-]{43}", made.token)
    assert made.hash == hash_of(made.token) == hashlib.sha256(made.token.encode()).hexdigest()
    assert made.prefix == made.token[:8]
    assert made.token not in repr(made)


def test_a_key_needs_256_random_bits() -> None:
    with pytest.raises(AssertionError, match="256 random bits"):
        new_credential(b"1234")


@pytest.mark.parametrize("outcome", SecretOutcome)
@pytest.mark.parametrize("recorded", [True, False])
def test_b20_only_a_secret_created_after_the_hash_is_the_keys_own(
    recorded: bool, outcome: SecretOutcome
) -> None:
    assert is_own_secret(recorded, SecretWriteResult(outcome)) is (
        recorded and outcome is SecretOutcome.EXISTS
    )


@pytest.mark.parametrize(
    ("changes", "reason", "due"),
    [
        ({}, "Active", None),
        ({"disabled": True}, "Disabled", None),
        ({"expires_at": NOW}, "Expired", None),
        ({"expires_at": NOW - timedelta(days=9)}, "Expired", None),
        ({"expires_at": NOW + timedelta(seconds=5)}, "Active", NOW + timedelta(seconds=5)),
        ({"expires_at": NOW - timedelta(days=9), "disabled": True}, "Disabled", None),
    ],
    ids=["active", "disabled", "expires now", "expired", "will expire", "disabled and expired"],
)
def test_b14_a_key_is_ready_in_every_state_that_its_owner_wants(
    changes: dict[str, object], reason: str, due: datetime | None
) -> None:
    verdict = decide_apikey(facts(**changes), NOW)
    assert true_conditions(verdict) == {"Ready": reason}
    assert verdict.conditions[0].status is ConditionStatus.TRUE
    assert verdict.due == due


def test_b20_the_condition_says_that_a_secret_was_found_later() -> None:
    message = decide_apikey(facts(creation_confirmed=False), NOW).conditions[0].message
    assert "status.keyHash" in message
    assert "create the APIKey again" in message


def test_a_key_without_its_secret_is_reconciling() -> None:
    verdict = decide_apikey(facts(secret_exists=False, creation_confirmed=False), NOW)
    assert true_conditions(verdict) == {"Ready": "MakingKey", "Reconciling": "MakingKey"}


@pytest.mark.parametrize(
    ("age", "beside", "again"), [(0, "Reconciling", True), (29, "Reconciling", True), (30, "Stalled", False)]
)
def test_a_foreign_secret_stalls_the_key_only_after_30_seconds(age: int, beside: str, again: bool) -> None:
    failure = SecretWriteResult(SecretOutcome.EXISTS, "already exists")
    created = NOW - timedelta(seconds=age)
    verdict = decide_apikey(facts(secret_exists=False, created=created, failure=failure), NOW)
    assert true_conditions(verdict) == {"Ready": "SecretExists", beside: "SecretExists"}
    assert verdict.due == (NOW + timedelta(seconds=1) if again else None)
    assert "Delete it" in verdict.conditions[0].message


def test_a_rejection_is_reported_with_the_api_servers_message() -> None:
    failure = SecretWriteResult(SecretOutcome.REFUSED, "exceeded quota: few")
    verdict = decide_apikey(facts(secret_exists=False, failure=failure), NOW)
    assert true_conditions(verdict) == {"Ready": "SecretRefused", "Stalled": "SecretRefused"}
    assert "exceeded quota: few" in verdict.conditions[0].message
