"""Properties of `decide_service` for any facts: it is a function, it converges, and it never guesses."""

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from farebox.api import BillingMode, ConditionStatus, ConditionType, Phase, StopReason
from farebox.domain.billing.money import Nano
from farebox.domain.facts import MISSING, UNKNOWN, AccountFacts, Facts, Previous
from farebox.domain.lifecycle import decide_service
from tests.domain.build import EARLIER, NOW, condition, is_true, remembered
from tests.domain.strategies import BRANCHING, THOROUGH, any_facts, resolutions
from tests.domain.test_lifecycle_table import NEVER_TOGETHER

# Includes statuses that another writer wrote: the operator must handle them.
times = st.sampled_from((None, NOW - timedelta(days=30), EARLIER))
anything_before = st.builds(
    Previous,
    phase=st.one_of(st.none(), st.sampled_from(Phase)),
    billing_mode=st.sampled_from(BillingMode),
    stop_reasons=st.lists(st.sampled_from(StopReason), unique=True, max_size=3).map(tuple),
    enabled_at=times,
    first_running_at=times,
)
whatever = any_facts(unknown=True, history=anything_before)


@THOROUGH
@given(whatever)
def test_the_same_facts_give_the_same_verdict(facts: Facts) -> None:
    assert decide_service(facts, NOW) == decide_service(replace(facts), NOW)


@THOROUGH
@given(whatever)
def test_b20_a_verdict_on_the_same_facts_is_final(facts: Facts) -> None:
    """The second reconcile has nothing to write, now and later."""
    first = decide_service(facts, NOW)
    again = replace(facts, previous=remembered(first))
    assert decide_service(again, NOW) == first


@THOROUGH
@given(whatever, st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=400)))
def test_until_a_verdict_is_due_time_alone_changes_nothing(facts: Facts, passed: timedelta) -> None:
    first = decide_service(facts, NOW)
    again = replace(facts, previous=remembered(first))
    then = NOW + passed
    if first.due is not None:
        assert first.due > NOW
        then = min(then, first.due - timedelta(microseconds=1))
    assert decide_service(again, then) == first


@THOROUGH
@given(whatever)
def test_a_reason_to_stop_and_wanting_to_run_exclude_each_other(facts: Facts) -> None:
    verdict = decide_service(facts, NOW)
    assert not (verdict.stop_reasons and verdict.wanted)
    if verdict.decided:
        assert bool(verdict.stop_reasons) is not verdict.wanted
        assert verdict.wanted is remembered(verdict).wanted


@THOROUGH
@given(whatever)
def test_phase_agrees_with_reasons(facts: Facts) -> None:
    verdict = decide_service(facts, NOW)
    if not verdict.decided:
        return
    match verdict.phase:
        case Phase.NOT_ENABLED:
            assert verdict.stop_reasons == (StopReason.POSTPAID_DISABLED,)
            assert verdict.enabled_at is None
        case Phase.CREATING:
            assert (verdict.stop_reasons, verdict.first_running_at) == ((), None)
        case Phase.RUNNING:
            assert verdict.stop_reasons == ()
            assert verdict.first_running_at is not None
        case Phase.STOPPED if not verdict.stop_reasons:
            assert verdict.first_running_at is not None
            assert not is_true(verdict, ConditionType.SERVING)
        case Phase.STOPPED:
            assert not verdict.wanted
        case None:
            raise AssertionError("decided without a phase")


@THOROUGH
@given(whatever)
def test_first_times_are_set_once(facts: Facts) -> None:
    verdict = decide_service(facts, NOW)
    before = facts.previous
    assert verdict.enabled_at == before.enabled_at or (before.enabled_at, verdict.enabled_at) == (None, NOW)
    assert verdict.first_running_at == before.first_running_at or (
        (before.first_running_at, verdict.first_running_at) == (None, NOW)
    )


@THOROUGH
@given(whatever)
def test_conditions_follow_the_kstatus_rules(facts: Facts) -> None:
    verdict = decide_service(facts, NOW)
    assert [c.type for c in verdict.conditions] == [
        ConditionType.READY,
        ConditionType.RECONCILING,
        ConditionType.STALLED,
        ConditionType.SERVING,
    ]
    busy = is_true(verdict, ConditionType.RECONCILING)
    stuck = is_true(verdict, ConditionType.STALLED)
    assert not (busy and stuck)
    assert is_true(verdict, ConditionType.READY) is not (busy or stuck)
    for said in verdict.conditions:
        # An abnormal condition that is False has no message.
        silent = said.type in (ConditionType.RECONCILING, ConditionType.STALLED) and (
            said.status is ConditionStatus.FALSE
        )
        assert silent is (said.message == "")


@THOROUGH
@given(whatever)
def test_calls_are_accepted_only_by_a_running_service(facts: Facts) -> None:
    verdict = decide_service(facts, NOW)
    if is_true(verdict, ConditionType.SERVING):
        assert (verdict.phase, verdict.wanted, verdict.stop_reasons) == (Phase.RUNNING, True, ())


@THOROUGH
@given(any_facts(unknown=False))
def test_known_facts_decide_whatever_the_previous_state(facts: Facts) -> None:
    """History decides only between Creating, Resuming and Running, never whether the service runs."""
    verdict = decide_service(facts, NOW)
    fresh = decide_service(replace(facts, previous=Previous()), NOW)
    assert verdict.decided
    assert (verdict.wanted, verdict.stop_reasons, verdict.billing_mode) == (
        (fresh.wanted, fresh.stop_reasons, fresh.billing_mode)
    )
    assert not [pair for pair in NEVER_TOGETHER if pair <= set(verdict.stop_reasons)]


@BRANCHING
@given(any_facts(unknown=True))
def test_an_unknown_fact_neither_starts_nor_stops(facts: Facts) -> None:
    """The service keeps running or stopped, unless every value of the unknown facts gives the same result."""
    verdict = decide_service(facts, NOW)
    outcomes = {decide_service(resolution, NOW).wanted for resolution in resolutions(facts)}
    assert verdict.wanted is facts.previous.wanted or outcomes == {verdict.wanted}


@BRANCHING
@given(any_facts(unknown=True))
def test_an_unknown_fact_changes_no_reason(facts: Facts) -> None:
    """Each reason is known or unchanged. An undecided service is unchanged in everything."""
    verdict = decide_service(facts, NOW)
    before = facts.previous
    if not verdict.decided:
        held = remembered(verdict)
        assert replace(held, enabled_at=before.enabled_at) == before
        return
    outcomes = [set(decide_service(resolution, NOW).stop_reasons) for resolution in resolutions(facts)]
    for reason in StopReason:
        holds = {reason in outcome for outcome in outcomes}
        expected = holds.pop() if len(holds) == 1 else reason in before.stop_reasons
        assert (reason in verdict.stop_reasons) is expected, reason


@BRANCHING
@given(any_facts(unknown=True))
def test_an_unknown_fact_changes_no_phase(facts: Facts) -> None:
    verdict = decide_service(facts, NOW)
    before = facts.previous
    outcomes = {decide_service(resolution, NOW).phase for resolution in resolutions(facts)}
    if verdict.phase is before.phase or outcomes == {verdict.phase}:
        return
    # The remaining changes come from known facts: the backend started or ended, or a stopped Default service
    # was never enabled, so it is NotEnabled until another reason is known.
    both_up = before.wanted and verdict.wanted
    both_off = not before.wanted and not verdict.wanted
    assert both_up or (both_off and StopReason.POSTPAID_DISABLED in verdict.stop_reasons)


@THOROUGH
@given(any_facts(unknown=True))
def test_an_unknown_backend_is_no_more_than_an_absent_one(facts: Facts) -> None:
    unseen = decide_service(replace(facts, backend=UNKNOWN), NOW)
    absent = decide_service(replace(facts, backend=MISSING), NOW)
    assert (unseen.phase, unseen.wanted) == (absent.phase, absent.wanted)
    assert unseen.stop_reasons == absent.stop_reasons


@THOROUGH
@given(any_facts(unknown=True))
def test_a_changing_balance_changes_no_message(facts: Facts) -> None:
    """Otherwise each call would write the status of every service on the account."""
    account = facts.account
    if not isinstance(account, AccountFacts):
        return
    for one, other in ((-5, -7_000_000_000), (1, 7_000_000_000)):
        moved = [replace(facts, account=replace(account, available=Nano(left))) for left in (one, other)]
        assert decide_service(moved[0], NOW) == decide_service(moved[1], NOW)


@THOROUGH
@given(any_facts(unknown=False))
def test_serving_says_why_not(facts: Facts) -> None:
    verdict = decide_service(facts, NOW)
    serving = condition(verdict, ConditionType.SERVING)
    if verdict.stop_reasons:
        assert serving.reason == verdict.stop_reasons[0]
