"""TIGER on Amazon Beauty: how good its lists are, what its semantic ids are like, and what the beam search costs and misses.

The settings are those of benchmarks/results/tiger.toml. Each `--set "field=value ..."` trains one variant of them, so that several can be
compared on the validation part; only with `--test` is the test part looked at. Models are trained with early stopping on the first
`--valid-users` users of the validation part, and ranked in the full catalogue by exact scores.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.common import arguments, report
from recsys_core import create, evaluate
from recsys_core.data import Dataset, Histories, Holdout, Split
from recsys_core.data.jagged import Ints
from recsys_core.models.tiger import TIGER
from recsys_core.recommender import FitOptions
from workbench.config import Experiment
from workbench.data import load_split

SETTINGS = Path(__file__).parent / "results" / "tiger.toml"
WIDTHS = (10, 20, 64, 256, 1024)
K = 10
R = TypeVar("R")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--set", action="append", default=[], help='fields of a variant, "field=value field=value"; may be given several times'
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--valid-users", type=int, default=5000, help="users of the validation part that decide when to stop, and among variants"
    )
    parser.add_argument("--search-users", type=int, default=4096, help="users whose lists are timed, 0 for none")
    parser.add_argument("--test", action="store_true", help="judge on the test part; without, on those users")
    parser.add_argument("--folder", type=Path, help="where checkpoints, semantic ids and trained models are kept")
    options = parser.parse_args()
    # TF32 on a GPU: three decimal digits a factor, float32 sums.
    torch.set_float32_matmul_precision("high")
    grid = Experiment.load(SETTINGS).grid
    assert grid is not None
    _, split = load_split(grid.data[0])
    users = min(options.valid_users, len(split.valid))
    some = Holdout(split.valid.histories.slice(0, users), split.valid.targets.take(range(users)))
    part = split.test if options.test else some
    rows, searches = [], []
    with TemporaryDirectory() as scratch:
        for text in options.set or [""]:
            for seed in range(options.seeds):
                name = f"{text or 'as set'}, seed {seed}"
                config = {**grid.models[0].config, **dict(field(pair) for pair in text.split()), "seed": seed}
                folder = (options.folder or Path(scratch)) / "".join(c if c.isalnum() else "-" for c in name)
                model, trained = train(name, split.train, some, config, folder)
                rows.append({"variant": name, **trained, **quality(model, part, split, grid.metrics)})
                print(json.dumps(rows[-1]), flush=True)
                model.save(folder / "model")
                if options.search_users:
                    searches += [{"variant": name, **row} for row in search(model, part.histories.slice(0, options.search_users))]
    where = "test" if options.test else "validation"
    report(f"TIGER on {split.train.name}, {where} part, {len(part)} users, full catalogue", rows, options.csv)
    if searches:
        file = options.csv and options.csv.with_stem(f"{options.csv.stem}-search")
        report(f"Lists of {K} for {min(options.search_users, len(part))} users, against the full ranking", searches, file)


def field(pair: str) -> tuple[str, Any]:
    """A field and its value, read as JSON where it is JSON."""
    name, _, value = pair.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def train(name: str, log: Dataset, some: Holdout, config: dict[str, Any], folder: Path) -> tuple[TIGER, dict[str, Any]]:
    """A trained model, and what training was like; a line an epoch is printed."""
    start = time.perf_counter()

    def say(share: float, text: str) -> None:
        # Not the lines within an epoch, nor the autoencoder's many short ones.
        if ", step " not in text and "ids: epoch" not in text:
            print(f"[{name}] {time.perf_counter() - start:5.0f} s, {share:4.0%}, {text}", flush=True)

    model = create("tiger", **config)
    assert isinstance(model, TIGER)
    model.fit(log, say, FitOptions(validation=some, folder=folder))
    epochs = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    # The first epoch records the CUDA graph.
    steady = epochs[1:] or epochs
    first = epochs[0]["step"] if len(epochs) > 1 else 0
    best = max((e["ndcg"] or 0.0, -e["epoch"]) for e in epochs)
    shown = {
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "collide": model.ids.collision_rate,
        "codes in use": " ".join(f"{p:.0f}" for p in model.ids.perplexities[:-1]),
        "last level": model.ids.sizes[-1],
        "steps": epochs[-1]["step"],
        "steps/s": (epochs[-1]["step"] - first) / sum(e["seconds"] for e in steady),
        "best epoch": -best[1],
        "validation NDCG@10": best[0],
        "fit s": time.perf_counter() - start,
        "peak MiB": (max(e["peak_memory"] or 0 for e in epochs)) / 2**20,
    }
    return model, shown


def quality(model: TIGER, part: Holdout, split: Split, metrics: tuple[str, ...]) -> dict[str, Any]:
    """Means, with 95% intervals over users where a metric has values a user."""
    start = time.perf_counter()
    found, row = evaluate(model, part, metrics, train=split.train), dict[str, Any]()
    for metric, mean in found.means.items():
        row[metric] = mean
        if metric in found.values:
            row[f"{metric} low"], row[f"{metric} high"] = found.interval(metric)
    return {**row, "ranking ms a user": 1e3 * (time.perf_counter() - start) / len(part)}


def search(model: TIGER, histories: Histories) -> Iterator[dict[str, Any]]:
    """What lists cost by a full ranking and by beams of several widths, and how often a beam's list is the full ranking's.

    "with proof" is what `recommend` does: lists that are not proven are ranked in full.
    """
    config, users = model.config, len(histories)

    def timed(make: Callable[[Histories], R]) -> tuple[R, float]:
        make(histories.slice(0, 256))
        start = time.perf_counter()
        found = make(histories)
        return found, 1e3 * (time.perf_counter() - start) / users

    def recommend(beams: int) -> tuple[Ints, float]:
        model.config = config.model_copy(update={"beams": beams, "proof": True})
        try:
            return timed(lambda some: model.recommend(some, K).items)
        finally:
            model.config = config

    best, cost = recommend(0)
    nodes = sum(map(len, model.network.trie.asked(config.softmax == "codebook")))
    one = {"same items": 1.0, "same order": 1.0, "proven": 1.0}
    yield {"search": "full ranking", "prefixes": nodes, "ms a user": cost, **one, "ms a user with proof": cost}
    for width in WIDTHS:
        (lists, proven), cost = timed(lambda some, width=width: model.beam(some, K, width=width))  # type: ignore[misc]
        items = (np.sort(lists.items, 1) == np.sort(best, 1)).all(1)
        order = (lists.items == best).all(1)
        yield {
            "search": f"beam {width}", "prefixes": 1 + width * (model.ids.levels - 1), "ms a user": cost, "same items": items.mean(),
            "same order": order.mean(), "proven": proven.mean(), "ms a user with proof": recommend(width)[1],
        }  # fmt: skip


if __name__ == "__main__":
    main()
