"""Hugging Face decoders without their output layer: by asset name or folder, pretrained or not, whole or their first layers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from recsys_core import assets
from recsys_core.errors import DataError, UnknownNameError, unknown_name
from recsys_core.extras import optional
from recsys_core.files import sha256
from recsys_core.language.gguf import VERSION, convert

SMOLLM2 = "smollm2-135m-instruct"
_PURPOSE = "a language model inside a recommender"


def decoder_folder(name: str) -> Path:
    """The folder of a model: a local one in Hugging Face's layout, or that of an asset, which is fetched and converted on first use.

    Raises DataError for a path without `config.json` and UnknownNameError for a name that is neither.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(f"{path} is no model folder: config.json is missing; give a folder in Hugging Face's layout, or {SMOLLM2!r}")
        return path
    if name not in assets.assets():
        known = unknown_name("language model", name, [SMOLLM2])
        raise UnknownNameError(f"{known}, or a folder with config.json, *.safetensors and tokenizer.json")
    return assets.derived(name, VERSION, convert)


def fingerprint(folder: Path) -> str:
    """SHA-256 over the files that make a model; raises DataError that names the missing ones."""
    weights = sorted(folder.glob("*.safetensors"))
    files = [folder / "config.json", *(weights or [folder / "model.safetensors"]), folder / "tokenizer.json"]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        needed = "config.json, model.safetensors, tokenizer.json"
        raise DataError(f"{folder} is no model folder: {', '.join(missing)} missing; it needs {needed}")
    digest = hashlib.sha256()
    for path in files:
        digest.update(bytes.fromhex(sha256(path)))
    return digest.hexdigest()


def read_tokenizer(folder: Path) -> str:
    """The text of a model's `tokenizer.json`; raises DataError where there is none."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise DataError(f"{folder} has no tokenizer.json; save the tokenizer in that form beside the model")
    return file.read_text()


def decoder_config(folder: Path, layers: int | None) -> dict[str, Any]:
    """What describes the first `layers` layers (None: all) of the model in a folder, ready for JSON; DataError where it has fewer."""
    transformers = optional("transformers", "llm", _PURPOSE)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} describes no model that transformers knows: {_line(error)}") from error
    if layers is not None:
        if layers > config.num_hidden_layers:
            raise DataError(f"{layers} layers are asked of {folder}, which has {config.num_hidden_layers}; ask for at most those")
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    plain: dict[str, Any] = config.to_dict()
    return plain


def decoder_width(config: Mapping[str, Any]) -> int:
    """The width of a described decoder's states; families call it by different names."""
    transformers = optional("transformers", "llm", _PURPOSE)
    width: int = transformers.AutoConfig.for_model(**config).hidden_size
    return width


def new_decoder(config: Mapping[str, Any]) -> nn.Module:
    """A decoder of that shape with random weights, float32."""
    transformers = optional("transformers", "llm", _PURPOSE)
    known = transformers.AutoConfig.for_model(**{"dtype": "float32", **config, "use_cache": False})
    known.dtype = "float32"
    model: nn.Module = transformers.AutoModel.from_config(known, attn_implementation="sdpa")
    return model


def pretrained_decoder(folder: Path, config: Mapping[str, Any]) -> nn.Module:
    """The decoder with the weights in a folder, as float32; runs no code from there, unpickles nothing and says nothing on the terminal.

    Raises DataError for weights that are missing or of another shape.
    """
    transformers = optional("transformers", "llm", _PURPOSE)
    logging = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    known = transformers.AutoConfig.for_model(**{**config, "use_cache": False})
    try:
        model, found = transformers.AutoModel.from_pretrained(
            folder, config=known, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True, use_safetensors=True,
            trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{folder} cannot be loaded as a language model: {_line(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise DataError(f"{folder} lacks {len(missing)} of the model's weights, such as {missing[0]}; it holds another model")
    loaded: nn.Module = model
    return loaded


@torch.no_grad()
def check_decoder(decoder: nn.Module, name: str, tokens: int) -> None:
    """Raises DataError unless a model on the processor has places for so many tokens, and each reads itself and those before it alone.

    A model that looks ahead, such as BERT, would see in training what it is to predict.
    """
    places = getattr(decoder.config, "max_position_embeddings", None)
    if places is not None and places < tokens:
        raise DataError(f"{name} has places for {places} tokens and {tokens} would be read; lower max_length or text_length")
    width: int = decoder.config.hidden_size  # type: ignore[union-attr, assignment]
    # Two sequences that differ in their last token; no random numbers, so that training draws its own as without this look.
    one = torch.arange(3 * width).sin().view(3, width)
    pair = torch.stack([one, torch.cat([one[:2], one[:1]])])
    was = decoder.training
    try:
        states = decoder.eval()(inputs_embeds=pair, use_cache=False).last_hidden_state
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{name} is no decoder that reads vectors in place of words: {_line(error)}") from error
    finally:
        decoder.train(was)
    if not torch.allclose(states[0, :2], states[1, :2], rtol=1e-4, atol=1e-5):
        raise DataError(f"{name} reads later tokens too, as encoders do, and would see what it is to predict; give a decoder")


def decoder_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of all decoders in a module."""
    kinds = {kind for part in module.modules() for kind in getattr(part, "_no_split_modules", None) or ()}
    return [part for part in module.modules() if type(part).__name__ in kinds]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
