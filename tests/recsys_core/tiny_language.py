"""A decoder of two small layers with random weights and a tokenizer of its own, in Hugging Face's layout."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

CONTROL = "<|im_start|>"


@functools.cache
def tiny_decoder(width: int = 32) -> str:
    """The folder of a Llama of 2 layers, made once a process."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(tempfile.mkdtemp(prefix="tiny-decoder-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["Film Comedy Drama Horror Western compress the following"] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(CONTROL, special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 2
    return str(folder)


def tiny(**fields: Any) -> dict[str, Any]:
    """Settings of a small HLLM on it."""
    folder = tiny_decoder()
    small = {
        "item_model": folder,
        "user_model": folder,
        "max_length": 8,
        "epochs": 2,
        "negatives": 16,
        "learning_rate": 1e-3,
        "prompt": "the",
    }
    return {**small, **fields}


@functools.cache
def tiny_of(kind: str) -> str:
    """The folder of a model of another family with that tokenizer: `gpt2`, of 40 learned places, or `bert`, which reads both ways."""
    from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

    folder = Path(tempfile.mkdtemp(prefix=f"tiny-{kind}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copy(Path(tiny_decoder()) / "tokenizer.json", folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gpt2":
            made = GPT2Model(GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=40))
        else:
            shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
            made = BertModel(BertConfig(vocab_size=400, max_position_embeddings=40, **shape))
        made.save_pretrained(folder)
    return str(folder)
