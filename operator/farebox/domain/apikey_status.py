"""The state of an APIKey, and the format of a new key. Pure: the caller passes random bytes and API answers.

The operator creates a key with three writes: the hash into the status, then the Secret, then the Secret's
name into the status (docs/decisions/006). The hash alone is useless before the Secret exists.
"""

import base64
import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

from farebox.api import ConditionType
from farebox.domain.conditions import ConditionVerdict, false, kstatus, true

RANDOM_BYTES: Final = 32
_PREFIX_CHARACTERS: Final = 8
_SETTLING: Final = timedelta(seconds=30)
"""For this long a new key may still find the Secret of a deleted key of the same name."""
_SOON: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Credential:
    """A key with its hash and its first characters. Its repr never shows the token."""

    token: str = field(repr=False)
    hash: str
    prefix: str


def new_credential(random: bytes) -> Credential:
    """A key from 32 random bytes: `fbx_` and 43 characters of URL-safe base64."""
    assert len(random) == RANDOM_BYTES, "a key needs 256 random bits"
    token = "fbx_" + base64.urlsafe_b64encode(random).rstrip(b"=").decode()
    return Credential(token, hash_of(token), token[:_PREFIX_CHARACTERS])


def hash_of(token: str) -> str:
    """The SHA-256 that the status keeps. A key has 256 random bits, so the hash needs no salt."""
    return hashlib.sha256(token.encode()).hexdigest()


class SecretOutcome(Enum):
    """The API server's answer to the creation of a Secret."""

    CREATED = "Created"
    EXISTS = "Exists"
    REFUSED = "Refused"
    """A final rejection, such as by a quota. The Secret was not created."""


@dataclass(frozen=True, slots=True)
class SecretWriteResult:
    """The API server's answer, with its message if it rejected the Secret."""

    outcome: SecretOutcome
    message: str = ""


@dataclass(frozen=True, slots=True)
class APIKeyFacts:
    """An APIKey: its spec, and how far the operator has created the key.

    Args:
        secret: name of the Secret with the key.
        secret_exists: the status names the Secret, so the Secret exists.
        creation_confirmed: the API server confirmed that this operator created it.
        failure: the answer to the last attempt, if it created no Secret.
    """

    created: datetime
    secret: str
    secret_exists: bool
    creation_confirmed: bool
    disabled: bool
    expires_at: datetime | None
    failure: SecretWriteResult | None = None


@dataclass(frozen=True, slots=True)
class APIKeyVerdict:
    """The conditions, and when to reconcile at the latest (None: only when something else changes)."""

    conditions: tuple[ConditionVerdict, ...]
    due: datetime | None = None


def is_own_secret(recorded: bool, probe: SecretWriteResult) -> bool:
    """Whether an existing Secret is the key's own, from an attempt whose answer was lost.

    The operator records a hash only after it saw that the name was free. So a Secret of that name that
    exists later is the one that it sent. Without a recorded hash the Secret is foreign and never used.
    """
    return recorded and probe.outcome is SecretOutcome.EXISTS


def decide_apikey(facts: APIKeyFacts, now: datetime) -> APIKeyVerdict:
    """The conditions of a key. A disabled or expired key matches its spec, so it is Ready."""
    if not facts.secret_exists:
        return _without_secret(facts, now)
    where = f"The key is in Secret {facts.secret}, under api-key"
    if not facts.creation_confirmed:
        where = (
            f"The operator was interrupted while it created Secret {facts.secret} and found it later. The"
            " Secret has the key if the SHA-256 of its api-key is status.keyHash. If not, delete the Secret"
            " and the APIKey, and create the APIKey again"
        )
    if facts.disabled:
        return _ready("Disabled", "Calls with the key are refused while spec.disabled is true")
    if facts.expires_at is None:
        return _ready("Active", where)
    if facts.expires_at <= now:
        return _ready("Expired", "Calls with the key are refused: spec.expiresAt has passed")
    return _ready("Active", where, facts.expires_at)


def _ready(reason: str, message: str, due: datetime | None = None) -> APIKeyVerdict:
    return APIKeyVerdict(kstatus(true(ConditionType.READY, reason, message)), due)


def _without_secret(facts: APIKeyFacts, now: datetime) -> APIKeyVerdict:
    if facts.failure is None:
        ready = false(ConditionType.READY, "MakingKey", f"Secret {facts.secret} is being created")
        return APIKeyVerdict(kstatus(ready, reconciling="MakingKey"))
    if facts.failure.outcome is SecretOutcome.REFUSED:
        message = f"Secret {facts.secret} was refused: {facts.failure.message}"
        return APIKeyVerdict(
            kstatus(false(ConditionType.READY, "SecretRefused", message), stalled="SecretRefused")
        )
    message = (
        f"Secret {facts.secret} exists but does not belong to this APIKey, so it is neither used nor changed."
        " Delete it, and the key is created within a minute, or create an APIKey with another name"
    )
    ready = false(ConditionType.READY, "SecretExists", message)
    if now - facts.created < _SETTLING:
        return APIKeyVerdict(kstatus(ready, reconciling="SecretExists"), now + _SOON)
    return APIKeyVerdict(kstatus(ready, stalled="SecretExists"))
