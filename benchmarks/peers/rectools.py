"""RecTools' SASRec by its own dataset, Lightning trainer, recommender and metrics.

RecTools trains every position of a user's latest `max_length` + 1 items in one pass and never sees older ones. Its catalogue is the items
of those windows.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import MRR, NDCG, HitRate, Recall, calc_metrics
from rectools.models import SASRecModel

from benchmarks.peers.job import Job, Watch, answer


class Timer(Callback):
    """A watch around each epoch of Lightning's loop."""

    def __init__(self) -> None:
        self.watch = Watch()

    def on_train_epoch_start(self, *_: Any) -> None:
        self.watch.start()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.watch.stop()


def main() -> None:
    job = Job.read()
    os.chdir(job.scratch)
    warnings.simplefilter("ignore")
    torch.set_num_threads(job.threads)
    seed_everything(job.seed)
    train, known, test = parts(job)
    targets = int((train.groupby(Columns.User).size() - 1).clip(0, job.max_length).sum())
    timer = Timer()
    users = known[Columns.User].unique()
    model = SASRecModel(
        n_factors=job.dim,
        n_blocks=job.blocks,
        n_heads=job.heads,
        dropout_rate=job.dropout,
        session_max_len=job.max_length,
        loss="softmax" if job.loss == "full" else "BCE",
        n_negatives=1,
        lr=job.learning_rate,
        batch_size=max(1, round(job.batch * len(users) / targets)),
        recommend_torch_device="cpu",
        get_trainer_func=lambda: Trainer(
            max_epochs=job.epochs(targets),
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=[timer],
        ),
    )
    model.fit(Dataset.construct(train))
    timer = next(c for c in model.fit_trainer.callbacks if isinstance(c, Timer))  # fit works on a copy of the trainer
    history = Dataset.construct(known)
    metrics = {"HR@10": HitRate(10), "NDCG@10": NDCG(10, divide_by_achievable=True), "MRR@10": MRR(10), "Recall@10": Recall(10)}

    def evaluate() -> tuple[Any, Any]:
        lists = model.recommend(users, history, k=10, filter_viewed=True)
        return lists, calc_metrics(metrics, lists, test)

    evaluations = Watch()
    lists, found = evaluations.repeat(job.evaluations, evaluate)
    hits = lists.merge(test, on=[Columns.User, Columns.Item])
    answer(
        timer.watch,
        evaluations,
        targets=targets,
        steps=-(-len(users) // model.batch_size),
        users=len(users),
        own={name: float(found[name]) for name in ("NDCG@10", "HR@10")},
        ranks={str(u): int(r) for u, r in zip(hits[Columns.User], hits[Columns.Rank], strict=True)},
        parameters=sum(p.numel() for p in model.torch_model.parameters()),
    )


def parts(job: Job) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Training log, what is known when the test item is asked for, and the test items."""
    log = pd.read_csv(
        Path(job.log) / "ml-100k.inter", sep="\t", dtype=np.int64, names=[Columns.User, Columns.Item, Columns.Datetime], skiprows=1
    )
    log[Columns.Datetime] = pd.to_datetime(log[Columns.Datetime], unit="s")
    log[Columns.Weight] = 1
    left = log.sort_values(Columns.Datetime, kind="stable").groupby(Columns.User).cumcount(ascending=False)
    return log[left >= 2], log[left >= 1], log[left == 0]


if __name__ == "__main__":
    main()
