"""Settings come from the environment; an error names the variable, not its value."""

import pytest

from farebox.errors import ConfigurationError
from farebox.settings import GatewaySettings, MeterSettings, OperatorSettings


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


def test_a_value_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAREBOX_REPLICAS", "0")
    with pytest.raises(
        ConfigurationError, match="FAREBOX_REPLICAS: Input should be greater than or equal to 1"
    ):
        GatewaySettings.load()
