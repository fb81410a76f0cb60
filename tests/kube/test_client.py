"""The client: every answer is an object or one of Farebox's errors; it never retries, and its waits end."""

import datetime
import json
import ssl
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import incluster_config

from farebox.domain.keys import ObjectKey
from farebox.errors import (
    ConfigurationError,
    Conflict,
    Forbidden,
    Invalid,
    KubeError,
    KubeUnreachable,
    NotFound,
    TooManyRequests,
)
from farebox.kube.client import (
    KubeClient,
    load_configuration,
    tls_context,
)
from tests.kube.server import Answer, JSONObject, Server, client_of, hang, nonsense, refuse, reset, status

PATH = "/api/v1/namespaces/a/services/b"


def answering(code: int, reason: str, message: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return status(code, reason, message)

    return answer


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (400, Invalid),
        (401, Forbidden),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (410, KubeError),
        (422, Invalid),
        (429, TooManyRequests),
        (500, KubeError),
        (503, KubeError),
    ],
)
async def test_an_error_has_its_class_and_the_message_of_the_server(
    server: Server, client: KubeClient, code: int, expected: type[KubeError]
) -> None:
    server.trouble = answering(code, "Reason", "spec.replicas: must not be negative")
    with pytest.raises(KubeError) as caught:
        await client.get(PATH)
    assert type(caught.value) is expected
    assert (caught.value.status, caught.value.reason) == (code, "Reason")
    assert str(caught.value) == "spec.replicas: must not be negative"
    assert len(server.requests) == 1, "it never retries"


async def test_an_answer_of_a_proxy_is_an_error_too(server: Server, client: KubeClient) -> None:
    server.trouble = nonsense
    with pytest.raises(KubeError, match="the proxy is down") as caught:
        await client.get(PATH)
    assert (caught.value.status, caught.value.reason) == (502, "")


@pytest.mark.parametrize("trouble", [hang, reset])
async def test_no_answer_leaves_the_outcome_unknown(
    server: Server, client: KubeClient, trouble: Answer
) -> None:
    server.trouble = trouble
    with pytest.raises(KubeUnreachable, match=f"PATCH {PATH}"):
        await client.request("PATCH", PATH, body={}, timeout=0.2)
    assert len(server.requests) == 1, "a write that may have been done is not sent again"


async def test_a_refused_connection_is_unreachable() -> None:
    lost = Server(port=1)
    async with client_of(lost) as client:
        with pytest.raises(KubeUnreachable):
            await client.get(PATH)


async def test_requests_succeed_again_after_an_error(server: Server, client: KubeClient) -> None:
    server.objects[PATH] = {"metadata": {"name": "b"}}
    for trouble in (reset, refuse, hang):
        server.trouble = trouble
        with pytest.raises((KubeError, KubeUnreachable)):
            await client.request("GET", PATH, timeout=0.2)
        server.trouble = None
        assert (await client.get(PATH))["metadata"]["name"] == "b"


async def test_requests_are_json_and_patches_say_what_they_are(server: Server, client: KubeClient) -> None:
    await client.create("/api/v1/namespaces/a/services", {"metadata": {"name": "ü"}})
    with pytest.raises(KubeError):
        await client.merge_patch(PATH, {"spec": {"replicas": 1}})
    (_, _, created), (method, path, patched) = server.requests
    assert created["Content-Type"] == "application/json"
    assert (method, path) == ("PATCH", PATH)
    assert patched["Content-Type"] == "application/merge-patch+json"
    assert server.bodies == [{"metadata": {"name": "ü"}}, {"spec": {"replicas": 1}}]


@pytest.mark.parametrize("code", [200, 404, 409])
async def test_a_delete_names_one_uid_and_accepts_an_absent_object(
    server: Server, client: KubeClient, code: int
) -> None:
    server.trouble = answering(code, "", "")
    await client.delete(PATH, "uid-1")
    assert server.bodies == [{"preconditions": {"uid": "uid-1"}}]


async def test_a_refused_delete_raises(server: Server, client: KubeClient) -> None:
    server.trouble = answering(403, "Forbidden", "no")
    with pytest.raises(Forbidden):
        await client.delete(PATH, "uid-1")


def pages(expired_at: int) -> Answer:
    """Three pages of two; the continue token of one of them expires once."""
    expired: list[int] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        number = int(request.query.get("continue", "0"))
        assert request.query["limit"] == "500"
        if number == expired_at and not expired:
            expired.append(number)
            return status(410, "Expired", "the continue token is too old")
        items = [{"metadata": {"name": str(2 * number + index)}} for index in range(2)]
        following = {"continue": str(number + 1)} if number < 2 else {}
        return web.json_response({"metadata": following, "items": items})

    return answer


async def test_a_list_is_read_page_by_page(server: Server, client: KubeClient) -> None:
    server.trouble = pages(expired_at=-1)
    found = [item["metadata"]["name"] async for item in client.list("/api/v1/namespaces")]
    assert found == ["0", "1", "2", "3", "4", "5"]


async def test_a_list_whose_token_expired_starts_again_and_misses_nothing(
    server: Server, client: KubeClient
) -> None:
    server.trouble = pages(expired_at=2)
    found = [item["metadata"]["name"] async for item in client.list("/api/v1/namespaces")]
    assert found == ["0", "1", "2", "3", "0", "1", "2", "3", "4", "5"]


async def test_keys_are_those_of_the_last_attempt_of_a_list(server: Server, client: KubeClient) -> None:
    def page(version: str, *names: str, more: str = "") -> JSONObject:
        items = [{"metadata": {"name": name, "namespace": "a"}} for name in names]
        return {"metadata": {"resourceVersion": version, "continue": more}, "items": items}

    answers = [page("7", "gone", "one", more="x"), None, page("9", "one", more="y"), page("9", "two")]

    async def answer(request: web.Request) -> web.StreamResponse:
        found = answers.pop(0)
        return status(410, "Expired", "too old") if found is None else web.json_response(found)

    server.trouble = answer
    taken: list[str] = []
    keys, version = await client.listed(PATH, lambda raw: taken.append(raw["metadata"]["name"]))
    assert (keys, version) == ({ObjectKey("a", "one"), ObjectKey("a", "two")}, "9")
    assert taken == ["gone", "one", "one", "two"], "all that came, for the reader to tell by their versions"


async def test_an_empty_list_has_a_version(server: Server, client: KubeClient) -> None:
    server.objects[PATH] = {"metadata": {"resourceVersion": "7"}, "items": []}
    assert await client.listed(PATH, lambda raw: None) == (set(), "7")


async def test_a_list_whose_first_page_is_expired_is_an_error(server: Server, client: KubeClient) -> None:
    server.trouble = answering(410, "Gone", "gone")
    with pytest.raises(KubeError, match="gone"):
        assert [item async for item in client.list("/api/v1/namespaces")]


def kubeconfig(directory: Path, server: Server, token_file: Path) -> Path:
    path = directory / "kubeconfig"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server.url}}],
        "users": [{"name": "u", "user": {"tokenFile": str(token_file)}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(document))
    return path


async def test_the_token_of_a_kubeconfig_is_sent(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    async with await KubeClient.connect(kubeconfig(tmp_path, server, token)) as client:
        server.objects[PATH] = {}
        with pytest.raises(NotFound):
            await client.get(PATH)
    assert server.requests[0][2]["Authorization"] == "Bearer first"


async def test_a_replaced_token_of_the_pod_is_read_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, authority = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("first")
    authority.write_text("none")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    configuration = await load_configuration(None)
    assert configuration.host == f"https://127.0.0.1:{server.port}"
    configuration.host, configuration.ssl_ca_cert = server.url, None
    server.trouble = answering(404, "NotFound", "")
    async with KubeClient(configuration) as client:
        await client.delete(PATH, "u")
        token.write_text("second")
        # The file is read again once a minute; a token is good for an hour.
        later = SimpleNamespace(now=lambda: datetime.datetime.now() + datetime.timedelta(minutes=2))  # noqa: DTZ005
        clock = SimpleNamespace(datetime=later, timedelta=datetime.timedelta)
        monkeypatch.setattr(incluster_config, "datetime", clock)
        await client.delete(PATH, "u")
    assert [headers["Authorization"] for _, _, headers in server.requests] == [
        "bearer first",
        "bearer second",
    ]


async def test_missing_credentials_raise_an_error_that_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigurationError, match="set FAREBOX_KUBECONFIG or KUBECONFIG"):
        await load_configuration(tmp_path / "absent")


def test_certificates_are_checked_unless_the_kubeconfig_says_otherwise() -> None:
    configuration = Configuration()
    context = tls_context(configuration)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    configuration.verify_ssl = False
    assert tls_context(configuration).verify_mode is ssl.CERT_NONE
