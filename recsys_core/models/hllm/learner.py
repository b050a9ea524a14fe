"""A training step of HLLM: every text once, then InfoNCE."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from recsys_core.language.decoder import decoder_layers
from recsys_core.models.hllm.network import HLLMNetwork
from recsys_core.sequence.batch import SequenceBatch
from recsys_core.sequence.losses import distinct_uniform, log_q
from recsys_core.sequence.recommender import SequenceLearner, similarity_scale, similarity_vectors
from recsys_core.training.compiling import check_compiler


class HLLMLearner(SequenceLearner):
    """A network with a training log. The loss is that of the paper's equation 1 for `softmax`, `cosine` and `shared` negatives."""

    network: HLLMNetwork

    def forward(self, batch: SequenceBatch) -> Tensor:
        assert batch.targets is not None
        return self.info_nce(batch, self.drawn(batch.targets))

    def translated(self, device: torch.device) -> nn.Module:
        # A decoder's layers are alike, so one translation serves all; the network as a whole would take minutes.
        check_compiler(device)
        for layer in decoder_layers(self.network):
            layer.compile(dynamic=True)
        return self

    def drawn(self, targets: Tensor) -> Tensor:
        """The negatives [N] int64 of a step with such targets [T]: item ids, which all its positions share."""
        count = self.config.negatives
        if self.config.sampling == "in-batch":
            return targets[torch.randint(len(targets), (count,), device=targets.device)]
        return distinct_uniform(self.n_items, self.n_items if self.config.sampling == "all" else count, targets.device)

    def info_nce(self, batch: SequenceBatch, drawn: Tensor) -> Tensor:
        """The sum of the losses of a batch's positions against negatives [N], a scalar."""
        config, network, targets = self.config, self.network, batch.targets
        assert targets is not None
        start = batch.tokens == self.n_items
        # An item is often in several histories, a target here and history there; its text is read once.
        texts, places = torch.unique(torch.cat([targets, drawn, batch.tokens[~start]]), return_inverse=True)
        target, negative, token = places.split([len(targets), len(drawn), len(places) - len(targets) - len(drawn)])
        tokens = torch.full_like(batch.tokens, len(texts)).masked_scatter(~start, token)
        vectors = network.embedding.read(texts)
        states = network.states(network.embedding.among(vectors, tokens), replace(batch, tokens=tokens))
        with torch.autocast(states.device.type, enabled=False):
            states, vectors = similarity_scale(config, states), similarity_vectors(config, vectors)
            scores = states @ vectors[negative].T
            if config.sampling == "in-batch" and config.loss == "softmax":
                scores = log_q(scores, self.get_buffer("log_frequency")[drawn])
            return self._sampled((states * vectors[target]).sum(1), scores, targets[:, None] == drawn).sum()
