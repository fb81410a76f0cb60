"""One pass over an APIKey: its Secret made once, and what became of it reported (B14, B20).

The order of the writes, and why the operator need not read Secrets for it, is in docs/decisions/006. A key
exists in the memory of one pass and in the Secret, and nowhere else: no log, no Event, no status has it.
"""

import secrets
from datetime import datetime

from farebox.api import APIKey, APIKeyStatus
from farebox.controller.queue import Key, Priority
from farebox.controller.reconcile.context import Context
from farebox.controller.reconcile.resources import api_key_secret
from farebox.controller.reconcile.status import conditions
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
    """Make the Secret of a key that has none, and report the key's state. Safe to repeat (B20)."""
    apikey = context.cache.apikeys.get(key.object)
    if apikey is None:
        context.forget(key)
        return
    status = apikey.status
    if status.secret_name is not None:
        await _report(context, key, priority, apikey, status)
    elif status.key_hash is not None and status.key_hash in context.secrets_made:
        await _delivered(context, key, priority, apikey, context.secrets_made[status.key_hash])
    elif apikey.metadata.deletion_timestamp is None:
        await _make(context, key, priority, apikey)


async def _make(context: Context, key: Key, priority: Priority, apikey: APIKey) -> None:
    """Make the Secret of a key, or find that the last attempt did.

    Raises:
        Conflict, KubeUnreachable and others: the pass is done again, from what the status says by then.
    """
    drawn = new_credential(secrets.token_bytes(RANDOM_BYTES))
    secret = api_key_secret(apikey, drawn.token)
    probe = await context.writer.probe_secret(secret, priority)
    if is_own_secret(apikey.status.key_hash is not None, probe):
        await _delivered(context, key, priority, apikey, None)
        return
    if probe.outcome is not SecretOutcome.CREATED:
        # What is recorded stays: a quota says no before the API server looks whether the Secret is there.
        await _hindered(context, key, priority, apikey, apikey.status, probe)
        return
    recorded = await _record(context, key, priority, apikey, drawn)
    if recorded is None:
        return
    answer = await context.writer.create_secret(secret, priority)
    if answer.outcome is SecretOutcome.CREATED:
        context.secrets_made[drawn.hash] = made_at = context.now()
        await _delivered(context, key, priority, recorded, made_at)
        return
    # Certainly not made: a hash that stayed would make somebody else's Secret pass for the key's own.
    withdrawn = recorded.status.model_copy(update={"key_hash": None, "prefix": None})
    await _hindered(context, key, priority, recorded, withdrawn, answer)


async def _record(
    context: Context, key: Key, priority: Priority, apikey: APIKey, drawn: Credential
) -> APIKey | None:
    """The object with the hash of what is about to be sent; None if it was deleted meanwhile."""
    status = apikey.status.model_copy(update={"key_hash": drawn.hash, "prefix": drawn.prefix})
    await _report(context, key, priority, apikey, status)
    recorded = context.cache.apikeys.get(key.object)
    return recorded if recorded is not None and recorded.status.key_hash == drawn.hash else None


async def _delivered(
    context: Context, key: Key, priority: Priority, apikey: APIKey, made_at: datetime | None
) -> None:
    """The Secret is there; `made_at` is None where that was found out later."""
    status = apikey.status.model_copy(update={"secret_name": apikey.name, "created_at": made_at})
    await _report(context, key, priority, apikey, status)
    context.secrets_made.pop(status.key_hash or "", None)
    if made_at is None:
        note = f"Secret {apikey.name} was made by an operator that ended before it could say so"
        context.recorder.event(apikey, "Normal", "SecretFound", "Find", note)
    else:
        note = f"the key is in Secret {apikey.name}, under api-key"
        context.recorder.event(apikey, "Normal", "SecretMade", "Make", note)


async def _hindered(
    context: Context,
    key: Key,
    priority: Priority,
    apikey: APIKey,
    status: APIKeyStatus,
    answer: SecretWriteResult,
) -> None:
    """There is no Secret, and the owner has to do something about it."""
    verdict = await _report(context, key, priority, apikey, status, answer)
    context.recorder.standstill(apikey, apikey.status, verdict.conditions, "Make")


async def _report(
    context: Context,
    key: Key,
    priority: Priority,
    apikey: APIKey,
    status: APIKeyStatus,
    obstacle: SecretWriteResult | None = None,
) -> APIKeyVerdict:
    """Write a status with its conditions, and see to the next look."""
    now, generation = context.now(), apikey.metadata.generation
    facts = APIKeyFacts(
        created=apikey.metadata.creation_timestamp,
        secret=apikey.name,
        secret_exists=status.secret_name is not None,
        creation_confirmed=status.created_at is not None,
        disabled=apikey.spec.disabled,
        expires_at=apikey.spec.expires_at,
        failure=obstacle,
    )
    verdict = decide_apikey(facts, now)
    reported = status.model_copy(
        update={
            "observed_generation": generation,
            "conditions": conditions(apikey.status, verdict.conditions, generation, now),
        }
    )
    await context.write_status(key, priority, apikey, apikey.status, reported)
    context.requeue_after(key, verdict.due)
    return verdict
