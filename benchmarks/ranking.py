"""Does HSTU's ranking head know which film a user will like? AUC and normalized entropy of 4 stars or more on MovieLens-100K.

The items judged are the held-out ones: each user's last film, liked or not. Beside the head stand the film's mean rating in training and
the sum of user and film effects, both shrunk, which need no network. Intervals are bootstrapped over users, seeds averaged first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import recsys_core
from benchmarks.common import arguments, report
from recsys_core.data import Dataset, Holdout, leave_one_out, load_dataset
from recsys_core.models.hstu import HSTU, ranking_report
from recsys_core.models.hstu.ranking import auc

LIKED = 4.0
SHRINKAGE = 5.0


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--part", choices=("valid", "test"), default="valid", help="choose on valid, report on test")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    split = leave_one_out(load_dataset("ml-100k"))
    holdout: Holdout = getattr(split, options.part)
    assert holdout.ratings is not None
    assert split.train.rating is not None
    yes, base_rate = holdout.ratings >= LIKED, float((split.train.rating >= LIKED).mean())
    rows = [
        row(name, yes, [scores], None)
        for name, scores in (("film mean", effects(split.train, holdout, users=False)), ("film and user", effects(split.train, holdout)))
    ]
    for time in ("none", "past", "target"):
        chances, entropies, tops = [], [], []
        for seed in range(options.seeds):
            model = recsys_core.create("hstu", seed=seed, time=time, actions=True, tasks=[LIKED], epochs=16)
            assert isinstance(model, HSTU)
            model.fit(split.train)
            chances.append(model.score_candidates(holdout.histories, holdout.targets.values[:, None])[:, 0, 0].astype(np.float64))
            entropies.append(ranking_report(model, holdout, (base_rate,))[0].normalized_entropy)
            tops.append(recsys_core.evaluate(model, holdout, ("NDCG@10",)).means["NDCG@10"])
        rows.append(row(f"hstu, time {time}", yes, chances, entropies) | {"retrieval NDCG@10": float(np.mean(tops))})
        print(rows[-1], flush=True)
    title = f"ranking head, ml-100k {options.part}, {len(yes)} users, {yes.mean():.3f} liked, split {split.content_hash[:12]}"
    report(title, [{**{"retrieval NDCG@10": ""}, **r} for r in rows], options.csv)


def effects(train: Dataset, holdout: Holdout, users: bool = True) -> NDArray[np.float64]:
    """Mean rating of the held-out film, plus, where asked, what its user gives above the films' means; both shrunk towards 0."""
    assert train.rating is not None
    rating = train.rating.astype(np.float64) - train.rating.mean()
    count = np.bincount(train.item, minlength=len(train.items))
    film = np.bincount(train.item, rating, len(train.items)) / (count + SHRINKAGE)
    scores: NDArray[np.float64] = film[holdout.targets.values]
    if users:
        given = np.bincount(train.user, minlength=len(train.users))
        person = np.bincount(train.user, rating - film[train.item], len(train.users)) / (given + SHRINKAGE)
        scores = scores + person[holdout.users]
    return scores


def row(name: str, yes: NDArray[np.bool_], scores: list[NDArray[np.float64]], entropies: list[float] | None) -> dict[str, object]:
    """One row of the table."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, len(yes), len(yes)) for _ in range(1000)]
    low, high = np.quantile([np.mean([auc(yes[d], s[d]) for s in scores]) for d in drawn], (0.025, 0.975))
    value = np.mean([auc(yes, s) for s in scores])
    entropy = "" if entropies is None else f"{np.mean(entropies):.3f} ({min(entropies):.3f} to {max(entropies):.3f})"
    return {"score": name, "seeds": len(scores), "AUC": f"{value:.3f} [{low:.3f}, {high:.3f}]", "normalized entropy": entropy}


if __name__ == "__main__":
    main()
