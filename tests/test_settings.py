"""Settings come from the environment; an error names the variable, not its value."""

import pytest
import yaml

from farebox.errors import ConfigurationError
from farebox.gateway.process import envoy_settings
from farebox.settings import GatewaySettings, MeterSettings, OperatorSettings
from farebox.up import UpSettings
from tests.support.stack import REPOSITORY

BASE = REPOSITORY / "manifests/base"


def test_settings_are_read_from_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAREBOX_LEDGER_URL", "sqlite:///here.db")
    assert MeterSettings.load().ledger_url == "sqlite:///here.db"


def test_each_value_that_cannot_be_read_is_named_and_none_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAREBOX_WORKERS", "hunter2")
    monkeypatch.setenv("FAREBOX_LOG_LEVEL", "hunter2")
    with pytest.raises(ConfigurationError) as raised:
        OperatorSettings.load()
    sentence = str(raised.value)
    assert "FAREBOX_WORKERS: Input should be a valid integer" in sentence
    assert "FAREBOX_LOG_LEVEL: Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'" in sentence
    assert "hunter2" not in sentence


@pytest.mark.parametrize(
    "url",
    [
        "inference.example.com/v1",
        "ftp://inference.example.com",
        "https:///v1",
        "https://inference.example.com/v1?key=hunter2",
        "https://hunter2@inference.example.com/v1",
        "https://inference.example.com/v1#here",
        "https://inference.example.com:99999/v1",
        "https://inference.example.com/ v1",
    ],
)
def test_b31_a_public_url_that_clients_cannot_use_is_refused(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("FAREBOX_PUBLIC_URL", url)
    with pytest.raises(
        ConfigurationError, match=r"^FAREBOX_PUBLIC_URL: .*must be an http or https URL"
    ) as raised:
        OperatorSettings.load()
    assert "hunter2" not in str(raised.value)


def test_b31_the_endpoint_is_the_public_url_or_else_the_gateways_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FAREBOX_PUBLIC_URL", raising=False)
    (service,) = (
        item for item in yaml.safe_load_all((BASE / "gateway.yaml").read_text()) if item["kind"] == "Service"
    )
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    assert [port["port"] for port in service["spec"]["ports"]] == [80]
    assert OperatorSettings.load().endpoint == f"http://{name}.{namespace}.svc/v1"
    monkeypatch.setenv("FAREBOX_PUBLIC_URL", "https://[2001:db8::1]:8443/llm/v1/")
    assert OperatorSettings.load().endpoint == "https://[2001:db8::1]:8443/llm/v1"


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]")]
)
def test_b31_the_endpoint_of_a_laptop_is_its_own_gateway(
    monkeypatch: pytest.MonkeyPatch, host: str, shown: str
) -> None:
    monkeypatch.setenv("FAREBOX_LISTEN_HOST", host)
    monkeypatch.setenv("FAREBOX_GATEWAY_PORT", "8123")
    assert UpSettings.load().endpoint == f"http://{shown}:8123/v1"


def test_a_value_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAREBOX_REPLICAS", "0")
    with pytest.raises(
        ConfigurationError, match="FAREBOX_REPLICAS: Input should be greater than or equal to 1"
    ):
        GatewaySettings.load()


def test_b29_headers_of_upstreams_that_pass_are_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAREBOX_RESPONSE_HEADERS", "X-Served-By, openai-processing-ms")
    names = envoy_settings(GatewaySettings.load()).response_headers
    assert names == ("x-served-by", "openai-processing-ms")
    for text in ("x served by", "x-a:b", "x-gw-local-reply"):
        monkeypatch.setenv("FAREBOX_RESPONSE_HEADERS", text)
        with pytest.raises(ConfigurationError, match="FAREBOX_RESPONSE_HEADERS"):
            envoy_settings(GatewaySettings.load())
