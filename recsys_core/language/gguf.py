"""From a GGUF file to a folder in Hugging Face's layout: `config.json`, `model.safetensors` (bfloat16) and `tokenizer.json`.

Done once and cached: dequantizing 4-bit blocks takes seconds, memory-mapping the result does not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from recsys_core.errors import DataError
from recsys_core.extras import optional

VERSION = "bf16-1"
"""Names the result of `convert`; part of the embedded model's identity."""
_PURPOSE = "converting a GGUF file"

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_CONTROL = 3
"""GGUF token type of a control token."""


def convert(source: Path, out: Path) -> None:
    """Converts the one `.gguf` file in folder `source`; tensor names and config keys are those of Hugging Face's LlamaForCausalLM."""
    gguf = optional("gguf", "llm", _PURPOSE)
    files = sorted(source.glob("*.gguf"))
    if len(files) != 1:
        raise DataError(f"{source} holds {len(files)} .gguf files; expected 1")
    reader = gguf.GGUFReader(files[0])
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise DataError(f"{files[0].name} is a {fields['general.architecture']!r} model; only 'llama' models can be converted")
    config = _config(fields)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    _save_tokenizer(fields, out / "tokenizer.json")
    _save_tensors(reader.tensors, config, out / "model.safetensors")


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": float(np.float32(fields["llama.attention.layer_norm_rms_epsilon"])),
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "tie_word_embeddings": True,
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "dtype": "bfloat16",
    }


def _save_tokenizer(fields: dict[str, Any], path: Path) -> None:
    """SmolLM's tokenizer: byte-level BPE that splits numbers into digits (`tokenizer.ggml.pre` = smollm)."""
    tokenizers = optional("tokenizers", "llm", _PURPOSE)
    if fields["tokenizer.ggml.pre"] != "smollm":
        raise DataError(f"tokenizer kind {fields['tokenizer.ggml.pre']!r} is unknown; only 'smollm' can be converted")
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"]]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    digits, byte_level = (
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in control])
    tokenizer.save(str(path))


def _save_tensors(tensors: Any, config: dict[str, Any], path: Path) -> None:
    dequantize = optional("gguf", "llm", _PURPOSE).dequantize
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    state = {}
    for tensor in tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        block, _, rest = tensor.name.partition(".")
        if block == "blk":
            layer, kind, _ = rest.split(".")
            name = f"model.layers.{layer}.{_LAYER[kind]}"
            if kind in heads:
                values = _to_half_rotary(values, heads[kind])
        else:
            name = _TOP[block]
        state[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
    save_file(state, path, metadata={"format": "pt"})


def _to_half_rotary(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF rotates neighbouring dimensions (0,1), (2,3), ..; Llama here rotates (i, i + d/2). Reorders the rows of each head."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
