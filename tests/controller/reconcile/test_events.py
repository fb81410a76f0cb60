"""Events: an object that becomes Stalled has one, and every Event is one that the API server accepts."""

from typing import Any

import pytest

from farebox.api import ConditionStatus, ConditionType, InferenceService
from farebox.controller.reconcile.events import Recorder
from farebox.domain.conditions import ConditionVerdict, false, kstatus
from farebox.kube.client import KubeClient
from tests.controller import objects
from tests.kube.server import Server

NOW = "2026-03-01T12:00:00Z"


@pytest.fixture
async def recorder(client: KubeClient) -> Recorder:
    """Sends to `server`."""
    return Recorder(client, "op-1")


def stalled(reason: str) -> tuple[ConditionVerdict, ...]:
    return kstatus(false(ConditionType.READY, reason, f"because of {reason}"), stalled=reason)


def service(name: str = "chat", **condition: Any) -> InferenceService:
    """A service whose status has this Stalled condition, or none."""
    conditions = [{"type": "Stalled", "lastTransitionTime": NOW} | condition] if condition else []
    return InferenceService.model_validate(objects.service(name, status={"conditions": conditions}))


async def sent(recorder: Recorder, server: Server) -> list[dict[str, Any]]:
    await recorder.flush()
    return list(server.objects.values())


@pytest.mark.parametrize(
    ("before", "recorded"),
    [
        ({}, True),
        ({"status": ConditionStatus.FALSE, "reason": "NotStalled"}, True),
        ({"status": ConditionStatus.TRUE, "reason": "BackendFailed"}, True),
        ({"status": ConditionStatus.TRUE, "reason": "BackendRejected"}, False),
    ],
    ids=["new", "went well", "another", "the same"],
)
async def test_a_stalled_object_has_one_event_for_each_reason(
    recorder: Recorder, server: Server, before: dict[str, Any], recorded: bool
) -> None:
    found = service(**before)
    recorder.stalled(found, stalled("BackendRejected"))
    events = await sent(recorder, server)
    expected = [("Warning", "BackendRejected", "because of BackendRejected")] if recorded else []
    assert [(event["type"], event["reason"], event["note"]) for event in events] == expected


async def test_reported_reasons_and_progress_have_no_event(recorder: Recorder, server: Server) -> None:
    found = service()
    recorder.stalled(found, stalled("Overdue"), reported=("Overdue",))
    progress = kstatus(false(ConditionType.READY, "Creating"), reconciling="Creating")
    recorder.stalled(found, progress)
    assert await sent(recorder, server) == []


async def test_an_event_has_a_name_and_a_note_that_the_api_server_takes(
    recorder: Recorder, server: Server
) -> None:
    """At most 1,024 bytes, not characters; and a name that was cut does not end in a sign."""
    recorder.event(service("a" * 199 + ".b"), "Normal", "Serving", "Start", "\N{EURO SIGN}" * 1000)
    (event,) = await sent(recorder, server)
    assert len(event["note"].encode()) == 1023
    stem, _, unique = event["metadata"]["name"].rpartition(".")
    assert (stem, len(unique)) == ("a" * 199, 16)
