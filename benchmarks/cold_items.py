"""Items that came after training: how well features and text place them, against chance.

A hundred films are hidden from a SASRec's training and added to its service afterwards. Each time someone took one of them, the hundred are
ranked behind what that user had taken before; the figures are over these rankings, and chance is a random order of the hundred.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from benchmarks.common import arguments, report
from recsys_core import create
from recsys_core.data import Dataset, Histories, Jagged, load_dataset
from recsys_core.serving import NewItem, Service, sentence_encoder

HIDDEN, FEWEST = 100, 20
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


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--questions", type=int, default=3000)
    options = parser.parse_args()
    dataset, encode, rows = load_dataset("ml-100k"), sentence_encoder(), []
    for seed in range(options.seeds):
        frequent = np.flatnonzero(dataset.item_counts >= FEWEST)
        hidden = np.sort(np.random.default_rng(seed).choice(frequent, HIDDEN, replace=False))
        seen = without(dataset, hidden)
        for features in (True, False):
            model = create("sasrec", seed=seed, epochs=options.epochs, features=features).fit(seen)
            for text in (True, False) if features else (True,):
                # Adding items changes a service's model; each arm starts from the trained one.
                service = Service.of(copy.deepcopy(model), seen)
                found = service.text_map(encode) if text else None
                service.add_items(new_items(dataset, hidden, features), found)
                histories, target = questions(dataset, service, hidden, options.questions, seed)
                scores = service.model.score(histories)[:, -HIDDEN:]
                rank = (scores >= scores[np.arange(len(target)), target][:, None]).sum(1)
                fit = {"text R2": found.r2, "text recall@10": found.recall, "by chance": found.chance} if found else dict.fromkeys(_FIT, "")
                rows.append({"seed": seed, "features": features, "text": text, "HR@10 of 100": float((rank <= 10).mean()), **fit})
    report("cold items", rows, options.csv)


if __name__ == "__main__":
    main()
