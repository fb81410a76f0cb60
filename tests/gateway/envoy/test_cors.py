"""Web pages of configured origins may call the gateway; without the setting nothing changes."""

from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest

from farebox.gateway.envoy import process as envoy_process
from farebox.gateway.envoy.bootstrap import EnvoySettings, bootstrap
from tests.gateway.hostile import GOOD
from tests.gateway.hostile_target import Target, running

PAGE = "https://app.example"
URL = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


async def send(
    target: Target, method: str, headers: Mapping[str, str], data: bytes | None = None
) -> tuple[int, Mapping[str, str]]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, target.envoy.url + URL, headers=headers, data=data) as answer,
    ):
        await answer.read()
        return answer.status, answer.headers


async def test_pages_of_the_origins_are_answered(tmp_path: Path) -> None:
    async with running(tmp_path, cors_origins=(PAGE,)) as target:
        status, headers = await send(target, "OPTIONS", PREFLIGHT)
        assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
        assert "authorization" in headers["access-control-allow-headers"]
        assert "POST" in headers["access-control-allow-methods"]
        # A page must be able to read why a call was refused.
        status, headers = await send(target, "POST", JSON | {"Origin": PAGE}, GOOD)
        assert (status, headers["access-control-allow-origin"]) == (401, PAGE)
        assert "x-request-id" in headers["access-control-expose-headers"]
        status, headers = await send(target, "POST", JSON | {"Origin": "https://evil.example"}, GOOD)
        assert (status, headers.get("access-control-allow-origin")) == (401, None)
        status, _ = await send(target, "OPTIONS", PREFLIGHT | {"Origin": "https://evil.example"})
        assert status == 405
        await target.check(0)


async def test_without_the_setting_there_is_no_filter(tmp_path: Path) -> None:
    assert "cors" not in str(bootstrap(EnvoySettings(tmp_path)))
    async with running(tmp_path) as target:
        assert (await send(target, "OPTIONS", PREFLIGHT))[0] == 405


@pytest.mark.parametrize("origins", [("*",), (PAGE, "http://localhost:3000")])
def test_envoy_accepts_the_origins(tmp_path: Path, origins: tuple[str, ...]) -> None:
    settings = EnvoySettings(tmp_path / "a", cors_origins=origins)
    assert envoy_process.validate(envoy_process.find(), settings) == ""
