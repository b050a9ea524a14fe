"""Items that came after training: how well features and text place them, against chance.

A hundred films are hidden from a training and added to the model's service afterwards. Each time someone took one of them, the hundred are
ranked behind what that user had taken before; the figures are over these rankings, and chance is a random order of the hundred. SASRec gets
their vectors from features, from a map that learned to guess vectors from text, or both; HLLM reads their titles and genres itself.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.common import arguments, report
from recsys_core import create
from recsys_core.data import Dataset, Histories, Jagged, load_dataset
from recsys_core.recommender import Recommender
from recsys_core.serving import NewItem, Service, TextMap, sentence_encoder

HIDDEN, FEWEST = 100, 20
HLLM = {"train_item_model": False, "user_layers": 2, "sampling": "all", "epochs": 4, "batch_size": 32, "learning_rate": 1e-3}
"""The settings of results/ml-100k-text.toml, in float32."""
_FIT = ("text R2", "text recall@10", "by chance")


def without(dataset: Dataset, hidden: np.ndarray) -> Dataset:
    """The dataset as it was before the hidden items [H] existed."""
    kept = np.setdiff1d(np.arange(len(dataset.items)), hidden)
    dense = np.full(len(dataset.items), -1)
    dense[kept] = np.arange(len(kept))
    rows = dense[dataset.item] >= 0
    part = dataset.rows(rows)
    return replace(
        dataset, name=f"{dataset.name}/cold", items=dataset.items.take(kept), user=part.user, item=dense[part.item].astype(np.int64),
        timestamp=part.timestamp, rating=part.rating, titles=tuple(dataset.titles[i] for i in kept),
        tags=tuple(dataset.tags[i] for i in kept), features=part.features.of_owners(np.arange(len(dataset.users)), kept),
    )  # fmt: skip


def new_items(dataset: Dataset, hidden: np.ndarray, features: bool) -> list[NewItem]:
    """What is known of the hidden items: titles and tags, and genres and year as features where asked."""
    year = next(f for f in dataset.features.item if f.name == "year").values
    known = [{"genres": dataset.tags[i], "year": None if np.isnan(year[i]) else float(year[i])} if features else {} for i in hidden]
    return [NewItem(dataset.items.ids[i], dataset.titles[i], dataset.tags[i], k) for i, k in zip(hidden, known, strict=True)]


def questions(dataset: Dataset, service: Service, hidden: np.ndarray, count: int, seed: int) -> tuple[Histories, np.ndarray]:
    """Histories of others' items before someone took a hidden one, in the service's ids, and which of the hidden [B] it was."""
    rng = np.random.default_rng(seed)
    sequence, offsets = dataset.item[dataset.order], dataset.offsets
    places = np.flatnonzero(np.isin(sequence, hidden))
    places = rng.permutation(places)[:count]
    rows = []
    for place in places:
        start = offsets[np.searchsorted(offsets, place, "right") - 1]
        before = sequence[start:place]
        rows.append(service.catalogue.ids.encode(dataset.items.decode(before[~np.isin(before, hidden)])))
    return Histories(Jagged.from_rows(rows), np.full(len(rows), -1)), np.searchsorted(hidden, sequence[places])


def asked(model: Recommender, seen: Dataset, items: list[NewItem], encode: TextMap.Encoder | None) -> tuple[Service, dict[str, Any]]:
    """A service of the model with the new items, and how well its text map fits, where text is encoded for one."""
    # Adding items changes a service's model; each arm starts from the trained one.
    service = Service.of(copy.deepcopy(model), seen)
    found = service.text_map(encode) if encode else None
    service.add_items(items, found)
    return service, {"text R2": found.r2, "text recall@10": found.recall, "by chance": found.chance} if found else dict.fromkeys(_FIT, "")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15, help="of SASRec")
    parser.add_argument("--questions", type=int, default=3000)
    parser.add_argument("--models", default="sasrec,hllm")
    options = parser.parse_args()
    dataset, encode, rows = load_dataset("ml-100k"), sentence_encoder(), []
    for seed in range(options.seeds):
        frequent = np.flatnonzero(dataset.item_counts >= FEWEST)
        hidden = np.sort(np.random.default_rng(seed).choice(frequent, HIDDEN, replace=False))
        seen = without(dataset, hidden)
        arms: list[tuple[Recommender, bool, bool]] = []
        if "sasrec" in options.models:
            for features in (True, False):
                model = create("sasrec", seed=seed, epochs=options.epochs, features=features).fit(seen)
                arms += [(model, features, text) for text in ((True, False) if features else (True,))]
        if "hllm" in options.models:
            arms.append((create("hllm", seed=seed, **HLLM).fit(seen), False, True))
        for model, features, text in arms:
            mapped = encode if text and model.name == "sasrec" else None
            service, fit = asked(model, seen, new_items(dataset, hidden, features), mapped)
            histories, target = questions(dataset, service, hidden, options.questions, seed)
            scores = service.model.score(histories)[:, -HIDDEN:]
            rank = (scores >= scores[np.arange(len(target)), target][:, None]).sum(1)
            arm = {"model": model.name, "seed": seed, "features": features, "text": text}
            rows.append({**arm, "HR@10 of 100": float((rank <= 10).mean()), **fit})
            print(rows[-1], flush=True)
    report("cold items", rows, options.csv)


if __name__ == "__main__":
    main()
