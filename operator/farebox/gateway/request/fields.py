"""The fields of request bodies that upstreams accept from callers: an allow list for each API.

A provider is called with the operator's key, and a model server is shared by tenants. So a field passes if it
is documented, costs nothing extra, names nothing stored, and leaves the engine alone. A Model adds more by
`requests.allowedFields` (docs/decisions/522). This module is data and a look-up.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from farebox.domain.admission.types import Denied
from farebox.gateway.convert import ModelUpstream
from farebox.gateway.request.body import RequestBody


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SAMPLING: Final = _names(
    "enable_thinking frequency_penalty ignore_eos include_reasoning length_penalty logit_bias logprobs min_p "
    "min_tokens presence_penalty reasoning reasoning_effort reasoning_format reasoning_split "
    "repetition_penalty response_format seed stop stop_token_ids temperature think thinking thinking_budget "
    "top_k top_logprobs top_p user"
)
"""Sampling and reasoning, as OpenAI and the providers with its API document them."""
_OPENAI: Final = _names(
    "max_tokens metadata model n prompt_cache_key prompt_cache_retention safety_identifier service_tier "
    "store stream stream_options"
)
_TOOLS: Final = _names("parallel_tool_calls tool_choice tools")
FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "chat": _SAMPLING
    | _OPENAI
    | _TOOLS
    | _names(
        "audio citation_options disable_tool_validation documents function_call functions "
        "max_completion_tokens messages modalities prediction prompt_mode random_seed safe_prompt verbosity"
    ),
    "completions": _SAMPLING | _OPENAI | _names("best_of echo prompt suffix"),
    "embeddings": _names(
        "dimensions embedding_type encoding_format input input_type late_chunking messages model normalized "
        "output_dimension output_dtype task truncate truncation user"
    ),
    "responses": _OPENAI
    | _TOOLS
    | _names(
        "background client_metadata context_management conversation frequency_penalty include input "
        "instructions max_output_tokens max_tool_calls presence_penalty previous_response_id prompt "
        "reasoning temperature text top_logprobs top_p truncation user"
    ),
    "messages": _names(
        "cache_control context_management inference_geo max_tokens messages metadata model output_config "
        "output_format service_tier speed stop_sequences stream system temperature thinking tool_choice "
        "tools top_k top_p"
    ),
}
"""The fields of each API by its dialect. Some pass with certain values only: see PLAIN_VALUES."""
SERVER_FIELDS: Final = _SAMPLING | _names(
    # vLLM
    "add_generation_prompt add_special_tokens allowed_token_ids bad_words best_of chat_template_kwargs "
    "continue_final_message documents echo embed_dtype encoding_format endianness guided_choice "
    "guided_decoding_backend guided_grammar guided_json guided_regex guided_whitespace_pattern "
    "include_stop_str_in_output instruction mm_processor_kwargs normalize prompt_logprobs return_token_ids "
    "return_tokens_as_token_ids skip_special_tokens spaces_between_special_tokens structural_tag "
    "structured_outputs thinking_token_budget truncate_prompt_tokens use_beam_search "
    # SGLang
    "ebnf json_schema no_stop_trim regex separate_reasoning stop_regex stream_reasoning "
    # llama.cpp
    "cache_prompt dry_allowed_length dry_base dry_multiplier dry_penalty_last_n dry_sequence_breakers "
    "dynatemp_exponent dynatemp_range grammar min_keep mirostat mirostat_eta mirostat_tau n_probs "
    "parse_tool_calls post_sampling_probs repeat_last_n repeat_penalty return_progress samplers "
    "thinking_forced_open timings_per_token top_n_sigma typical_p xtc_probability xtc_threshold "
    # TGI
    "do_sample guideline return_full_text tool_prompt truncate watermark"
)
"""What model servers of the cluster accept at every API: sampling, templates and guided output."""
PLAIN_VALUES: Final[Mapping[str, frozenset[bytes]]] = {
    "inference_geo": frozenset({b'"global"'}),
    "modalities": frozenset({b'["text"]'}),
    "service_tier": frozenset({b'"auto"', b'"default"', b'"standard"', b'"standard_only"'}),
    "speed": frozenset({b'"standard"'}),
    "store": frozenset(),
    "audio": frozenset(),
}
"""Fields of providers that pass with these values, as JSON without spaces; other values cost more or store
data in the operator's name."""
_TOOL_TYPES: Final = (
    *("apply_patch", "bash_", "custom", "function", "local_shell", "memory_", "namespace"),
    *("text_editor_", "tool_search"),
)
"""The beginnings of the types of tools that the caller runs itself, or that only select tools."""
_STORED: Final = "it names an object stored at the provider. Send the content itself"
_SURCHARGE: Final = "it costs extra at the provider. Omit it"
_ENGINE: Final = "it controls the engine of the model server. Omit it"
_REASONS: Final[Mapping[str, str]] = {
    **dict.fromkeys(_names("cached_content container prompt_id file_ids vector_store_ids"), _STORED),
    **dict.fromkeys(_names("audio mcp_servers plugins search_parameters web_search_options"), _SURCHARGE),
    **dict.fromkeys(_names("inference_geo modalities service_tier speed"), _SURCHARGE),
    **dict.fromkeys(
        _names(
            "bootstrap_host bootstrap_port bootstrap_room cache_salt custom_logit_processor "
            "data_parallel_rank disagg_prefill_dp_rank extra_key id_slot keep_alive "
            "kv_transfer_params logits_processors lora lora_path n_cache_reuse n_keep priority request_id "
            "return_hidden_states rid session_params "
            "slot_id vllm_xargs"
        ),
        _ENGINE,
    ),
    "chat_template": "a template is a program that runs in the model server. Use chat_template_kwargs",
    "store": "the provider would store the call under the operator's key. Send store: false",
}
_ABSENT: Final = (b"null", b"false")
_FALSE: Final = msgspec.Raw(b"false")
_SALT_BYTES: Final = 16


def check_fields(request: RequestBody, upstream: ModelUpstream) -> None:
    """Raises Denied, which names the field, unless the upstream may receive everything in the body."""
    fields, allowed = request.fields, FIELDS[request.endpoint.dialect]
    provider = upstream.provider is not None
    more = upstream.allowed_fields
    if not fields.keys() <= allowed:
        known = allowed if provider else allowed | SERVER_FIELDS
        _check_unknown((name for name in fields if name not in known and name not in more), request)
    if provider:
        for name in PLAIN_VALUES.keys() & fields.keys() - more:
            value = b"".join(bytes(fields[name]).split())
            if value not in _ABSENT and value not in PLAIN_VALUES[name]:
                raise _refused(name)
    content = request.content
    if content.stored and content.stored not in more:
        raise Denied(400, "not_offered", f"Field {content.stored} is not supported: {_STORED}")
    for tool in content.tools:
        # A model server would call the URL of an MCP server from within the cluster.
        refused = not tool.startswith(_TOOL_TYPES) if provider else tool.startswith("mcp")
        if refused and f"tools.{tool}" not in more:
            message = f"Tools of type {tool[:100]!r} are not supported: they cost extra"
            raise Denied(400, "not_offered", f"{message}, or act in the operator's name. Remove them")


def _check_unknown(names: Iterable[str], request: RequestBody) -> None:
    for name in names:
        if bytes(request.fields[name]) in _ABSENT:
            continue
        if name in _REASONS:
            raise _refused(name)
        raise Denied(
            400,
            "unknown_field",
            f"Field {name[:100]!r} is not known at {request.endpoint.path}. Remove it, or ask the cluster "
            "administrator to add it to requests.allowedFields of the model",
        )


def _refused(name: str) -> Denied:
    return Denied(400, "not_offered", f"Field {name} is not supported: {_REASONS[name]}")


def added_fields(
    request: RequestBody, upstream: ModelUpstream, namespace: str, *, shared: bool
) -> Mapping[str, Any]:
    """The fields that the gateway sets for the privacy of callers; they replace the caller's own.

    In a prefix cache that tenants share, `cached_tokens` of a guessed prompt reveals what others asked. A
    shared backend gets a salt by the namespace. Of a provider's `prompt_cache_key` the caller's part is kept
    within its namespace. `store` is false at a provider's API for responses, whose default is true.

    Args:
        shared: whether other namespaces use the same backend.
    """
    if upstream.provider is None:
        if shared and upstream.salts_cache and request.endpoint.output_fields:
            return {"cache_salt": _salt_of_namespace(upstream.salt_key, namespace)}
        return {}
    added: dict[str, Any] = {}
    if request.endpoint.dialect == "responses" and "store" not in upstream.allowed_fields:
        added["store"] = _FALSE
    key = request.fields.get("prompt_cache_key")
    if key is not None and bytes(key) != b"null":
        added["prompt_cache_key"] = salt(upstream.salt_key, namespace, bytes(key))
    return added


@lru_cache(4096)
def _salt_of_namespace(key: bytes, namespace: str) -> str:
    """Cached, because every call of a namespace has the same."""
    return salt(key, namespace)


def salt(key: bytes, namespace: str, more: bytes = b"") -> str:
    """32 hex digits that are the same at every gateway and do not reveal the namespace.

    >>> salt(b"uid", "team-a") == salt(b"uid", "team-a"), salt(b"uid", "team-a") == salt(b"uid", "team-b")
    (True, False)
    """
    text = namespace.encode() + b"\0" + more
    return hmac.new(key, text, hashlib.sha256).hexdigest()[: 2 * _SALT_BYTES]
