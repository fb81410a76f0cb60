"""A change queues what depends on it and nothing else, and many keys as bulk work."""

from typing import Any

import pytest

from farebox.controller.queue import (
    Key,
    Kind,
    Priority,
    account_key,
    apikey_key,
    model_key,
    service_key,
    topup_key,
)
from farebox.controller.sources.mapping import (
    FEW,
    orphans,
    requests_for,
    requests_for_balance,
    requests_for_quota,
)
from farebox.controller.state.cache import Cache
from farebox.domain.keys import ObjectKey
from farebox.kube.names import dedicated_backend_name, shared_backend_name
from farebox.kube.store import Change
from tests.controller import objects
from tests.controller.objects import BACKENDS, TEAM, JSONObject

CHAT, ACME = service_key(ObjectKey(TEAM, "chat")), account_key(ObjectKey(TEAM, "acme"))
OTHER = account_key(ObjectKey(TEAM, "other"))
MODEL = model_key("qwen3-8b")
JULY = topup_key(ObjectKey(TEAM, "july"))


@pytest.fixture
def cache() -> Cache:
    """A model, two accounts in a namespace, a top-up, a shared service."""
    made = Cache()
    made.models.put(objects.model())
    made.accounts.put(objects.account("acme"))
    made.accounts.put(objects.account("other"))
    made.topups.put(objects.topup("july"))
    made.services.put(objects.service("chat"))
    made.namespaces.put(objects.namespace(TEAM))
    return made


def after(cache: Cache, change: Change[Any] | None) -> dict[Key, Priority]:
    """Who is concerned, and in which priority; nothing of it waits."""
    assert change is not None
    return {work.key: work.priority for work in requests_for(cache, change) if not work.delay}


def edited(raw: JSONObject) -> JSONObject:
    """The next version of an object, with another spec."""
    metadata = raw["metadata"]
    version, generation = int(metadata["resourceVersion"]) + 1, metadata["generation"] + 1
    return raw | {"metadata": metadata | {"resourceVersion": str(version), "generation": generation}}


# -- services -----------------------------------------------------------------------------------------


def test_an_edit_of_a_service_concerns_the_service(cache: Cache) -> None:
    assert after(cache, cache.services.put(edited(objects.service("chat")))) == {CHAT: Priority.HIGH}


def test_a_status_write_concerns_the_counts_alone(cache: Cache) -> None:
    change = cache.services.put(objects.service("chat", 2, status={"phase": "Running"}))
    assert change is not None
    (work,) = set(requests_for(cache, change))
    assert (work.key, work.priority) == (ACME, Priority.LOW)
    assert work.delay > 0, "a thousand of them make one pass"
    again = cache.services.put(objects.service("chat", 3, status={"phase": "Running", "replicas": 1}))
    assert after(cache, again) == {}


@pytest.mark.parametrize("meta", [{"labels": {"a": "b"}}, {"annotations": {"a": "b"}}, {"uid": "another"}])
def test_labels_annotations_and_another_uid_are_edits(cache: Cache, meta: JSONObject) -> None:
    assert CHAT in after(cache, cache.services.put(objects.service("chat", 2, **meta)))


def test_a_new_or_deleted_service_concerns_its_model_and_every_account_beside_it(cache: Cache) -> None:
    key = ObjectKey(TEAM, "new")
    expected = {service_key(key): Priority.HIGH, MODEL: Priority.LOW, ACME: Priority.LOW, OTHER: Priority.LOW}
    assert after(cache, cache.services.put(objects.service("new", 5))) == expected
    assert after(cache, cache.services.remove(key, 6)) == expected


def test_a_service_recreated_on_another_model_concerns_both_models(cache: Cache) -> None:
    """A watch that missed events reports a deletion and the creation after it as one change (B11)."""
    again = objects.service("chat", 2, spec={"modelRef": {"name": "other"}}, uid="another")
    expected = {
        CHAT: Priority.HIGH,
        MODEL: Priority.LOW,
        model_key("other"): Priority.LOW,
        ACME: Priority.LOW,
        OTHER: Priority.LOW,
    }
    assert after(cache, cache.services.put(again)) == expected


def test_a_recreated_account_concerns_its_siblings(cache: Cache) -> None:
    """It is younger than before, and no longer the one with the Default services, perhaps (B1)."""
    assert OTHER in after(cache, cache.accounts.put(objects.account("acme", 2, uid="another")))


# -- models, accounts, top-ups, keys ------------------------------------------------------------------


def test_an_edit_of_a_model_concerns_its_services_and_all_accounts(cache: Cache) -> None:
    assert set(after(cache, cache.models.put(edited(objects.model())))) == {MODEL, CHAT, ACME, OTHER}
    assert (
        after(cache, cache.models.put(objects.model(version=3, generation=2, status={"replicas": 1}))) == {}
    )


def test_an_edit_of_an_account_concerns_its_services_and_top_ups(cache: Cache) -> None:
    change = cache.accounts.put(edited(objects.account("acme")))
    assert after(cache, change) == {ACME: Priority.HIGH, CHAT: Priority.HIGH, JULY: Priority.HIGH}
    status = {"balance": "1.00"}
    assert after(cache, cache.accounts.put(objects.account("acme", 3, generation=2, status=status))) == {}


def test_a_new_account_concerns_its_siblings_and_what_waits_for_it(cache: Cache) -> None:
    cache.accounts.remove(ACME.object, 2)
    change = cache.accounts.put(objects.account("acme", 3))
    assert set(after(cache, change)) == {ACME, CHAT, JULY, OTHER}


def test_a_top_up_with_a_receipt_concerns_nothing(cache: Cache) -> None:
    assert after(cache, cache.topups.put(objects.topup("july", 2))) == {JULY: Priority.HIGH}
    assert after(cache, cache.topups.put(objects.topup("july", 3, status={"phase": "Posted"}))) == {}
    assert after(cache, cache.topups.remove(JULY.object, 4)) == {JULY: Priority.LOW}


def test_an_edit_of_a_key_concerns_the_key(cache: Cache) -> None:
    app = apikey_key(ObjectKey(TEAM, "app"))
    assert after(cache, cache.apikeys.put(objects.apikey("app"))) == {app: Priority.HIGH}
    assert after(cache, cache.apikeys.put(objects.apikey("app", 2, status={"hash": "x"}))) == {}


def test_new_labels_of_a_namespace_concern_its_services(cache: Cache) -> None:
    assert after(cache, cache.namespaces.put(objects.namespace(TEAM, 2))) == {}
    assert after(cache, cache.namespaces.put(objects.namespace(TEAM, 3, team="acme"))) == {
        CHAT: Priority.HIGH
    }


# -- backends -----------------------------------------------------------------------------------------


def test_a_dedicated_backend_concerns_its_service_in_the_slow_lane(cache: Cache) -> None:
    assert after(cache, cache.backends.put(objects.dedicated("chat"))) == {CHAT: Priority.LOW}
    key = next(iter(cache.backends))
    assert after(cache, cache.backends.remove(key, 2)) == {CHAT: Priority.LOW}


def test_a_shared_backend_concerns_its_model_and_the_shared_services_on_it(cache: Cache) -> None:
    cache.services.put(objects.service("own", 1, {"dedicated": True}))
    name = shared_backend_name("qwen3-8b")
    assert set(after(cache, cache.backends.put(objects.shared(name, "qwen3-8b", 1)))) == {MODEL, CHAT}
    same = cache.backends.put(objects.shared(name, "qwen3-8b", 2))
    assert after(cache, same) == {}, "nothing that anybody looks at"
    assert set(after(cache, cache.backends.put(objects.shared(name, "qwen3-8b", 3, ready=0)))) == {
        MODEL,
        CHAT,
    }


def test_a_deleted_endpoint_concerns_the_owner_of_its_deployment(cache: Cache) -> None:
    deployment = objects.dedicated("chat")
    cache.backends.put(deployment)
    metadata = deployment["metadata"]
    there = cache.endpoints.put(objects.endpoint(metadata["name"], 1, metadata["annotations"]))
    assert after(cache, there) == {}
    key = ObjectKey(BACKENDS, metadata["name"])
    assert after(cache, cache.endpoints.remove(key, 2)) == {CHAT: Priority.LOW}


def test_backends_without_their_owner_queue_the_key_that_deletes_them(cache: Cache) -> None:
    gone = ObjectKey(TEAM, "gone")
    orphan = cache.backends.put(objects.dedicated("gone"))
    assert orphan is not None
    assert [work.key for work in orphans(cache, orphan.new)] == [service_key(gone)]
    left = cache.endpoints.put(
        objects.endpoint(
            dedicated_backend_name(gone), 1, objects.dedicated("gone")["metadata"]["annotations"]
        )
    )
    assert after(cache, left) == {service_key(gone): Priority.LOW}
    shared = cache.backends.put(objects.shared(shared_backend_name("old"), "old"))
    assert shared is not None
    assert [work.key for work in orphans(cache, shared.new)] == [model_key("old")]
    owned = cache.backends.put(objects.shared(shared_backend_name("qwen3-8b"), "qwen3-8b"))
    assert owned is not None
    assert list(orphans(cache, owned.new)) == []


# -- crowds, balances and quotas ----------------------------------------------------------------------


@pytest.mark.parametrize(("count", "priority"), [(FEW, Priority.HIGH), (FEW + 1, Priority.LOW)])
def test_a_crowd_goes_into_the_slow_lane_and_its_account_does_not(count: int, priority: Priority) -> None:
    cache = Cache()
    for number in range(count):
        cache.services.put(objects.service(f"s{number}"))
    works = list(requests_for_balance(cache, ACME.object))
    assert (works[0].key, works[0].priority) == (ACME, Priority.HIGH)
    assert {work.priority for work in works[1:]} == {priority}
    assert len(works) == count + 1


def test_a_quota_concerns_the_accounts_services_on_that_model(cache: Cache) -> None:
    cache.services.put(objects.service("elsewhere", 1, {"modelRef": {"name": "other"}}))
    cache.services.put(objects.service("others", 1, {"billingAccountRef": {"name": "other"}}))
    (turned,) = requests_for_quota(cache, ACME.object, "qwen3-8b", 0.0)
    assert (turned.key, turned.priority, turned.delay) == (CHAT, Priority.HIGH, 0.0)
    (moved,) = requests_for_quota(cache, ACME.object, "qwen3-8b", 7.0)
    assert (moved.key, moved.priority, moved.delay) == (CHAT, Priority.LOW, 7.0)


def test_every_kind_can_change(cache: Cache) -> None:
    for kind in Kind:
        change: Change[Any] = Change(kind, ObjectKey("", "x"), None, None)
        assert isinstance(after(cache, change), dict)
