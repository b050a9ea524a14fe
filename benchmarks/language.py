"""What a training step of HLLM costs on Amazon Beauty: texts read, seconds, tokens a second, memory.

    python -m benchmarks.language --csv benchmarks/results/language.csv

A step is one of `workbench train`, with its optimizer. Tokens: of texts with their prompts and of sequences, without padding. FLOPs: 6 for
each token and each weight of a decoder's layers, what is computed again not counted. The first steps, which translate, are left out.
"""

from __future__ import annotations

import gc
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common import arguments, report
from recsys_core.data import Dataset, leave_one_out, load_dataset
from recsys_core.language.decoder import decoder_layers
from recsys_core.models.hllm import HLLM, HLLMConfig
from recsys_core.models.hllm.network import TrainedTexts
from recsys_core.progress import silent
from recsys_core.recommender import FitOptions
from recsys_core.training import Trainer

BASE: dict[str, Any] = {"batch_size": 128, "max_length": 24, "sampling": "in-batch", "negatives": 2048, "precision": "bfloat16"}
VARIANTS: dict[str, dict[str, Any]] = {
    "both trained": {},
    "both trained, compiled": {"compile": True},
    "both trained, recomputed": {"recompute": True},
    "item model frozen": {"train_item_model": False, "sampling": "all"},
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=12, help="steps that are timed")
    parser.add_argument("--warm", type=int, default=6, help="steps before these")
    parser.add_argument("--variants", default="", help="names, separated by |; default all")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=NUMBER", help="a field of HLLM, for all variants")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    dataset = leave_one_out(load_dataset("beauty-s3rec")).train
    given = {name: int(value) for name, _, value in (pair.partition("=") for pair in options.set)}
    rows = []
    for name, config in VARIANTS.items():
        if not options.variants or name in options.variants.split("|"):
            try:
                rows.append(measure(name, dataset, options.warm, options.steps, {**BASE, **config, **given}))
            except Exception as error:
                # One variant that this machine cannot run should not cost the others' figures.
                rows.append({"variant": name, "s a step": f"failed: {' '.join(str(error).split())[:80]}"})
            print(rows[-1], flush=True)
    whole = max(rows, key=len)
    report("HLLM, beauty-s3rec", [{**dict.fromkeys(whole, ""), **row} for row in rows], options.csv)


def measure(name: str, dataset: Dataset, warm: int, steps: int, config: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = HLLM(HLLMConfig(**config))
    model.items, model.n_users = dataset.items, len(dataset.users)
    torch.manual_seed(0)
    model._initialize(dataset)
    learner = model._learner(dataset)
    trainer = Trainer(learner, model.config, FitOptions(), silent)
    learner.train()
    batches = learner.epoch(np.random.default_rng(0), trainer.device)
    seconds, texts, tokens, work = [], [], [], []
    embedding = model.network.embedding
    lengths = embedding.get_buffer("offsets").diff() + len(model._words.prompt(model.config.prompt)) + 1
    weights = [sum(p.numel() for layer in decoder_layers(part) for p in layer.parameters()) for part in (embedding, model.network.user)]
    for number, batch in enumerate(batches[: warm + steps]):
        assert batch.targets is not None
        read = torch.cat([batch.targets, batch.tokens[batch.tokens < learner.n_items]]).unique()
        start = trainer._now()
        trainer._step(batch, learner.weight(batch))
        if number >= warm:
            seconds.append(trainer._now() - start)
            texts.append(len(read) if isinstance(embedding, TrainedTexts) else 0)
            tokens.append(int(lengths[read].sum()) if isinstance(embedding, TrainedTexts) else 0)
            work.append(6 * (tokens[-1] * weights[0] + len(batch.tokens) * weights[1]))
            tokens[-1] += len(batch.tokens)
    return {
        "variant": name,
        "s a step": round(median(seconds), 4),
        "slowest": round(max(seconds), 4),
        "steps an epoch": len(batches),
        "texts a step": round(float(np.mean(texts))),
        "tokens a second": round(float(np.mean(tokens)) / median(seconds)),
        "TFLOP/s": round(float(np.mean(work)) / median(seconds) / 1e12, 1),
        "peak MiB": round(torch.cuda.max_memory_allocated() / 2**20) if torch.cuda.is_available() else "",
    }


if __name__ == "__main__":
    main()
