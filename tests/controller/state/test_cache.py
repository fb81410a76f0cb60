"""The cache: the newest version wins, whatever its source; the indexes always match the objects."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.api import InferenceService
from farebox.controller.queue import Kind
from farebox.controller.state.cache import Cache, account_of, is_farebox_backend, model_of
from farebox.domain.keys import ObjectKey
from tests.controller import objects
from tests.controller.objects import BACKENDS, TEAM
from tests.domain.strategies import THOROUGH

CHAT = ObjectKey(TEAM, "chat")
ACME = ObjectKey(TEAM, "acme")


def replicas(cache: Cache) -> int:
    found = cache.services.get(CHAT)
    assert found is not None
    return found.spec.replicas


def sized(version: int, count: int) -> dict[str, Any]:
    return objects.service("chat", version, {"dedicated": True, "replicas": count})


def test_an_older_version_changes_nothing() -> None:
    cache = Cache()
    assert cache.services.put(sized(7, 3)) is not None
    assert cache.services.put(sized(6, 1)) is None
    assert cache.services.put(sized(7, 1)) is None, "nor does the same"
    assert replicas(cache) == 3
    change = cache.services.put(sized(8, 4))
    assert change is not None
    assert (change.old is not None, change.key, cache.services.version(CHAT)) == (True, CHAT, 8)
    assert replicas(cache) == 4


def test_versions_are_numbers_not_texts() -> None:
    cache = Cache()
    cache.services.put(sized(9, 1))
    assert cache.services.put(sized(10, 2)) is not None


def test_a_deleted_object_does_not_return_with_an_old_version() -> None:
    cache = Cache()
    cache.services.put(sized(5, 1))
    assert cache.services.remove(CHAT, 8) is not None
    assert cache.services.put(sized(7, 1)) is None, "a write's answer that was overtaken"
    assert CHAT not in cache.services
    assert cache.services.put(sized(9, 1)) is not None, "recreated"


def test_the_deletion_of_an_unknown_object_counts_too() -> None:
    cache = Cache()
    assert cache.services.remove(CHAT, 8) is None
    assert cache.services.put(sized(7, 1)) is None
    cache.services.forget_deletions(9)
    assert cache.services.put(sized(7, 1)) is not None, "a list that is older cannot arrive any more"


def test_a_late_deletion_does_not_remove_a_recreated_object() -> None:
    cache = Cache()
    cache.services.put(sized(9, 2))
    assert cache.services.remove(CHAT, 8) is None
    assert replicas(cache) == 2


def test_an_assumed_object_stays_until_a_newer_version_arrives() -> None:
    cache = Cache()
    cache.backends.put(objects.dedicated("chat", 5, replicas=2, ready=2))
    key = next(iter(cache.backends))
    backend = cache.backends.get(key)
    assert backend is not None
    assert cache.backends.assume(key, backend.scaled(0, "6"), 6) is not None
    assumed = cache.backends.get(key)
    assert assumed is not None
    assert (assumed.facts.desired, assumed.facts.ready, assumed.facts.current) == (0, 2, False)
    assert cache.backends.put(objects.dedicated("chat", 5, replicas=2, ready=2)) is None
    assert cache.backends.assume(key, backend, 6) is None
    assert cache.backends.assume(ObjectKey(BACKENDS, "gone"), backend, 7) is None


def test_an_unreadable_object_delays_no_other() -> None:
    cache = Cache()
    broken = objects.service("broken", 3, {"modelRef": 5})
    assert cache.services.put(broken) is None
    assert cache.services.put(sized(4, 1)) is not None
    assert len(cache.services) == 1


@pytest.mark.parametrize(
    ("selector", "ours"), [({"farebox.dev/backend": "m-x"}, True), ({"app": "x"}, False)]
)
def test_a_backend_is_known_by_its_selector(selector: dict[str, str], ours: bool) -> None:
    assert is_farebox_backend({"metadata": {}, "spec": {"selector": {"matchLabels": selector}}}) is ours
    assert is_farebox_backend({"metadata": {}, "spec": {"selector": selector}}) is ours
    assert not is_farebox_backend({"metadata": {}, "spec": {}})


def test_an_edited_annotation_gives_a_backend_no_other_owner() -> None:
    cache = Cache()
    raw = objects.dedicated("chat")
    raw["metadata"]["annotations"]["farebox.dev/service-name"] = "other"
    cache.backends.put(raw)
    assert cache.backends_of_service.of(ObjectKey(TEAM, "other")) == frozenset()
    assert cache.backends_of_service.of(CHAT) == frozenset()


def test_a_stuck_rollout_is_read_with_its_sentence() -> None:
    raw = objects.dedicated("chat")
    raw["status"]["conditions"] = [
        {"type": "Available", "status": "False", "message": "not this"},
        {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"},
    ]
    cache = Cache()
    change = cache.backends.put(raw)
    assert change is not None
    assert change.new is not None
    assert change.new.facts.failure == "exceeded quota"


NAMES = st.sampled_from(("a", "b"))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), NAMES, NAMES, NAMES, st.booleans(), st.integers(1, 30)),
        st.tuples(st.just("remove"), NAMES, st.integers(1, 30)),
    ),
    max_size=25,
)


@THOROUGH
@given(STEPS)
def test_indexes_say_what_the_objects_say(steps: list[Any]) -> None:
    cache = Cache()
    for step in steps:
        if step[0] == "remove":
            cache.services.remove(ObjectKey(TEAM, step[1]), step[2])
            continue
        _, name, account, model, default, version = step
        spec = {"billingAccountRef": {"name": account}, "modelRef": {"name": model}}
        cache.services.put(
            objects.service(name, version, spec | {"type": "Default" if default else "Custom"})
        )
    held = dict(cache.services.items())
    for name in ("a", "b"):
        account, model = ObjectKey(TEAM, name), ObjectKey("", name)
        on_account = {key for key, found in held.items() if account_of(found) == account}
        assert cache.services_of_account.of(account) == on_account
        assert cache.services_of_account.count(account) == len(on_account)
        assert cache.services_of_model.of(model) == {
            k for k, found in held.items() if model_of(found) == model
        }
        assert cache.defaults_of_account.of(account) == {key for key in on_account if held[key].is_default}
    assert cache.services_in_namespace.of(ObjectKey("", TEAM)) == set(held)


def test_accounts_and_topups_are_indexed_by_where_they_belong() -> None:
    cache = Cache()
    cache.accounts.put(objects.account("acme", 1))
    cache.accounts.put(objects.account("acme", 2))
    cache.topups.put(objects.topup("july", 1))
    here, july = ObjectKey("", TEAM), ObjectKey(TEAM, "july")
    assert cache.accounts_in_namespace.of(here) == {ACME}
    assert cache.topups_of_account.of(ACME) == {july}
    cache.accounts.remove(ACME, 3)
    cache.topups.remove(july, 3)
    assert cache.accounts_in_namespace.of(here) == cache.topups_of_account.of(ACME) == frozenset()


def test_every_kind_has_its_store() -> None:
    cache = Cache()
    assert [cache.store(kind).kind for kind in Kind] == list(Kind)


def test_objects_are_kept_small_and_are_what_they_were() -> None:
    cache = Cache()
    for name in ("chat", "code"):
        cache.services.put(objects.service(name))
    chat, code = (cache.services.get(ObjectKey(TEAM, name)) for name in ("chat", "code"))
    assert chat is not None
    assert code is not None
    assert chat.spec.limits.model_fields_set is code.spec.limits.model_fields_set
    plain = InferenceService.model_validate(objects.service("chat"))
    assert chat == plain
    assert chat.model_dump(exclude_unset=True) == plain.model_dump(exclude_unset=True)
