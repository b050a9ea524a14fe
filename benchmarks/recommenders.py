"""Accuracy and speed of every recommender on MovieLens-100K, leave-one-out, full catalogue, three seeds, and HSTU against EASE by user."""

from __future__ import annotations

import time

from benchmarks.common import arguments, report
from recsys_core import compare, known_models
from recsys_core.data import leave_one_out, load_dataset
from workbench.config import ModelSettings
from workbench.loop import train_and_evaluate
from workbench.report import score_rows

METRICS = ("HR@10", "NDCG@10", "MRR")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--part", choices=("valid", "test"), default="valid", help="choose on valid, report on test")
    parser.add_argument("--models", default=",".join(known_models()))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    split = leave_one_out(load_dataset("ml-100k"))
    holdout = split.valid if options.part == "valid" else split.test
    models = [ModelSettings(name=name) for name in options.models.split(",")]
    start = time.perf_counter()
    trained = train_and_evaluate({"none": split.train}, holdout, models, options.seeds, METRICS, lambda share, text: None)
    rows = []
    for row, found in zip(score_rows(trained, METRICS), trained, strict=True):
        cells = {m: "{:.4f} [{:.4f}, {:.4f}]".format(*row["metrics"][m]) for m in METRICS}
        rows.append(
            {
                "model": found.model,
                "loss, negatives, time": row["training"],
                "seeds": len(found.runs),
                **cells,
                "fit s a seed": found.seconds / len(found.runs),
            }
        )
    report(f"recommenders, ml-100k {options.part}, split {split.content_hash[:12]}", rows, options.csv)
    by_name = {t.model: t.runs for t in trained}
    if {"hstu", "ease"} <= by_name.keys():
        for metric in METRICS:
            c = compare(by_name["hstu"], by_name["ease"], metric)
            print(f"hstu - ease, {metric}: {c.difference:+.4f} [{c.low:+.4f}, {c.high:+.4f}], p {c.p_value:.4f}, seeds {c.seeds_a}")
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
