"""What an APIKey's state is, and what a new key looks like. Pure: random bytes and answers come from outside.

A key is made in three writes: its hash into the status, the Secret, the Secret's name into the status
(docs/decisions/006). The hash alone opens nothing: nobody has the key before the Secret is there.
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
"""So long after its creation a key may meet the Secret of a deleted one of its name, on its way out."""
_SOON: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Credential:
    """A key, which is shown by no repr, and what of it may be known: its hash and its first characters."""

    token: str = field(repr=False)
    hash: str
    prefix: str


def new_credential(random: bytes) -> Credential:
    """A key of 32 random bytes: `fbx_` and 43 characters that need no quoting anywhere."""
    assert len(random) == RANDOM_BYTES, "a key that can be guessed is none"
    token = "fbx_" + base64.urlsafe_b64encode(random).rstrip(b"=").decode()
    return Credential(token, hash_of(token), token[:_PREFIX_CHARACTERS])


def hash_of(token: str) -> str:
    """What a status keeps of a key. A key is 256 random bits, so its hash needs no salt and no stretching."""
    return hashlib.sha256(token.encode()).hexdigest()


class SecretOutcome(Enum):
    """What the API server said to a new Secret."""

    CREATED = "Created"
    EXISTS = "Exists"
    REFUSED = "Refused"
    """A final no, such as a quota's; the Secret was not made."""


@dataclass(frozen=True, slots=True)
class SecretWriteResult:
    """The API server's answer, with its own words where it said no."""

    outcome: SecretOutcome
    message: str = ""


@dataclass(frozen=True, slots=True)
class APIKeyFacts:
    """An APIKey as its owner wants it, and how far the operator has come.

    Args:
        secret: name of the Secret that has the key, or that shall have it.
        delivered: the Secret is there.
        confirmed: the API server's own answer said so.
        obstacle: why there is no Secret, if the last attempt was told.
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
    """What to report, and when to look again at the latest (None: only when something else changes)."""

    conditions: tuple[ConditionVerdict, ...]
    due: datetime | None = None


def is_own_secret(recorded: bool, probe: SecretWriteResult) -> bool:
    """Whether a Secret that was met is the key's own, from an attempt whose answer was never heard.

    A hash is recorded only after the name was seen to be free, so what has the name since is what was sent
    then. Without a recorded hash it is somebody else's, and never taken for a key.
    """
    return recorded and probe.outcome is SecretOutcome.EXISTS


def decide_apikey(facts: APIKeyFacts, now: datetime) -> APIKeyVerdict:
    """State and conditions of a key. One that is disabled or expired is as its owner asks: Ready."""
    if not facts.secret_exists:
        return _without_secret(facts, now)
    where = f"the key is in Secret {facts.secret}, under api-key"
    if not facts.creation_confirmed:
        where = (
            f"the operator was cut off while it made Secret {facts.secret} and found it there later: it has"
            " the key if the SHA-256 of its api-key is status.keyHash; if not, delete both and create the"
            " APIKey again"
        )
    if facts.disabled:
        return _ready("Disabled", "calls with the key are refused while spec.disabled is true")
    if facts.expires_at is None:
        return _ready("Active", where)
    if facts.expires_at <= now:
        return _ready("Expired", "spec.expiresAt has passed: calls with the key are refused")
    return _ready("Active", where, facts.expires_at)


def _ready(reason: str, message: str, due: datetime | None = None) -> APIKeyVerdict:
    return APIKeyVerdict(kstatus(true(ConditionType.READY, reason, message)), due)


def _without_secret(facts: APIKeyFacts, now: datetime) -> APIKeyVerdict:
    if facts.failure is None:
        ready = false(ConditionType.READY, "MakingKey", f"Secret {facts.secret} is being made")
        return APIKeyVerdict(kstatus(ready, reconciling="MakingKey"))
    if facts.failure.outcome is SecretOutcome.REFUSED:
        message = f"Secret {facts.secret} was refused: {facts.failure.message}"
        return APIKeyVerdict(
            kstatus(false(ConditionType.READY, "SecretRefused", message), stalled="SecretRefused")
        )
    message = (
        f"a Secret {facts.secret} exists that was not made for this APIKey; it is neither used nor changed."
        " Delete it, and the key is made within a minute, or create an APIKey under another name"
    )
    ready = false(ConditionType.READY, "SecretExists", message)
    if now - facts.created < _SETTLING:
        return APIKeyVerdict(kstatus(ready, reconciling="SecretExists"), now + _SOON)
    return APIKeyVerdict(kstatus(ready, stalled="SecretExists"))
