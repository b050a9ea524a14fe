"""RecBole's SASRec by its own dataset, trainer and evaluator.

RecBole makes a padded sample of every prefix, so each target costs a forward pass over its whole history. Its evaluator keeps seen items
among the candidates of a sequential model; the figure with seen items removed is computed here beside it, untimed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed

from benchmarks.peers.job import Job, Watch, answer


class TimedTrainer(Trainer):
    """RecBole's trainer with a watch around each epoch."""

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.watch = Watch()

    def _train_epoch(self, *args: Any, **kwargs: Any) -> Any:
        self.watch.start()
        loss = super()._train_epoch(*args, **kwargs)
        self.watch.stop()
        return loss


def settings(job: Job) -> dict[str, Any]:
    full = job.loss == "full"
    return {
        "data_path": str(Path(job.log).parent),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "use_gpu": False,
        "seed": job.seed,
        "state": "ERROR",
        "show_progress": False,
        "checkpoint_dir": job.scratch,
        "MAX_ITEM_LIST_LENGTH": job.max_length,
        "hidden_size": job.dim,
        "inner_size": job.dim,
        "n_layers": job.blocks,
        "n_heads": job.heads,
        "hidden_act": "relu",
        "hidden_dropout_prob": job.dropout,
        "attn_dropout_prob": job.dropout,
        "loss_type": "CE" if full else "BPR",
        "train_neg_sample_args": None if full else {"distribution": "uniform", "sample_num": 1},
        "learning_rate": job.learning_rate,
        "train_batch_size": job.batch,
        "metrics": ["Hit", "NDCG", "MRR", "Recall"],
        "valid_metric": "NDCG@10",
    }


def main() -> None:
    job = Job.read()
    os.chdir(job.scratch)
    torch.set_num_threads(job.threads)
    config = Config(model="SASRec", dataset=Path(job.log).name, config_dict=settings(job))
    init_seed(job.seed, config["reproducibility"])
    dataset = create_dataset(config)
    train, _, test = data_preparation(config, dataset)
    config["epochs"] = job.epochs(len(train.dataset))
    model = SASRec(config, train.dataset)
    trainer = TimedTrainer(config, model)
    trainer.fit(train, saved=False, verbose=False)
    evaluations = Watch()
    found = evaluations.repeat(job.evaluations, lambda: trainer.evaluate(test, load_best_model=False))
    answer(
        trainer.watch,
        evaluations,
        targets=len(train.dataset),
        steps=len(train),
        users=len(test.dataset),
        own={"NDCG@10": float(found["ndcg@10"]), "HR@10": float(found["hit@10"])},
        ranks=unseen_ranks(model, test, dataset),
        parameters=sum(p.numel() for p in model.parameters()),
    )


@torch.no_grad()
def unseen_ranks(model: Any, test: Any, dataset: Any) -> dict[str, int]:
    """Rank of each user's test item (1 is best) with seen items removed, by external user id."""
    ranks = {}
    seen: dict[int, list[int]] = {}
    for user, item in zip(*(dataset.inter_feat[f].tolist() for f in (dataset.uid_field, dataset.iid_field)), strict=True):
        seen.setdefault(user, []).append(item)
    for interaction, _, _, positive in test:
        scores = model.full_sort_predict(interaction)
        scores[:, 0] = -torch.inf
        for user, target, row in zip(interaction[dataset.uid_field].tolist(), positive.tolist(), scores, strict=True):
            own = row[target].item()
            row[seen[user]] = -torch.inf
            ranks[dataset.id2token(dataset.uid_field, user)] = 1 + int((row >= own).sum())
    return ranks


if __name__ == "__main__":
    main()
