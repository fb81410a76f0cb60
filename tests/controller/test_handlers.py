"""Kopf's handlers: every kind that Kopf watches has one, and `kopf run` names what to run instead."""

import subprocess
import sys
from pathlib import Path

import kopf
import pytest

from farebox.api import GROUP, KINDS, VERSION
from farebox.controller import handlers
from farebox.controller.queue import Kind
from farebox.controller.sources.kopf_session import KopfSession
from farebox.controller.sources.resync import BACKEND_KINDS, Resync
from farebox.controller.state.cache import Cache
from farebox.kube.client import KubeClient
from farebox.kube.store import Change
from tests.api.samples import changed
from tests.controller import objects
from tests.controller.objects import BACKENDS
from tests.kube.server import Server

HANDLERS = {
    Kind.SERVICE: (handlers.inferenceservice, objects.service("chat")),
    Kind.MODEL: (handlers.model, objects.model()),
    Kind.ACCOUNT: (handlers.billingaccount, objects.account()),
    Kind.NAMESPACE: (handlers.namespace, objects.namespace("team-a")),
}


def test_every_kind_but_those_of_the_backends_has_a_handler() -> None:
    registry = kopf.get_default_registry()
    watched = {str(handler.selector) for handler in registry._watching.get_all_handlers()}
    expected = {f"{info.plural}.{VERSION}.{GROUP}" for info in KINDS.values()} | {"namespaces.v1"}
    assert len(watched) == len(expected) == len(Kind) - len(BACKEND_KINDS), watched


@pytest.mark.parametrize("kind", HANDLERS)
async def test_an_event_reaches_the_cache_and_is_reported(
    server: Server, client: KubeClient, kind: Kind
) -> None:
    """Kopf's first list has events without a type."""
    handler, raw = HANDLERS[kind]
    cache, changes = Cache(), list[Change[object]]()
    resync = Resync(client, cache, BACKENDS, changes.append)
    memo = kopf.Memo(session=KopfSession(client, resync.reflectors))
    deleted = changed(raw, {"metadata": {"resourceVersion": "1000"}})
    await handler(event={"type": None, "object": raw}, memo=memo)
    assert len(cache.store(kind)) == 1
    await handler(event={"type": "DELETED", "object": deleted}, memo=memo)
    assert len(cache.store(kind)) == 0
    assert [(change.kind, change.new is None) for change in changes] == [(kind, False), (kind, True)]


@pytest.mark.parametrize("arguments", [["-m", handlers.__name__], [str(Path(handlers.__file__))]])
def test_kopf_run_refuses_and_names_what_to_run_instead(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "kopf", "run", "--all-namespaces", "--standalone", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "Run instead: farebox operator" in ended.stdout + ended.stderr
