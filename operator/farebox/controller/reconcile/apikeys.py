"""Reconciles an APIKey: creates its Secret once, and reports the result (B14, B20).

docs/decisions/006 explains the order of the writes, and why the operator need not read Secrets. A key exists
in the memory of one reconcile and in the Secret alone: no log line, Event or status contains it.
"""

import secrets
from datetime import datetime

from farebox.api import APIKey, APIKeyStatus
from farebox.controller.queue import Key, Priority
from farebox.controller.reconcile.context import Context
from farebox.controller.reconcile.resources import api_key_secret
from farebox.domain.apikey_status import (
    RANDOM_BYTES,
    APIKeyFacts,
    APIKeyVerdict,
    Credential,
    SecretOutcome,
    SecretWriteResult,
    decide_apikey,
    is_own_secret,
    new_credential,
)


async def reconcile_apikey(context: Context, key: Key, priority: Priority) -> None:
    """Create the Secret of a key without one, and report the key's state. Safe to repeat (B20)."""
    apikey = context.cache.apikeys.get(key.object)
    if apikey is None:
        context.forget(key)
        return
    status = apikey.status
    if status.secret_name is not None:
        await _report(context, key, priority, apikey, status)
    elif status.key_hash is not None and status.key_hash in context.secrets_created:
        await _report_delivered(context, key, priority, apikey, context.secrets_created[status.key_hash])
    elif apikey.metadata.deletion_timestamp is None:
        await _create(context, key, priority, apikey)


async def _create(context: Context, key: Key, priority: Priority, apikey: APIKey) -> None:
    """Create the Secret of a key, or find that an earlier attempt did.

    Raises:
        KubeError, KubeUnreachable: the key is reconciled again, from what its status says then.
    """
    drawn = new_credential(secrets.token_bytes(RANDOM_BYTES))
    secret = api_key_secret(apikey, drawn.token)
    probe = await context.writer.probe_secret(secret, priority)
    if is_own_secret(apikey.status.key_hash is not None, probe):
        await _report_delivered(context, key, priority, apikey, None)
        return
    if probe.outcome is not SecretOutcome.CREATED:
        # The hash stays: a quota refuses before the API server checks whether the Secret exists.
        await _report_obstacle(context, key, priority, apikey, apikey.status, probe)
        return
    recorded = await _record(context, key, priority, apikey, drawn)
    if recorded is None:
        return
    answer = await context.writer.create_secret(secret, priority)
    if answer.outcome is SecretOutcome.CREATED:
        context.secrets_created[drawn.hash] = created_at = context.now()
        await _report_delivered(context, key, priority, recorded, created_at)
        return
    # The Secret was certainly not created. A remaining hash would make a foreign Secret pass for the key's.
    withdrawn = recorded.status.model_copy(update={"key_hash": None, "prefix": None})
    await _report_obstacle(context, key, priority, recorded, withdrawn, answer)


async def _record(
    context: Context, key: Key, priority: Priority, apikey: APIKey, drawn: Credential
) -> APIKey | None:
    """Write the key's hash to the status; returns the updated object, or None if it was deleted meanwhile."""
    status = apikey.status.model_copy(update={"key_hash": drawn.hash, "prefix": drawn.prefix})
    await _report(context, key, priority, apikey, status)
    recorded = context.cache.apikeys.get(key.object)
    return recorded if recorded is not None and recorded.status.key_hash == drawn.hash else None


async def _report_delivered(
    context: Context, key: Key, priority: Priority, apikey: APIKey, created_at: datetime | None
) -> None:
    """Report that the Secret exists; `created_at` is None if an earlier operator created it."""
    status = apikey.status.model_copy(update={"secret_name": apikey.name, "created_at": created_at})
    await _report(context, key, priority, apikey, status)
    context.secrets_created.pop(status.key_hash or "", None)
    if created_at is None:
        note = (
            f"Secret {apikey.name} exists: an earlier operator created it, and ended before it reported that"
        )
        context.recorder.event(apikey, "Normal", "SecretFound", "Find", note)
    else:
        note = f"The key is in Secret {apikey.name}, under api-key"
        context.recorder.event(apikey, "Normal", "SecretMade", "Make", note)


async def _report_obstacle(
    context: Context,
    key: Key,
    priority: Priority,
    apikey: APIKey,
    status: APIKeyStatus,
    answer: SecretWriteResult,
) -> None:
    """Report why there is no Secret, which the owner has to resolve."""
    verdict = await _report(context, key, priority, apikey, status, answer)
    context.recorder.stalled(apikey, verdict.conditions, "Make")


async def _report(
    context: Context,
    key: Key,
    priority: Priority,
    apikey: APIKey,
    status: APIKeyStatus,
    obstacle: SecretWriteResult | None = None,
) -> APIKeyVerdict:
    """Write a status with its conditions, and requeue the key for when they next change."""
    facts = APIKeyFacts(
        created=apikey.metadata.creation_timestamp,
        secret=apikey.name,
        secret_exists=status.secret_name is not None,
        creation_confirmed=status.created_at is not None,
        disabled=apikey.spec.disabled,
        expires_at=apikey.spec.expires_at,
        failure=obstacle,
    )
    verdict = decide_apikey(facts, context.now())
    reported = status.model_copy(
        update={
            "observed_generation": apikey.metadata.generation,
            "conditions": context.conditions(apikey, verdict.conditions),
        }
    )
    await context.write_status(key, priority, apikey, reported)
    context.requeue_after(key, verdict.due)
    return verdict
