"""Our SASRec by our trainer and evaluator.

windows `all` trains every item of the log once an epoch; `latest` gives the model each user's latest `max_length` items alone, which is
what RecTools trains on.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

import recsys_core
from benchmarks.peers.job import Job, Watch, answer
from recsys_core.data import Dataset, leave_one_out, load_dataset
from recsys_core.data.features import Features
from recsys_core.evaluation.evaluate import evaluate
from recsys_core.evaluation.metrics import rank


def main() -> None:
    job = Job.read()
    torch.set_num_threads(job.threads)
    split = leave_one_out(replace(load_dataset("ml-100k"), features=Features()))
    train = split.train if job.windows == "all" else latest(split.train, job.max_length)
    windows = int(np.ceil(np.diff(train.offsets) / job.max_length).sum())
    batch_size = max(1, round(job.batch * windows / len(train)))
    sampling = {"loss": "softmax", "sampling": "all"} if job.loss == "full" else {"loss": "bce", "sampling": "uniform", "negatives": 1}
    model = recsys_core.create(
        "sasrec",
        dim=job.dim,
        blocks=job.blocks,
        heads=job.heads,
        inner=1,
        max_length=job.max_length,
        dropout=job.dropout,
        batch_size=batch_size,
        learning_rate=job.learning_rate,
        warmup=0.0,
        schedule="constant",
        epochs=job.epochs(len(train)),
        seed=job.seed,
        **sampling,
    )
    epochs, evaluations = Watch(), Watch()

    def between(share: float, text: str) -> None:
        if ", loss " in text:  # an epoch's end; other calls tell steps
            epochs.stop()
            epochs.start()

    epochs.start()
    model.fit(train, between)
    found = evaluations.repeat(job.evaluations, lambda: evaluate(model, split.test, ("HR@10", "NDCG@10", "MRR@10", "Recall@10"))).means
    ranking = rank(model.scores(split.test.histories), split.test.targets, split.test.histories.items)
    answer(
        epochs,
        evaluations,
        targets=len(train),
        steps=-(-windows // batch_size),
        users=len(split.test),
        own=found,
        ranks={split.train.users.ids[u]: int(r) for u, r in zip(split.test.users, ranking.ranks.values, strict=True) if np.isfinite(r)},
        parameters=sum(p.numel() for p in model.network.parameters()),
    )


def latest(train: Dataset, count: int) -> Dataset:
    """The last `count` interactions of each user."""
    left = np.repeat(train.offsets[1:], np.diff(train.offsets)) - np.arange(len(train))
    keep = np.zeros(len(train), bool)
    keep[train.order[left <= count]] = True
    return train.rows(keep)


if __name__ == "__main__":
    main()
