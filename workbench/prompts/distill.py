"""Lists ranked by a language model as a lesson for recommenders: who would rather take what, in pairs.

Whether the lesson is worth anything shows beside equally many pairs from other orders of the same candidates: drawn by chance, by
popularity, and as the first recommender had them. Only if the distilled arm beats these has the language model taught something.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.seeding import stream
from recsys_core import create, evaluate
from recsys_core.data import Dataset, Holdout, Preferences
from recsys_core.errors import DataError
from recsys_core.progress import Progress, silent
from recsys_core.recommender import FitOptions
from workbench.config import ModelSettings
from workbench.loop import BASE, Trained, is_random
from workbench.prompts.ranked import Ranked
from workbench.prompts.tasks import Ranking, Row, by_score

if TYPE_CHECKING:
    import pyarrow as pa

CONTROLS = ("random", "popularity", "prior")


@dataclass(frozen=True)
class Pair:
    """One row's verdict: this user would rather take `preferred` than `other` (external ids).

    preferred_rank, other_rank: their places in the list, from 1, tied items sharing the mean of theirs; weight: what the order of the two
    is worth in NDCG, the difference of 1 / log2(1 + rank) at these places (Burges 2010, section 6).
    """

    row: str
    user: str
    preferred: str
    other: str
    preferred_rank: float
    other_rank: float
    weight: float


def distilled_pairs(rows: Sequence[Row], ranked: Sequence[Ranked], top: int = 5) -> list[Pair]:
    """Each of a list's first `top` places against all places behind it; tied items make no pair, so unusable answers make none.

    rows: train rows and what a ranker made of them, in the same order. Grades are not read. Raises DataError for results of other rows, a
    row without a user, and a top below 1.
    """
    if top < 1:
        raise DataError(f"top is {top}; at least the first place must be preferred to something")
    if [row.id for row in rows] != [result.row for result in ranked]:
        raise DataError(f"{len(ranked)} results do not belong to the {len(rows)} rows; give one a row, in their order")
    if strangers := [row.id for row in rows if not row.user]:
        raise DataError(f"row {strangers[0]!r} has no user; a recommender learns pairs of users, so take rows that name theirs")
    return [pair for row, result in zip(rows, ranked, strict=True) for pair in _of_row(row, result.ranking, top)]


def _of_row(row: Row, ranking: Ranking, top: int) -> list[Pair]:
    places: list[tuple[float, str]] = []
    for group in ranking:
        rank = len(places) + (1 + len(group)) / 2
        places += [(rank, name) for name in group]
    return [
        Pair(row.id, row.user, better, worse, first, second, _discount(first) - _discount(second))
        for first, better in places
        if first <= top
        for second, worse in places
        if second > first
    ]


def _discount(rank: float) -> float:
    return float(1 / np.log2(1 + rank))


def controls(rows: Sequence[Row], train: Dataset, seed: int = 0) -> dict[str, list[Ranked]]:
    """The same candidates in orders that no language model gave: by chance, by training popularity, and as their source had them.

    Equal scores are put in the order of a draw, so that every control makes as many pairs. Raises DataError for rows without a prior.
    """
    counts = dict(zip(train.items.ids, train.item_counts.tolist(), strict=True))
    orders: dict[str, list[Ranked]] = {name: [] for name in CONTROLS}
    for row in rows:
        if row.prior is None:
            raise DataError(f"row {row.id!r} has no scores of the recommender that offered its candidates; take rows of a recommender")
        draw = stream(seed, "order of a control", row.id).permutation(len(row.candidates))
        chance = {item.id: int(place) for item, place in zip(row.candidates, draw, strict=True)}
        scores = {"random": chance, "popularity": {name: counts.get(name, 0) for name in chance}, "prior": row.prior}
        for name, given in scores.items():
            order = sorted(chance, key=lambda item: (given[item], chance[item]))
            orders[name].append(Ranked(row.id, by_score(row, {item: place for place, item in enumerate(order)}), ()))
    return orders


def preferences(pairs: Sequence[Pair], dataset: Dataset, strength: float = 1.0) -> Preferences:
    """Pairs as `FitOptions.preferences`, their weights times `strength`; raises DataError for users and items the dataset lacks."""
    return Preferences(
        dataset.users.encode([pair.user for pair in pairs]),
        dataset.items.encode([pair.preferred for pair in pairs]),
        dataset.items.encode([pair.other for pair in pairs]),
        np.array([strength * pair.weight for pair in pairs], np.float32),
    )


def learn(
    arms: Mapping[str, Preferences],
    train: Dataset,
    holdout: Holdout,
    model: ModelSettings,
    seeds: int = 3,
    metrics: Sequence[str] = ("HR@10", "NDCG@10", "MRR"),
    progress: Progress = silent,
) -> list[Trained]:
    """Trains a model on the log alone (arm `none`) and on the log with each arm's pairs, and judges all on one untouched holdout.

    What comes back is ready for `loop.compare_arms`, which pairs every arm with `none` by user, and `loop.store_results`. Raises DataError
    for a model that learns no pairs.
    """
    given: dict[str, Preferences | None] = {BASE: None, **arms}
    trained = [Trained(model.name, arm) for arm in given]
    draws = range(seeds) if is_random(model) else range(1)
    done = 0
    for arm in trained:
        for seed in draws:
            config = model.config | ({"seed": seed} if is_random(model) else {})
            fitted = create(model.name, **config).fit(train, options=FitOptions(preferences=given[arm.arm]))
            arm.runs.append(evaluate(fitted, holdout, metrics, train=train))
            done += 1
            progress(done / (len(trained) * len(draws)), f"{model.name} on {arm.arm}, seed {seed}")
    return trained


def pairs_table(pairs: Sequence[Pair]) -> pa.Table:
    """The pairs as an Arrow table, a column a field: text, and float32 for ranks and weights."""
    import pyarrow as pa

    from workbench.export import storable

    def column(name: str, kind: str) -> Any:
        values = [getattr(pair, name) for pair in pairs]
        return pa.array(storable(values), pa.string()) if kind == "str" else pa.array(values, pa.float32())

    return pa.table({name: column(name, str(field.type)) for name, field in Pair.__dataclass_fields__.items()})


def export_pairs(pairs: Sequence[Pair], file: Path, provenance: Mapping[str, Any]) -> None:
    """Writes the pairs to a Parquet file whole or not at all, with the provenance (JSON values) in its metadata under `workbench`.

    Raises DataError for no pairs and a place that cannot be written, RunStoppedError for a full disk.
    """
    import pyarrow.parquet as pq

    from recsys_core.files import atomic_file
    from workbench.export import failures_explained

    if not pairs:
        raise DataError("there are no pairs to export; rank rows first, and see whether the answers were of use")
    with failures_explained(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as out:
            pq.write_table(pairs_table(pairs).replace_schema_metadata({"workbench": json.dumps(dict(provenance))}), out)
