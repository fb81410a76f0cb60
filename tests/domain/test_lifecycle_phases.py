"""`decide_service` from phase to phase: first enable, stop and resume, replicas, external models (B1-B5)."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from farebox.api import BillingMode, ConditionType, Phase, ServiceType, StopReason
from farebox.domain.facts import EXTERNAL, MISSING, UNKNOWN, Previous
from farebox.domain.lifecycle import decide_service, desired_replicas
from tests.domain.build import (
    CREATING,
    EARLIER,
    EMPTY,
    GOOD_ACCOUNT,
    GOOD_MODEL,
    MODEL,
    NEVER,
    NOT_ENABLED,
    NOW,
    POOR_ACCOUNT,
    READY,
    RESUMING,
    RUNNING,
    STARTING,
    condition,
    facts,
    remembered,
    said,
    stopped,
)

R = StopReason


def test_b2_first_enable_goes_from_not_enabled_over_creating_to_running() -> None:
    default: dict[str, Any] = {"type": ServiceType.DEFAULT, "dedicated": False, "replicas": 1}
    fresh = decide_service(facts(**default, postpaid=False, previous=NEVER, backend=MISSING), NOW)
    assert (fresh.phase, fresh.billing_mode, fresh.wanted) == (Phase.NOT_ENABLED, BillingMode.NONE, False)
    assert (fresh.enabled_at, fresh.first_running_at) == (None, None)
    assert said(fresh)["Ready"] == "True NotEnabled"
    enabled = decide_service(facts(**default, previous=remembered(fresh), backend=MISSING), NOW)
    assert (enabled.phase, enabled.wanted, enabled.enabled_at) == (Phase.CREATING, True, NOW)
    assert enabled.billing_mode is BillingMode.PAY_AS_YOU_GO
    assert said(enabled)["Reconciling"] == "True Creating"
    later = NOW + timedelta(seconds=5)
    running = decide_service(facts(**default, previous=remembered(enabled), backend=READY), later)
    assert (running.phase, running.enabled_at, running.first_running_at) == (Phase.RUNNING, NOW, later)
    assert said(running)["Serving"] == "True Serving"


@pytest.mark.parametrize("ready", [0, 1])
def test_one_ready_replica_serves(ready: int) -> None:
    verdict = decide_service(facts(previous=CREATING, backend=replace(STARTING, ready=ready)), NOW)
    assert verdict.phase is (Phase.RUNNING if ready else Phase.CREATING)
    assert said(verdict)["Ready"] == ("False Progressing" if ready else "False Creating")


def test_b3_overdue_and_back_runs_through_resuming() -> None:
    overdue = decide_service(facts(account=POOR_ACCOUNT), NOW)
    assert (overdue.phase, overdue.stop_reasons) == (Phase.STOPPED, (R.OVERDUE,))
    assert overdue.billing_mode is BillingMode.PAY_AS_YOU_GO
    resuming = decide_service(facts(previous=remembered(overdue), backend=EMPTY), NOW)
    assert (resuming.phase, resuming.stop_reasons, resuming.wanted) == (Phase.STOPPED, (), True)
    still = decide_service(facts(previous=remembered(resuming), backend=STARTING), NOW)
    assert said(still)["Reconciling"] == "True Resuming"
    running = decide_service(facts(previous=remembered(still), backend=READY), NOW)
    assert (running.phase, running.first_running_at) == (Phase.RUNNING, EARLIER)


def test_a_resumed_service_whose_backend_still_runs_serves_at_once() -> None:
    assert decide_service(facts(previous=stopped(R.OVERDUE), backend=READY), NOW).phase is Phase.RUNNING


def test_a_stop_before_the_first_ready_returns_to_creating() -> None:
    overdue = decide_service(facts(account=POOR_ACCOUNT, previous=CREATING, backend=STARTING), NOW)
    assert (overdue.phase, overdue.first_running_at) == (Phase.STOPPED, None)
    again = decide_service(facts(previous=remembered(overdue), backend=EMPTY), NOW)
    assert (again.phase, again.wanted) == (Phase.CREATING, True)


def test_a_new_service_on_an_overdue_account_waits_for_the_first_top_up() -> None:
    verdict = decide_service(facts(account=POOR_ACCOUNT, previous=NEVER, backend=MISSING), NOW)
    assert (verdict.phase, verdict.stop_reasons, verdict.enabled_at) == (Phase.STOPPED, (R.OVERDUE,), NOW)
    assert decide_service(facts(previous=remembered(verdict), backend=MISSING), NOW).phase is Phase.CREATING


@pytest.mark.parametrize("topped_up_first", [True, False])
def test_b4_no_top_up_starts_a_service_that_its_owner_disabled(topped_up_first: bool) -> None:
    """Disable, overdue and top-up in every order; re-enabling while overdue stays stopped."""
    overdue = remembered(decide_service(facts(account=POOR_ACCOUNT), NOW))
    account = GOOD_ACCOUNT if topped_up_first else POOR_ACCOUNT
    disabled = decide_service(facts(account=account, postpaid=False, previous=overdue, backend=EMPTY), NOW)
    assert (disabled.phase, disabled.stop_reasons) == (Phase.STOPPED, (R.POSTPAID_DISABLED,))
    assert disabled.billing_mode is BillingMode.NONE
    topped_up = decide_service(facts(postpaid=False, previous=remembered(disabled), backend=EMPTY), NOW)
    assert (topped_up.phase, topped_up.wanted) == (Phase.STOPPED, False)
    while_overdue = decide_service(
        facts(account=POOR_ACCOUNT, previous=remembered(topped_up), backend=EMPTY), NOW
    )
    assert (while_overdue.phase, while_overdue.stop_reasons) == (Phase.STOPPED, (R.OVERDUE,))
    assert decide_service(facts(previous=remembered(while_overdue), backend=EMPTY), NOW).wanted


def test_a_default_service_that_was_enabled_is_stopped_not_not_enabled() -> None:
    verdict = decide_service(facts(type=ServiceType.DEFAULT, postpaid=False), NOW)
    assert (verdict.phase, verdict.stop_reasons) == (Phase.STOPPED, (R.POSTPAID_DISABLED,))


def test_a_custom_service_never_enabled_is_stopped() -> None:
    verdict = decide_service(facts(postpaid=False, previous=NEVER), NOW)
    assert (verdict.phase, verdict.enabled_at) == (Phase.STOPPED, None)


def test_not_enabled_needs_postpaid_disabled_as_the_only_reason() -> None:
    retired = replace(GOOD_MODEL, retired=True)
    verdict = decide_service(
        facts(type=ServiceType.DEFAULT, postpaid=False, model=retired, previous=NOT_ENABLED), NOW
    )
    assert verdict.phase is Phase.STOPPED
    back = decide_service(facts(type=ServiceType.DEFAULT, postpaid=False, previous=remembered(verdict)), NOW)
    assert back.phase is Phase.NOT_ENABLED


@pytest.mark.parametrize("backend", [STARTING, EMPTY, MISSING, UNKNOWN, replace(STARTING, current=False)])
def test_a_backend_that_fails_later_keeps_running(backend: Any) -> None:
    verdict = decide_service(facts(backend=backend), NOW)
    assert (verdict.phase, verdict.wanted) == (Phase.RUNNING, True)
    assert said(verdict)["Ready"] == "False Progressing"
    assert said(verdict)["Serving"] == "False NoReplicaReady"


def test_a_scale_or_rollout_that_is_not_observed_yet_refuses_no_call() -> None:
    """The gateway reads Serving; pods that were ready stay until newer ones are ready."""
    verdict = decide_service(facts(replicas=3, backend=replace(READY, desired=3, current=False)), NOW)
    assert (verdict.phase, said(verdict)["Serving"]) == (Phase.RUNNING, "True Serving")
    assert said(verdict)["Ready"] == "False Progressing"
    assert condition(verdict, ConditionType.READY).message == "2 of 3 replicas are ready"


@pytest.mark.parametrize("previous", [CREATING, RESUMING, stopped(R.OVERDUE)])
def test_a_resuming_service_does_not_count_pods_of_an_older_specification(previous: Previous) -> None:
    verdict = decide_service(facts(previous=previous, backend=replace(READY, current=False)), NOW)
    assert verdict.phase is not Phase.RUNNING
    assert said(verdict)["Serving"].startswith("False")
    assert condition(verdict, ConditionType.READY).message == "0 of 2 replicas are ready"


def test_a_failed_rollout_is_stalled_with_the_deployments_message() -> None:
    broken = replace(STARTING, failure='ReplicaSet "x" has timed out progressing.')
    verdict = decide_service(facts(backend=broken), NOW)
    assert said(verdict)["Stalled"] == "True BackendFailed"
    assert condition(verdict, ConditionType.READY).message == broken.failure


def test_a_failure_of_an_older_specification_does_not_count() -> None:
    broken = replace(STARTING, failure="timed out", current=False)
    assert said(decide_service(facts(backend=broken), NOW))["Stalled"] == "False NotStalled"


def test_a_backend_that_the_api_server_rejects_is_stalled_and_named() -> None:
    verdict = decide_service(facts(previous=CREATING, backend=MISSING, backend_error="spec.x: no"), NOW)
    assert (verdict.phase, said(verdict)["Stalled"]) == (Phase.CREATING, "True BackendRejected")
    message = condition(verdict, ConditionType.STALLED).message
    assert MODEL in message
    assert "spec.x: no" in message


@pytest.mark.parametrize(("wanted", "replicas", "expected"), [(True, 3, 3), (True, 0, 0), (False, 3, 0)])
def test_replicas_follow_the_spec_while_wanted(wanted: bool, replicas: int, expected: int) -> None:
    assert desired_replicas(wanted, replicas) == expected


@pytest.mark.parametrize("backend", [EMPTY, MISSING])
def test_a_service_scaled_to_zero_is_ready_and_does_not_serve(backend: Any) -> None:
    verdict = decide_service(facts(replicas=0, backend=backend), NOW)
    assert (verdict.phase, verdict.wanted) == (Phase.RUNNING, True)
    assert said(verdict) == {
        "Ready": "True ScaledToZero",
        "Reconciling": "False NotReconciling",
        "Stalled": "False NotStalled",
        "Serving": "False ScaledToZero",
    }


@pytest.mark.parametrize("backend", [EMPTY, MISSING])
def test_a_service_created_with_zero_replicas_is_ready(backend: Any) -> None:
    verdict = decide_service(facts(replicas=0, backend=backend, previous=CREATING), NOW)
    assert (verdict.phase, said(verdict)["Ready"]) == (Phase.CREATING, "True ScaledToZero")
    assert said(verdict)["Serving"] == "False ScaledToZero"


def test_zero_replicas_resume_without_waiting() -> None:
    verdict = decide_service(facts(replicas=0, backend=EMPTY, previous=stopped(R.OVERDUE)), NOW)
    assert (verdict.phase, verdict.wanted) == (Phase.RUNNING, True)


@pytest.mark.parametrize("stray", [replace(READY, replicas=3, updated=2), replace(READY, desired=3)])
def test_a_dedicated_backend_is_ready_only_at_exactly_its_replicas(stray: Any) -> None:
    assert said(decide_service(facts(backend=stray), NOW))["Ready"] == "False Progressing"


def test_a_shared_backend_is_measured_by_its_own_replicas() -> None:
    five = replace(READY, desired=5, replicas=5, ready=5, updated=5)
    verdict = decide_service(facts(dedicated=False, replicas=1, backend=five), NOW)
    assert (said(verdict)["Ready"], said(verdict)["Serving"]) == ("True Running", "True Serving")


def test_a_shared_backend_at_zero_is_not_ready_for_a_service_that_needs_it() -> None:
    verdict = decide_service(facts(dedicated=False, replicas=1, backend=EMPTY, previous=CREATING), NOW)
    assert (verdict.phase, said(verdict)["Ready"]) == (Phase.CREATING, "False Creating")


@pytest.mark.parametrize("previous", [NEVER, CREATING, RUNNING, RESUMING, stopped(R.OVERDUE)])
@pytest.mark.parametrize("dedicated", [True, False])
def test_an_external_model_serves_as_soon_as_no_reason_holds(previous: Previous, dedicated: bool) -> None:
    verdict = decide_service(facts(backend=EXTERNAL, previous=previous, dedicated=dedicated), NOW)
    assert (verdict.phase, verdict.first_running_at) == (Phase.RUNNING, previous.first_running_at or NOW)
    assert (said(verdict)["Ready"], said(verdict)["Serving"]) == ("True External", "True Serving")
    stop = decide_service(facts(backend=EXTERNAL, account=POOR_ACCOUNT), NOW)
    assert (stop.phase, said(stop)["Serving"]) == (Phase.STOPPED, "False Overdue")
