"""From item vectors to semantic ids, by one of two quantizers."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kernels.residual_quantize import residual_quantize
from recsys_core.errors import DataError
from recsys_core.progress import Progress, silent
from recsys_core.recommender import FitOptions
from recsys_core.semantic.ids import SemanticIds
from recsys_core.semantic.kmeans import residual_kmeans
from recsys_core.semantic.rqvae import RQVAE, RQVAELearner
from recsys_core.training import Trainer, TrainingConfig, pick_device
from recsys_core.training.distributed import World


class TokenizerConfig(TrainingConfig):
    """How vectors become codes. The fields of training are of the RQ-VAE alone; k-means needs none of them but the seed."""

    kind: Literal["kmeans", "rqvae"] = "kmeans"
    """`kmeans`: a codebook a level, by k-means over what is left; `rqvae`: the paper's autoencoder."""
    levels: int = Field(3, ge=1)
    """Codes an item, before the one that tells items apart."""
    size: int = Field(256, ge=2)
    """Codes a level."""
    beta: float = Field(0.25, ge=0)
    """Weight of the RQ-VAE's commitment loss."""
    epochs: int = Field(500, ge=1)
    """Passes over the vectors."""
    batch_size: int = Field(1024, ge=1)
    """Vectors a step."""


def tokenize(vectors: Tensor, config: TokenizerConfig, device: str = "auto", progress: Progress | None = None) -> SemanticIds:
    """Semantic ids of items with vectors [I, D], a function of both and of the kind of device; raises DataError for NaN or no items."""
    if vectors.ndim != 2 or not len(vectors) or not bool(vectors.isfinite().all()):
        raise DataError(f"item vectors are {list(vectors.shape)}, or hold NaN or infinity; give finite ones, [I, D] of at least 1 item")
    where = pick_device(device)
    x = vectors.float().to(where)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(config.seed)
        if config.kind == "kmeans":
            codebooks = residual_kmeans(x, config.levels, config.size)
        else:
            network = RQVAE(x.shape[1], config.levels, config.size).to(where)
            Trainer(RQVAELearner(network, x, config.batch_size, config.beta), config, FitOptions(device=device), progress or silent).run()
            with torch.no_grad():
                x, codebooks = network.encoder(x), network.codebooks.detach()
    codes, _ = residual_quantize(x, codebooks)
    # Of several processes the first one's: in another, last bits may have chosen other codes.
    return SemanticIds.distinguish(World.join(device).gather(codes)[0], config.size, recipe(vectors, config))


def recipe(vectors: Tensor, config: TokenizerConfig) -> str:
    """A hash of what `tokenize` would make ids of."""
    text = f"{list(vectors.shape)} {config.model_dump_json()}"
    return hashlib.sha256(text.encode() + vectors.float().contiguous().numpy().tobytes()).hexdigest()
