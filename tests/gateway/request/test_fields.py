"""Which fields of a request reach an upstream, and which the gateway sets itself."""

import json
from typing import Any

import pytest

from farebox.gateway.interface import ImmediateResponse
from farebox.gateway.request.fields import FIELDS, SERVER_FIELDS
from tests.gateway.harness import ACCOUNT, OTHER_TOKEN, UNIT, Harness, api_key, external, model, service

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
TEXT = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def harness() -> Harness:
    """A service "chat" of a model server, and "far" of a provider."""
    harness = Harness()
    harness.put(external(), service("far", modelRef={"name": "remote"}))
    return harness


async def sent(harness: Harness, path: str = CHAT, **fields: Any) -> dict[str, Any]:
    """The body that the upstream gets."""
    route = await harness.forwarded({"model": "far", **fields}, path=path)
    document: dict[str, Any] = json.loads(route.body or b"")
    return document


async def refused(
    harness: Harness, body: dict[str, Any], path: str
) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Status, error and the whole document of a call that must be refused."""
    answer = await harness.call(body, path=path)
    assert isinstance(answer, ImmediateResponse), answer
    document = json.loads(answer.body)
    return answer.status, document["error"], document


REFUSED: list[tuple[str, str, str, dict[str, Any]]] = [
    ("far", CHAT, "service_tier", {"service_tier": "priority"}),
    ("far", CHAT, "web_search_options", {"web_search_options": {}}),
    ("far", CHAT, "modalities", {"modalities": ["text", "audio"]}),
    ("far", CHAT, "store", {"store": True}),
    ("far", RESPONSES, "store", {"store": True}),
    ("far", MESSAGES, "mcp_servers", {"mcp_servers": [{"url": "https://x"}]}),
    ("far", MESSAGES, "container", {"container": "c"}),
    ("far", MESSAGES, "speed", {"speed": "fast"}),
    ("far", MESSAGES, "inference_geo", {"inference_geo": "us"}),
    ("far", CHAT, "search_parameters", {"search_parameters": {"mode": "on"}}),
    ("far", CHAT, "guided_json", {"guided_json": {}}),
    ("far", CHAT, "brand_new", {"brand_new": 1}),
    ("far", CHAT, "file_id", {"messages": [{"role": "user", "content": [{"type": "file",
                                                                         "file": {"file_id": "f"}}]}]}),
    ("far", RESPONSES, "file_id", {"input": [{"role": "user", "content": [{"type": "input_image",
                                                                           "file_id": "f"}]}]}),
    ("far", RESPONSES, "item_reference", {"input": [{"type": "item_reference", "id": "i"}]}),
    ("far", MESSAGES, "file_id", {"messages": [{"role": "user", "content": [
        {"type": "document", "source": {"type": "file", "file_id": "f"}}]}]}),
    ("far", MESSAGES, "container_upload", {"messages": [{"role": "user", "content": [
        {"type": "container_upload"}]}]}),
    ("far", CHAT, "audio.id", {"messages": [{"role": "assistant", "audio": {"id": "a"}}]}),
    ("far", RESPONSES, "vector_store_ids", {"tools": [{"type": "file_search", "vector_store_ids": ["v"]}]}),
    *(("far", RESPONSES, each, {"tools": [{"type": "function", "name": "f"}, {"type": each}]})
      for each in ("web_search", "web_search_preview_2025_03_11", "file_search", "code_interpreter",
                   "computer_use_preview", "image_generation", "mcp")),
    *(("far", MESSAGES, each, {"tools": [{"type": each, "name": "x"}]})
      for each in ("web_search_20250305", "web_fetch_20250910", "code_execution_20250825", "mcp_toolset",
                   "computer_20250124")),
    *(("chat", CHAT, each, {each: 1}) for each in (
        "priority", "kv_transfer_params", "logits_processors", "cache_salt", "request_id", "lora_path",
        "data_parallel_rank", "bootstrap_host", "session_params", "id_slot", "chat_template", "extra_key",
        "n_predict")),
    ("chat", CHAT, "mcp", {"tools": [{"type": "mcp", "server_url": "http://10.0.0.1"}]}),
    ("chat", RESPONSES, "previous_response_id", {"previous_response_id": "r"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "field", "fields"), REFUSED)
async def test_a_field_that_acts_in_the_operators_name_is_refused_by_name(
    harness: Harness, name: str, path: str, field: str, fields: dict[str, Any]
) -> None:
    status, error, _ = await refused(harness, {"model": name, **fields}, path=path)
    assert (status, error["code"]) in ((400, "not_offered"), (400, "unknown_field"))
    assert field in error["message"]
    assert harness.spend.available(ACCOUNT) == 5 * UNIT


@pytest.mark.parametrize(
    ("name", "path", "field"),
    [(name, path, field) for name, path, field, fields in REFUSED if field in fields],
)
async def test_null_asks_for_nothing(harness: Harness, name: str, path: str, field: str) -> None:
    assert not isinstance(await harness.call({"model": name, field: None}, path=path), ImmediateResponse)


async def test_a_setting_of_the_model_allows_more(harness: Harness) -> None:
    allowed = ["web_search_options", "tools.web_search", "file_id", "brand_new", "service_tier", "store"]
    harness.put(external() | {"spec": external()["spec"] | {"requests": {"allowedFields": allowed}}})
    more = {"web_search_options": {}, "brand_new": {"a": 1}, "service_tier": "flex", "store": True}
    assert (await sent(harness, **more)).items() >= more.items()
    tools = [{"type": "web_search"}]
    assert (await sent(harness, RESPONSES, tools=tools))["tools"] == tools
    status, _, _ = await refused(
        harness, {"model": "far", "tools": [{"type": "code_interpreter"}]}, path=RESPONSES
    )
    assert status == 400


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": TEXT, "temperature": 0, "n": 2, "seed": 1, "service_tier": "auto", "store": False,
                "logit_bias": {"5": 1}, "response_format": {"type": "json_object"}, "verbosity": "low",
                "reasoning_effort": "low", "modalities": ["text"], "prediction": {"type": "content"}}),
        (CHAT, {"messages": TEXT, "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": "auto", "parallel_tool_calls": False, "top_k": 3, "min_p": 0.1}),
        (RESPONSES, {"input": "x", "instructions": "y", "include": ["reasoning.encrypted_content"],
                     "reasoning": {"effort": "low"}, "text": {"verbosity": "low"}, "store": False,
                     "tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "apply_patch"},
                               {"type": "local_shell"}]}),
        (MESSAGES, {"messages": TEXT, "max_tokens": 5, "system": [{"type": "text", "text": "x"}],
                    "thinking": {"type": "enabled", "budget_tokens": 3}, "metadata": {"user_id": "u"},
                    "tools": [{"name": "Bash", "input_schema": {}}, {"type": "text_editor_20250728",
                                                                     "name": "t"}],
                    "stop_sequences": ["x"], "context_management": {"edits": []}}),
        ("/v1/embeddings", {"input": ["a"], "dimensions": 5, "encoding_format": "float"}),
    ],
)  # fmt: skip
async def test_documented_fields_pass_unchanged(harness: Harness, path: str, fields: dict[str, Any]) -> None:
    assert (await sent(harness, path, **fields)).items() >= fields.items()


async def test_a_model_server_gets_its_sampling_and_template_fields(harness: Harness) -> None:
    fields = dict.fromkeys(SERVER_FIELDS - FIELDS["chat"], 1)
    route = await harness.forwarded({"model": "chat", "messages": TEXT, **fields})
    assert json.loads(route.body or b"").items() >= fields.items()


async def test_calls_of_namespaces_have_their_own_salts_that_callers_cannot_choose(harness: Harness) -> None:
    harness.put(service("chat", "team-b"), api_key("b", "team-b", OTHER_TOKEN))
    salts = []
    for token in (OTHER_TOKEN, OTHER_TOKEN, None):
        headers = {"authorization": f"Bearer {token}"} if token else {}
        route = await harness.forwarded(headers=headers)
        salts.append(json.loads(route.body or b"")["cache_salt"])
    assert salts[0] == salts[1] != salts[2]
    assert all("team" not in each and len(each) == 32 for each in salts)


@pytest.mark.parametrize("change", [{"dedicated": True}, {"cacheSalt": "Never"}])
async def test_no_salt_where_nobody_shares_or_the_server_refuses_it(
    harness: Harness, change: dict[str, Any]
) -> None:
    if "dedicated" in change:
        harness.put(service(dedicated=True))
    else:
        template = {"spec": {"containers": [{"name": "s", "image": "trt"}]}}
        harness.put(model(serving={"deployment": {"template": template, **change}}))
    assert b"cache_salt" not in ((await harness.forwarded()).body or b"")


async def test_a_provider_gets_no_salt_and_a_key_of_the_namespace(harness: Harness) -> None:
    harness.put(service("far", "team-b", modelRef={"name": "remote"}), api_key("b", "team-b", OTHER_TOKEN))
    assert not {"cache_salt", "prompt_cache_key"} & set(await sent(harness))
    mine = (await sent(harness, prompt_cache_key="k" * 500))["prompt_cache_key"]
    route = await harness.forwarded(
        {"model": "far", "prompt_cache_key": "k" * 500}, headers={"authorization": f"Bearer {OTHER_TOKEN}"}
    )
    other = json.loads(route.body or b"")["prompt_cache_key"]
    assert len(mine) == 32
    assert mine != other
    assert mine != (await sent(harness, prompt_cache_key="k"))["prompt_cache_key"]


async def test_a_provider_stores_no_responses(harness: Harness) -> None:
    """OpenAI stores a response unless `store` is false, under the operator's key."""
    assert (await sent(harness, RESPONSES, input="x"))["store"] is False
    assert "store" not in await sent(harness, CHAT, messages=TEXT)
