"""HLLM, a hierarchy of two language models (Chen et al. 2024, arXiv 2409.12740)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recsys_core.data.dataset import Dataset
from recsys_core.data.split import Holdout
from recsys_core.errors import DataError
from recsys_core.language.decoder import (
    check_decoder,
    decoder_config,
    decoder_folder,
    decoder_width,
    fingerprint,
    new_decoder,
    pretrained_decoder,
    read_tokenizer,
)
from recsys_core.language.reader import TextReader, TextTokens
from recsys_core.models.hllm.config import HLLMConfig
from recsys_core.models.hllm.learner import HLLMLearner
from recsys_core.models.hllm.network import FrozenTexts, HLLMNetwork, TextEmbedding, TrainedTexts
from recsys_core.sequence.batch import SequenceLog
from recsys_core.sequence.recommender import NextItemRecommender
from recsys_core.vectors import Value


class HLLM(NextItemRecommender):
    """Next-item prediction by an item model that turns texts into vectors and a user model that reads sequences of these.

    Item order is used, timestamps are not. No vector belongs to an id, so an item without interactions is ranked by its text as any other.
    Beyond the paper: sequences begin with a learned start token, so that an empty history has a trained score.
    """

    name = "hllm"
    reads_text = True
    Config = HLLMConfig
    config: HLLMConfig
    network: HLLMNetwork

    @property
    def training(self) -> str:
        return f"{super().training}, item texts" + ("" if self.config.train_item_model else " (item model frozen)")

    def _initialize(self, dataset: Dataset) -> None:
        if not dataset.titles and not dataset.tags:
            raise DataError(f"dataset {dataset.name!r} has no titles and no tags for {self.name} to read; read it with a file of items")
        config = self.config
        item, user = decoder_folder(config.item_model), decoder_folder(config.user_model)
        self.facts: dict[str, Any] = {
            "item_shape": decoder_config(item, config.item_layers),
            "user_shape": decoder_config(user, config.user_layers),
            "item_hash": fingerprint(item) if config.pretrained else "",
            "tokenizer": read_tokenizer(item),
        }
        self._words = TextTokens(self.facts["tokenizer"], config.text_length)
        super()._initialize(dataset)
        self.network.embedding.fill(self._words([dataset.text(n) for n in range(len(dataset.items))]))

    def _identity(self, dataset: Dataset, validation: Holdout | None) -> dict[str, str]:
        # The weights are a checkpoint's own; texts, and a frozen item model, are read anew.
        words = hashlib.sha256(self.facts["tokenizer"].encode()).hexdigest()
        return super()._identity(dataset, validation) | {"item model": self.facts["item_hash"], "tokenizer": words}

    def _network(self) -> HLLMNetwork:
        return self._assemble(self.config.pretrained)

    def _assemble(self, pretrained: bool) -> HLLMNetwork:
        """The network with the decoders' trained weights, or with random ones."""
        config = self.config
        user = _decoder(config.user_model, self.facts["user_shape"], pretrained, config.max_length)
        words: Tensor = user.get_input_embeddings().weight  # type: ignore[operator]
        count, dim, scale = len(self._catalogue()), words.shape[1], float(words.detach().std())
        embedding: TextEmbedding
        if config.train_item_model:
            embedding = TrainedTexts(count, self._reader(pretrained), dim, scale)
        else:
            size = decoder_width(self.facts["item_shape"])
            embedding = FrozenTexts(count, size, dim, scale, lambda: self._reader(config.pretrained))
        return HLLMNetwork(embedding, user, config.dropout)

    def _reader(self, pretrained: bool) -> TextReader:
        """The item model; a frozen one is the same whenever it is made."""
        config, prompt = self.config, self._words.prompt(self.config.prompt)

        def make() -> TextReader:
            # One that learns has a closing token behind the text.
            tokens = len(prompt) + config.text_length + config.train_item_model
            decoder = _decoder(config.item_model, self.facts["item_shape"], pretrained, tokens)
            return TextReader(decoder, prompt, config.train_item_model, config.piece, config.recompute)

        if config.train_item_model:
            return make()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return make().eval().requires_grad_(False)

    def _learner(self, dataset: Dataset) -> HLLMLearner:
        return HLLMLearner(self.network, self.config, SequenceLog.of(dataset), dataset.item_counts)

    def id_vectors(self) -> Tensor:
        return self.network.embedding.items().detach()

    @torch.inference_mode()
    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        reader, config = None, self.config
        if not config.train_item_model:
            if config.pretrained and fingerprint(folder := decoder_folder(config.item_model)) != self.facts["item_hash"]:
                raise DataError(f"{folder} holds another item model than this one was trained with; texts would be read differently")
            reader = self._reader(config.pretrained).to(self.network.embedding.start.device)
        tokens = self._words(texts)
        device = self.network.embedding.start.device
        return self.network.embedding.of_texts(
            reader, torch.from_numpy(tokens.values).to(device), torch.from_numpy(tokens.offsets).to(device)
        )

    def _append(self, vectors: Tensor, features: Sequence[Mapping[str, Value]]) -> None:
        self.network.embedding.append(vectors)

    def _meta(self) -> dict[str, Any]:
        return {"language": self.facts}

    def _load_meta(self, meta: dict[str, Any]) -> None:
        self.facts = meta["language"]
        self._words = TextTokens(self.facts["tokenizer"], self.config.text_length)

    def _state(self) -> dict[str, NDArray]:
        return {**super()._state(), "item_vectors": self.id_vectors().cpu().numpy()}

    def _load_state(self, state: dict[str, NDArray]) -> None:
        vectors = torch.from_numpy(state.pop("item_vectors"))
        self.network = self._assemble(pretrained=False).eval()
        self.network.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
        self.network.embedding.table = vectors


def _decoder(name: str, shape: Mapping[str, Any], pretrained: bool, tokens: int) -> nn.Module:
    """A decoder that was looked at, with its trained weights or random ones, for sequences of at most so many tokens."""
    made = pretrained_decoder(decoder_folder(name), shape) if pretrained else new_decoder(shape)
    check_decoder(made, name, tokens)
    return made
