"""Ranking tasks from any dataset: held-out users, and as candidates what a trained recommender would show them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys_core.data import Dataset, Split
from recsys_core.data.split import Holdout
from recsys_core.errors import DataError
from recsys_core.recommender import Recommender
from workbench.prompts.tasks import DEV, TEST, TRAIN, Item, RankingTask, Row, lot, sizes

_USERS_AT_ONCE = 256


def rerank_task(
    recommender: Recommender,
    dataset: Dataset,
    split: Split,
    n: int = 20,
    train: int | None = None,
    dev: int | None = None,
    test: int | None = None,
    seed: int = 0,
    reached_only: bool = False,
) -> RankingTask:
    """Re-ranking the n best items of a recommender that was fitted on `split.train`, for random held-out users, none of them in two parts.

    Test rows are users of `split.test`, dev and train rows others of `split.valid`. Titles and tags are those of `dataset`. A part whose
    size is left open has 400, 50 or 200 rows (test, train, dev), fewer where this share of all users does not give as many.

    reached_only: draw users until enough have a positive among the n. What was missed is 0 in any order, so rows without one cost calls and
    tell nothing; metrics of all users are those of the rows times the share of users reached, which `source` gives for dev.
    Raises DataError, with sizes that fit, where there are too few users for those asked for.
    """
    usual = (TEST, TRAIN, DEV)
    parts: list[list[Row]] = []
    taken: set[int] = set()
    share = 1.0
    for asked_for, some, holdout, name in (
        (test, TEST, split.test, "test"),
        (train, TRAIN, split.valid, "train"),
        (dev, DEV, split.valid, "dev"),
    ):
        size = some if asked_for is None else asked_for
        free = [place for place, user in enumerate(holdout.users.tolist()) if user not in taken]
        free.sort(key=lambda place: lot(seed, dataset.users.ids[int(holdout.users[place])]))
        if asked_for is None:
            free = free[: len(holdout) * some // sum(usual)]
        kept: list[Row] = []
        asked = 0
        while len(kept) < size and asked < len(free):
            places = free[asked : asked + size]
            asked += len(places)
            found = rerank_rows(recommender, dataset, holdout, places, n, "test" if name == "test" else "valid")
            kept += [row for row in found if row.positives or not reached_only]
        if asked_for is not None and len(kept) < size:
            which = f"users with a positive among {n} candidates" if reached_only else "users"
            fit = sizes(int(0.9 * len(holdout) * len(kept) / max(asked, 1)), (None,) * 3, usual)
            raise DataError(
                f"{size} {name} rows are asked for, {dataset.name!r} has {len(kept)} {which} left for them; "
                f"{fit[2]} dev, {fit[0]} test and {fit[1]} train rows would fit"
            )
        share = len(kept) / max(asked, 1)
        # Those asked in vain are used up too: left to the next part, they would make its share too small.
        taken.update(holdout.users[free[:asked]].tolist())
        parts.append(kept[:size])
    source = f"{dataset.name}, {split.name}, top {n} of {recommender.name}; random users, seed {seed}"
    source += f", only those with a positive among the {n}, {share:.1%} of dev" if reached_only else ""
    return RankingTask(f"{dataset.name}-{recommender.name}", source, parts[1], parts[2], parts[0])


def rerank_rows(recommender: Recommender, dataset: Dataset, holdout: Holdout, places: Sequence[int], n: int, part: str) -> list[Row]:
    """One row for each of some places in a holdout: the user's history, the recommender's top n with its scores, and what came next.

    A positive that is not among the n is `missed`: no order of the candidates can reach it. Row ids are `part/user`.
    """
    if recommender.items is None or recommender.items.ids != dataset.items.ids:
        raise DataError(f"{recommender.name} was not trained on the catalogue of {dataset.name!r}; fit it on split.train of this dataset")
    tags = [{"tags": ", ".join(mine)} for mine in dataset.tags] or [{}] * len(dataset.items)
    items = [Item(id_, dataset.title(dense), tags[dense]) for dense, id_ in enumerate(dataset.items.ids)]
    rows = []
    for start in range(0, len(places), _USERS_AT_ONCE):
        some = np.array(places[start : start + _USERS_AT_ONCE], np.int64)
        histories = holdout.histories.take(some)
        lists = recommender.recommend(histories, n)
        for row, place in enumerate(some.tolist()):
            user = dataset.users.ids[int(holdout.users[place])]
            prior = {items[i].id: float(s) for i, s in zip(lists.items[row], lists.scores[row], strict=True) if i >= 0}
            offered = tuple(items[i] for i in lists.items[row] if i >= 0)
            wanted = {items[i].id for i in holdout.targets[place]}
            grades = dict.fromkeys(sorted(wanted & prior.keys()), 1.0)
            history = tuple(items[i] for i in histories.items[row])
            missed = (1.0,) * (len(wanted) - len(grades))
            rows.append(Row(f"{part}/{user}", history, offered, grades, prior, missed, user))
    return rows
