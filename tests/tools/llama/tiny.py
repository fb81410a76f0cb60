"""A llama of 130,000 random weights in a GGUF file: what it says means nothing, what it counts is right."""

from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType

_EMBEDDING, _FEED_FORWARD, _BLOCKS, _HEADS, _CONTEXT = 64, 128, 2, 4, 512
_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def write(path: Path) -> None:
    """Write the model file, the same each time."""
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_EMBEDDING)
    writer.add_block_count(_BLOCKS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_EMBEDDING // _HEADS)
    tokens = _vocabulary(writer)
    random = np.random.default_rng(1)

    def weights(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32) * np.float32(0.05)

    ones = np.ones(_EMBEDDING, np.float32)
    writer.add_tensor("token_embd.weight", weights(tokens, _EMBEDDING))
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", weights(tokens, _EMBEDDING))
    for block in range(_BLOCKS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{norm}.weight", ones)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{block}.{name}.weight", weights(_EMBEDDING, _EMBEDDING))
        for name in ("ffn_gate", "ffn_up"):
            writer.add_tensor(f"blk.{block}.{name}.weight", weights(_FEED_FORWARD, _EMBEDDING))
        writer.add_tensor(f"blk.{block}.ffn_down.weight", weights(_EMBEDDING, _FEED_FORWARD))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _vocabulary(writer: GGUFWriter) -> int:
    """Every byte and every printable character is a token; returns how many there are."""
    special = [(b"<unk>", TokenType.UNKNOWN), (b"<s>", TokenType.CONTROL), (b"</s>", TokenType.CONTROL)]
    single = [(b"<0x%02X>" % byte, TokenType.BYTE) for byte in range(256)]
    printable = [(bytes((byte,)), TokenType.NORMAL) for byte in range(32, 127)]
    vocabulary = special + single + printable
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in vocabulary])
    writer.add_token_scores([0.0] * len(vocabulary))
    writer.add_token_types([int(sort) for _, sort in vocabulary])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(_TEMPLATE)
    return len(vocabulary)
