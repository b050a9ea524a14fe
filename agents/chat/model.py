"""A Hugging Face causal language model for inference on the CPU, and a key-value cache whose rows live and die on their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache
from transformers.utils import logging

from recsys_core.errors import DataError

_GROWTH = 256
"""Columns by which a cache grows at least; each growth copies it."""


def native_dtype() -> torch.dtype:
    """bfloat16 where the CPU multiplies it in hardware (AVX512-BF16, AMX, ARM BF16), else float32: emulated, it would be slower."""
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(able.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16")) else torch.float32


def load(folder: Path, dtype: torch.dtype) -> Any:
    """The model in `folder`, without a word on the terminal; runs no code from there. Raises DataError where it cannot be served."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"{folder} cannot be loaded as a causal language model: {' '.join(str(error).split())[:200]}") from error
    other = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention"}
    if other:
        raise DataError(f"{folder} has {', '.join(sorted(other))} layers; the embedded engine serves models with full attention only")
    return model


class Slots(Cache):
    """Keys and values of up to `rows` sequences; each has a row to itself and starts at column 0, whatever its neighbours do.

    A pass first says by `write` where its tokens go; memory grows with the longest sequence seen.
    """

    def __init__(self, rows: int) -> None:
        super().__init__(layers=[])
        self._rows = rows
        self._held: list[list[Tensor]] = []

    def write(self, first: int, columns: Tensor, width: int) -> None:
        """The next pass reads rows `first`, `first + 1`, .. and writes token (b, q) to columns[b, q]; -1 for padding.

        columns: [B, Q] int64; width: how many columns its attention mask covers.
        """
        self._index = torch.arange(first, first + len(columns))[:, None].expand_as(columns)
        self._columns, self._width = columns, width

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stores the new keys and values [B, heads, Q, size] of a layer; returns all that its mask covers."""
        new = (key_states, value_states)
        if layer_idx == len(self._held):
            self._held.append([tensor.new_zeros(self._rows, tensor.shape[1], 0, tensor.shape[3]) for tensor in new])
        held = self._held[layer_idx]
        first, last = int(self._index[0, 0]), int(self._index[-1, 0])
        for i, tensor in enumerate(new):
            # One column more than the mask covers: the last takes what padding writes.
            if held[i].shape[2] <= self._width:
                held[i] = torch.nn.functional.pad(held[i], (0, 0, 0, self._width + _GROWTH - held[i].shape[2]))
            held[i][self._index, :, self._columns] = tensor.transpose(1, 2)
        keys, values = (tensor[first : last + 1, :, : self._width] for tensor in held)
        return keys, values

    def copy(self, source: int, target: int, columns: int) -> None:
        """Copies the first columns of one row to another."""
        for layer in self._held:
            for tensor in layer:
                tensor[target, :, :columns] = tensor[source, :, :columns]
