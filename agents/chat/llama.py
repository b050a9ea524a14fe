"""A Llama decoder for inference over packed tokens.

Tokens of all sequences lie in one row `[T]`, so linear layers never see padding, and every sequence keeps its keys and values from
column 0 of its own cache row, so a token's place does not depend on its neighbours in the batch. Only attention is padded.
The same forward pass serves prompts, single decode steps, several forced tokens at once, and trees of continuations (by mask).
Tests hold it against `transformers.LlamaForCausalLM`, whose import alone would take longer than loading these weights.
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Config:
    """Sizes, named as in Hugging Face's LlamaConfig."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float

    @classmethod
    def read(cls, path: Path) -> Config:
        """From a `config.json`."""
        body = json.loads(path.read_text())
        return cls(**{name: body[name] for name in cls.__dataclass_fields__})

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class KeyValues:
    """Attention keys and values, each [layers, rows, key heads, columns, head size]."""

    keys: Tensor
    values: Tensor

    def rows(self, start: int, stop: int) -> KeyValues:
        """A view of some rows."""
        return KeyValues(self.keys[:, start:stop], self.values[:, start:stop])

    def copy(self, source: int, target: int, columns: int) -> None:
        """Copies the first columns of one row to another."""
        for tensor in (self.keys, self.values):
            tensor[:, target, :, :columns] = tensor[:, source, :, :columns]


@dataclass(frozen=True)
class _Layer:
    norm_in: Tensor
    qkv: Tensor
    out: Tensor
    norm_mlp: Tensor
    gate_up: Tensor
    down: Tensor


class Llama:
    """Weights and the forward pass. Tied embeddings; bfloat16 or float32."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        from safetensors.torch import load_file

        self.config, self.dtype = Config.read(folder / "config.json"), dtype
        state = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
        self.embedding, self.norm = state["model.embed_tokens.weight"], state["model.norm.weight"]
        self.layers = [_layer(state, f"model.layers.{i}.") for i in range(self.config.num_hidden_layers)]
        half = torch.arange(0, self.config.head_size, 2).float() / self.config.head_size
        angles = torch.arange(self.config.max_position_embeddings).float()[:, None] / self.config.rope_theta**half
        self.cos, self.sin = (f(angles).repeat(1, 2).to(dtype) for f in (torch.cos, torch.sin))

    def cache(self, rows: int, columns: int) -> KeyValues:
        """An empty cache of zeros."""
        shape = (self.config.num_hidden_layers, rows, self.config.num_key_value_heads, columns, self.config.head_size)
        return KeyValues(_lazy_zeros(shape, self.dtype), _lazy_zeros(shape, self.dtype))

    def forward(self, ids: Tensor, rows: Tensor, columns: Tensor, positions: Tensor, kv: KeyValues, mask: Tensor) -> Tensor:
        """Final hidden states [T, hidden] of packed tokens, whose keys and values are written into `kv`.

        ids, rows, columns, positions: [T] int64; rows ascend; token t goes to `kv` at (rows[t], columns[t]), rotated by positions[t].
        mask: [B, Q, W] bool, True where the q-th new token of row b may look at column w of its cache row; Q is the largest number of
        new tokens in a row.
        """
        c = self.config
        batch, longest, width = mask.shape
        counts = torch.bincount(rows, minlength=batch)
        slot = torch.arange(len(ids)) - (counts.cumsum(0) - counts)[rows]
        packed = bool((counts == longest).all())
        groups = c.num_attention_heads // c.num_key_value_heads
        # Query heads that share a key head are laid along the query axis, so keys are never repeated.
        mask = mask[:, None, None].expand(batch, 1, groups, longest, width).reshape(batch, 1, groups * longest, width)
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        rotated_heads = c.num_attention_heads + c.num_key_value_heads
        # The residual stream stays in float32: rounded to bfloat16 at every layer, it costs more accuracy than all products together.
        x = self.embedding[ids].float()
        for i, layer in enumerate(self.layers):
            h = F.linear(self._normed(x, layer.norm_in), layer.qkv).view(len(ids), -1, c.head_size)
            rotated = _rotate(h[:, :rotated_heads], cos, sin)
            keys, values = kv.keys[i], kv.values[i]
            keys[rows, :, columns] = rotated[:, c.num_attention_heads :]
            values[rows, :, columns] = h[:, rotated_heads:]
            query = rotated[:, : c.num_attention_heads]
            if not packed:
                padded = query.new_zeros(batch, longest, c.num_attention_heads, c.head_size)
                padded[rows, slot] = query
                query = padded
            query = query.reshape(batch, longest, c.num_key_value_heads, groups, c.head_size).permute(0, 2, 3, 1, 4)
            query = query.reshape(batch, c.num_key_value_heads, groups * longest, c.head_size)
            seen = F.scaled_dot_product_attention(query, keys[:, :, :width], values[:, :, :width], attn_mask=mask)
            seen = seen.view(batch, c.num_key_value_heads, groups, longest, c.head_size).permute(0, 3, 1, 2, 4)
            seen = seen.reshape(batch, longest, c.hidden_size)
            seen = seen.reshape(-1, c.hidden_size) if packed else seen[rows, slot]
            x += F.linear(seen, layer.out)
            gate, up = F.linear(self._normed(x, layer.norm_mlp), layer.gate_up).chunk(2, -1)
            x += F.linear(F.silu(gate).mul_(up), layer.down)
        return self._normed(x, self.norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, hidden] to [N, vocabulary] float32 (computed in the model's own precision)."""
        return F.linear(hidden, self.embedding).float()

    def exact_logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Logits of chosen tokens [N, K] accumulated and kept in float32."""
        return torch.einsum("nh,nkh->nk", hidden.float(), self.embedding[tokens].float())

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self.config.hidden_size,), None, self.config.rms_norm_eps).to(self.dtype) * weight


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros whose pages take no memory until they are written, which `torch.zeros` does to all of them."""
    return torch.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)


def _layer(state: dict[str, Tensor], prefix: str) -> _Layer:
    def take(*names: str) -> Tensor:
        tensors = [state.pop(f"{prefix}{name}.weight") for name in names]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    return _Layer(
        take("input_layernorm"),
        take("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        take("self_attn.o_proj"),
        take("post_attention_layernorm"),
        take("mlp.gate_proj", "mlp.up_proj"),
        take("mlp.down_proj"),
    )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021), pairs (i, i + d/2)."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
