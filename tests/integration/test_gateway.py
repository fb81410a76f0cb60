"""Calls through the real gateway, with the official clients: admitted, limited, metered (B13-B19)."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import httpx
import openai
import pytest
from anthropic import Anthropic
from anthropic.types import TextBlockParam
from openai import APIStatusError

from farebox.domain.billing.money import parse_amount
from farebox.kube.names import core_path
from tests.integration.callers import PRICES, QUESTION, Caller, client, edit_key, make_key, refused
from tests.integration.tenants import SECONDS, Tenant, template
from tests.support.api import JSONObject
from tests.support.gateway import Gateway
from tests.support.processes import Process
from tests.support.stack import BACKENDS, Stack
from tests.support.waiting import wait_for

pytestmark = pytest.mark.plane


@pytest.fixture(scope="module")
def simulator(stack: Stack) -> Process:
    """The model server behind every backend."""
    return stack.start_simulator("--ttft-ms 5 --tokens-per-second 0")


@pytest.fixture(scope="module")
def gateway(stack: Stack, simulator: Process) -> Gateway:
    """A gateway that decides by the session's cluster and meter."""
    return stack.start_gateway(f"127.0.0.1:{simulator.port}")


@pytest.fixture
def caller(tenant: Tenant, gateway: Gateway, reader: str) -> Caller:
    """A tenant that may call."""
    return Caller(tenant, gateway, reader)


def cost(prompt: int, cached: int, output: int) -> int:
    """At PRICES, in nano-units."""
    return (prompt - cached) * 1000 + cached * 100 + output * 2000


def test_b16_every_endpoint_is_served_and_metered_as_its_usage_says(caller: Caller) -> None:
    ai = caller.start()
    caller.wait_metered()
    before, spent = caller.balance(), 0
    chat = caller.say(ai)
    assert chat.model == "Org/Model-8B"
    cached = chat.usage.prompt_tokens_details.cached_tokens if chat.usage.prompt_tokens_details else 0
    spent += cost(chat.usage.prompt_tokens, cached, chat.usage.completion_tokens)
    text = ai.completions.create(model="chat", prompt="Once upon a time", max_tokens=5)
    assert text.usage is not None
    spent += cost(text.usage.prompt_tokens, 0, text.usage.completion_tokens)
    vectors = ai.embeddings.create(model="chat", input=["one", "two words"])
    spent += cost(vectors.usage.prompt_tokens, 0, 0)
    answer = ai.responses.create(model="chat", input="Hello", max_output_tokens=20)
    assert answer.usage is not None
    cached = answer.usage.input_tokens_details.cached_tokens
    spent += cost(answer.usage.input_tokens, cached, answer.usage.output_tokens)
    claude = Anthropic(base_url=caller.gateway.url, api_key=caller.token, max_retries=0)
    message = claude.messages.create(
        model="chat", max_tokens=7, messages=[{"role": "user", "content": "Hello there"}]
    )
    spent += cost(message.usage.input_tokens, 0, message.usage.output_tokens)
    caller.wait_spent(before, spent)
    assert [model.id for model in ai.models.list()] == ["chat"]


def test_b32_a_call_that_writes_a_cache_is_looked_up_with_its_price(
    tenant: Tenant, gateway: Gateway, reader: str, stack: Stack
) -> None:
    """B41 end to end: Anthropic's usage, the model's cacheWrite price, the ledger, the look-up."""
    tiers = [PRICES[0] | {"cacheWrite": "1.250"}]
    caller = Caller(tenant, gateway, reader, prices={"currency": tenant.currency, "tiers": tiers})
    caller.start()
    claude = Anthropic(base_url=gateway.url, api_key=caller.token, max_retries=0)
    marked: TextBlockParam = {
        "type": "text",
        "text": f"{tenant.unique} " + "word " * 100,
        "cache_control": {"type": "ephemeral"},
    }
    raw = claude.messages.with_raw_response.create(
        model="chat", max_tokens=7, messages=[{"role": "user", "content": [marked]}]
    )
    usage = raw.parse().usage
    assert usage.cache_creation_input_tokens
    own = f"namespace={tenant.namespace}"
    request_id = raw.headers["x-request-id"]

    def look() -> JSONObject:
        return stack.call_meter("GET", f"/v1/calls/{request_id}?{own}", token=reader)

    found = wait_for("the call is stored", look, SECONDS)
    assert found["cacheWriteInputTokens"] == usage.cache_creation_input_tokens
    assert found["cachedInputTokens"] == usage.cache_read_input_tokens
    assert found["outputTokens"] == usage.output_tokens
    assert found["inputTokens"] == usage.input_tokens + usage.cache_creation_input_tokens
    assert (found["status"], found["apiKey"], found["estimated"]) == (200, "app", False)
    assert 0 <= found["firstByteMs"] <= found["durationMs"]
    assert found["price"]["cacheWrite"] == "1.250"
    charge = cost(usage.input_tokens, 0, usage.output_tokens) + usage.cache_creation_input_tokens * 1250
    assert parse_amount(found["charge"]) == charge
    now = datetime.now(UTC)
    times = {"from": (now - timedelta(hours=1)).isoformat(), "to": (now + timedelta(hours=1)).isoformat()}
    listed = stack.call_meter("GET", f"/v1/calls?{own}&{urlencode(times)}", token=reader)["calls"]
    assert listed[0] == found


def refusals(caller: Caller, reader: str) -> dict[str, int]:
    """The refused calls of a tenant in the hours around now, by code, as the meter has them."""
    now = datetime.now(UTC)
    times = {"from": (now - timedelta(hours=1)).isoformat(), "to": (now + timedelta(hours=1)).isoformat()}
    query = urlencode({"namespace": caller.tenant.namespace} | times)
    rows = caller.tenant.stack.call_meter("GET", f"/v1/refusals?{query}", token=reader)["rows"]
    return {row["code"]: row["count"] for row in rows}


def test_b32_a_gateway_that_ends_sends_the_counts_of_its_last_refused_calls(
    tenant: Tenant, stack: Stack, simulator: Process, reader: str
) -> None:
    caller = Caller(tenant, stack.start_gateway(f"127.0.0.1:{simulator.port}"), reader)
    ai = caller.start()
    for _ in range(3):
        assert refused(lambda: caller.say(ai, model="nothing"))["status"] == 404
    caller.gateway.stop()
    assert refusals(caller, reader)["model_not_found"] == 3


def test_b31_a_key_can_ask_for_its_usage_and_b32_refused_calls_are_counted(
    caller: Caller, reader: str
) -> None:
    """With the rights that the manifests give to the gateway, and to its meter's clients."""
    ai = caller.start(service={"limits": {"rpm": 1000}})
    raw = ai.chat.completions.with_raw_response.create(
        model="chat",
        max_tokens=8,
        messages=QUESTION,  # type: ignore[arg-type]
    )
    assert raw.headers["x-ratelimit-limit-requests"] == "1000"
    assert refused(lambda: caller.say(ai, model="nothing"))["status"] == 404
    calls = caller.wait_metered(others=1)

    def get(path: str) -> JSONObject:
        answer: JSONObject = ai.get(path, cast_to=httpx.Response).json()
        return answer

    key = get("/key")
    assert (key["name"], [service["id"] for service in key["services"]]) == ("app", ["chat"])
    (limit,) = key["services"][0]["limits"]
    assert (limit["dimension"], limit["remaining"]) == ("rpm", 1000 - calls)
    (row,) = get("/usage?group_by=key,service,model")["data"]
    assert (row["calls"], row["key"], row["service"], row["model"]) == (calls, "app", "chat", caller.model)
    found = get(f"/calls/{raw.headers['x-request-id']}")
    assert (found["service"], found["status"]) == ("chat", 200)
    assert len(get("/calls")["data"]) == calls
    (model,) = get("/models")["data"]
    assert (model["state"], model["pricing"]["prompt"]) == ("active", "0.000001")

    wait_for(
        "refused calls are counted", lambda: refusals(caller, reader).get("model_not_found") == 1, SECONDS
    )


def test_b16_streams_are_metered_whether_the_client_asks_for_usage_or_not(caller: Caller) -> None:
    ai = caller.start()
    caller.wait_metered()
    before = caller.balance()
    asked = caller.say(ai, stream=True, stream_options={"include_usage": True}, max_tokens=20)
    usage = [chunk.usage for chunk in asked if chunk.usage][-1]
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    spent = cost(usage.prompt_tokens, cached, usage.completion_tokens)
    quiet = list(caller.say(ai, stream=True, max_tokens=20))
    assert quiet
    caller.wait_spent(before, 2 * spent)


def test_b16_a_client_that_leaves_midway_pays_what_it_got(tenant: Tenant, stack: Stack, reader: str) -> None:
    slow = stack.start_simulator("--ttft-ms 5 --tokens-per-second 20")
    caller = Caller(tenant, stack.start_gateway(f"127.0.0.1:{slow.port}"), reader)
    ai = caller.start()
    caller.wait_metered()
    before = caller.balance()
    stream = caller.say(ai, stream=True, max_tokens=5000)
    for count, _ in enumerate(stream):
        if count == 5:
            break
    stream.close()
    wait_for("what was used is charged", lambda: caller.balance() < before, SECONDS)
    # Few, if the machine is quick; never those of the minutes that the whole answer takes.
    assert before - caller.balance() < cost(50, 0, 2500)


def test_b13_a_service_that_does_not_serve_is_refused_with_its_reason_and_not_metered(
    caller: Caller,
) -> None:
    ai = caller.start(balance="1")
    tenant = caller.tenant
    tenant.edit("chat", postpaid=False)
    error = caller.wait_refused(ai, 402, "endpoint is inactive: POSTPAID_DISABLED")
    assert (error["type"], error["source"]) == ("permission_error", "gateway")
    tenant.edit("chat", postpaid=True)
    caller.wait_served(ai)
    tenant.charge("chat", caller.model, 5)
    caller.wait_refused(ai, 402, "endpoint is inactive: OVERDUE")
    tenant.wait_stopped("chat", "Overdue")
    metered = caller.wait_metered(others=1)
    for _ in range(5):
        caller.wait_refused(ai, 402, "OVERDUE")
    assert caller.calls() == metered
    tenant.topup("10")
    caller.wait_served(ai)
    error = refused(lambda: ai.chat.completions.create(model="nothing", messages=QUESTION))
    assert (error["status"], error["code"]) == (404, "model_not_found")


def test_b14_keys_act_within_a_second_of_their_change(caller: Caller) -> None:
    ai = caller.start()
    tenant = caller.tenant
    edit_key(tenant, disabled=True)
    error = caller.wait_refused(ai, 401, "disabled")
    assert error["type"] == "authentication_error"
    edit_key(tenant, disabled=False, expiresAt="2020-01-01T00:00:00Z")
    caller.wait_refused(ai, 401, "expired")
    edit_key(tenant, expiresAt=None, services={"all": None, "names": ["other"]})
    caller.wait_refused(ai, 403, "may not call model")
    edit_key(tenant, services={"all": True, "names": None}, allowedCIDRs=["192.0.2.0/24"])
    caller.wait_refused(ai, 403, "may not be used from 127.0.0.1")
    edit_key(tenant, allowedCIDRs=None)
    caller.wait_served(ai)
    assert refused(lambda: caller.say(client(caller.gateway, "fbx_nobody")))["status"] == 401
    tenant.delete("APIKey", "app")
    caller.wait_refused(ai, 401)


def test_b15_limits_name_their_dimension_and_say_when_to_come_back(caller: Caller) -> None:
    ai = caller.start(service={"limits": {"rpm": 3}})
    error = caller.wait_refused(ai, 429, "rate limit exceeded on dimension: rpm")
    assert error["type"] == "rate_limit_error"
    assert int(error["headers"]["retry-after"]) > 0
    assert error["headers"]["x-ratelimit-limit-requests"] == "3"
    assert error["headers"]["x-ratelimit-remaining-requests"] == "0"
    caller.tenant.edit("chat", limits={"rpm": 0, "tpm": 50})
    error = caller.wait_refused(ai, 429, "dimension: tpm", max_tokens=500)
    assert error["headers"]["x-ratelimit-limit-tokens"] == "50"


def test_b17_hard_never_falls_below_the_line_with_64_clients_racing_for_the_last_cent(
    tenant: Tenant, gateway: Gateway, reader: str
) -> None:
    limits = {"contextTokens": 2000, "maxOutputTokens": 100}
    caller = Caller(tenant, gateway, reader, limits=limits)
    ai = caller.start(balance="0.05", enforcement="Hard")
    outcomes: list[int] = []
    lock = threading.Lock()

    def spend(_: int) -> None:
        mine = client(gateway, caller.token)
        while True:
            try:
                caller.say(mine, max_tokens=100)
                status = 200
            except APIStatusError as error:
                status = error.status_code
            with lock:
                outcomes.append(status)
            assert caller.balance() >= 0
            if status == 402:
                return

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(spend, range(64)))
    assert outcomes.count(200) > 3
    assert set(outcomes) <= {200, 402}
    error = caller.wait_refused(ai, 402, max_tokens=100)
    assert error["code"] in ("insufficient_balance", "endpoint_inactive")
    assert caller.balance() >= 0


def test_b17_soft_finishes_what_was_admitted_and_refuses_the_next(caller: Caller) -> None:
    ai = caller.start(balance="0.001")

    def spent() -> bool:
        """Refusals may come a moment early (a charge counts twice: spend/tracker.py), never late."""
        caller.wait_refused(ai, 402, "OVERDUE", max_tokens=200)
        assert caller.balance() <= 0, caller.balance()
        return True

    wait_for("the balance is spent", spent, SECONDS)
    metered = caller.wait_metered()
    for _ in range(10):
        caller.wait_refused(ai, 402, "OVERDUE", max_tokens=200)
    assert caller.calls() == metered


def test_b18_on_resume_calls_are_admitted_only_once_a_backend_is_ready(caller: Caller) -> None:
    ai = caller.start()
    tenant = caller.tenant
    tenant.edit_model(caller.model, serving={"deployment": {"template": template(hold=True)}})
    tenant.edit("chat", postpaid=False)
    tenant.wait_stopped("chat", "PostpaidDisabled")
    tenant.edit("chat", postpaid=True)
    caller.wait_refused(ai, 402, "RESUMING")
    tenant.release(tenant.backend_name("chat"), 1)
    caller.wait_served(ai)


def test_only_the_external_provider_gets_its_credential(
    caller: Caller, simulator: Process, stack: Stack
) -> None:
    tenant, secret = caller.tenant, "prov-" + "s3cr3t" * 4
    name = f"provider-{tenant.unique}"
    tenant.api.create(
        core_path("secrets", BACKENDS), {"metadata": {"name": name}, "stringData": {"token": secret}}
    )
    external = {
        "baseURL": f"http://127.0.0.1:{simulator.port}/v1",
        "credentialsSecretRef": {"name": name, "key": "token"},
    }
    model = tenant.model("ext", servedName="Their/Model", serving={"external": external})
    tenant.account(balance="5")
    tenant.service("far", model, dedicated=False)
    tenant.wait_state("far", "Running")
    ai = client(caller.gateway, make_key(tenant))
    answer = caller.wait_served(ai, model="far")
    assert answer.model == "Their/Model"
    for process in (caller.gateway.decisions, caller.gateway.envoy):
        assert process is not None
        assert secret not in process.log.read_text()
    assert secret not in stack.logs("operator")
    logged = "".join(path.read_text() for path in caller.gateway.directory.glob("usage.log*"))
    assert secret not in logged
    assert not re.search(r"fbx_[A-Za-z0-9_-]{43}", logged)


def test_b19_a_killed_decision_process_refuses_and_loses_nothing(
    tenant: Tenant, stack: Stack, simulator: Process, reader: str
) -> None:
    gateway = stack.start_gateway(f"127.0.0.1:{simulator.port}")
    caller = Caller(tenant, gateway, reader)
    ai = caller.start(balance="50")
    for _ in range(30):
        caller.say(ai)
    assert gateway.decisions is not None
    gateway.decisions.kill()
    error = refused(lambda: caller.say(ai))
    assert (error["status"], error["source"]) == (503, "gateway")
    gateway.start_decisions()
    caller.wait_served(ai)
    for _ in range(10):
        caller.say(ai)
    gateway.stop()
    with pytest.raises(openai.APIConnectionError):
        caller.say(ai)
    assert caller.wait_metered() == 42
