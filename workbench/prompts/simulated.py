"""Pages of a simulation as rows to try prompts on. They are never test rows: what is reported must have been chosen by real people."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from recsys_core.data import Split
from recsys_core.errors import DataError
from recsys_core.recommender import Recommender
from simulators.events import PageRecord
from workbench.prompts.reranking import rerank_rows
from workbench.prompts.tasks import DEV, SIMULATED, TEST, TRAIN, Item, RankingTask, Row, divide, lot, sizes
from workbench.store import Store


def simulated_rows(store: Store, run: str, split: Split) -> list[Row]:
    """The pages of a simulation on this split: what was shown, with its scores, what was taken of it, and what was known before.

    A history is the user's training log and what the session took on earlier pages, those of a fallback policy too, for the recommender
    knew them. Rows are made of pages that the run's own policy decided and on which something, but not everything, was taken: no other
    tells one order from another. Ids begin with `simulated/`, and a RankingTask refuses such rows for its test part.
    Raises DataError for a run on another split.
    """
    run = store.resolve(run, "simulate")
    began = store.run(run).split_hash
    if began != split.content_hash:
        raise DataError(f"run {run} was simulated on split {began[:12]}, this is {split.content_hash[:12]}; load the data as the run did")
    train = split.train
    tags = [{"tags": ", ".join(mine)} for mine in train.tags] or [{}] * len(train.items)
    items = [Item(id_, train.title(dense), tags[dense]) for dense, id_ in enumerate(train.items.ids)]
    known = train.sequences()
    rows: list[Row] = []
    for user, pages in groupby(store.iter_pages(run), lambda page: page.user):
        name = train.users.ids[user]
        for page, taken in _with_past(pages):
            grades = {items[action.item].id: 1.0 for action in page.actions}
            if page.fallback or not 0 < len(grades) < len(page.exposures):
                continue
            history = tuple(items[i] for i in (*known[user].tolist(), *taken))
            offered = tuple(items[e.item] for e in page.exposures)
            prior = {items[e.item].id: e.score for e in page.exposures}
            rows.append(Row(f"{SIMULATED}{run}/{name}/{page.page}", history, offered, grades, prior, user=name))
    return rows


def _with_past(pages: Iterator[PageRecord]) -> Iterator[tuple[PageRecord, tuple[int, ...]]]:
    """One user's pages with the dense ids that were taken before each."""
    past: tuple[int, ...] = ()
    for page in pages:
        yield page, past
        past += tuple(action.item for action in page.actions)


def simulated_task(
    store: Store,
    run: str,
    recommender: Recommender,
    split: Split,
    n: int = 0,
    train: int | None = None,
    dev: int | None = None,
    test: int | None = None,
    seed: int = 0,
) -> RankingTask:
    """A task whose train and dev rows are simulated and whose test rows are real: held-out users whom nobody simulated.

    recommender: fitted on `split.train`, offers the test rows their candidates; n: how many, by default as many as a page of the run has.
    Rows of one agent stay in one part. A part whose size is left open has 50, 200 or 400 rows (train, dev, test), or what there is.
    Raises DataError where there are too few rows or users, and as `simulated_rows` does.
    """
    run = store.resolve(run, "simulate")
    rows = simulated_rows(store, run, split)
    if not rows:
        raise DataError(f"run {run} has no page of which something, but not everything, was taken; simulate more agents or longer pages")
    dev_rows, train_rows = divide(rows, sizes(len(rows), (dev, train), (DEV, TRAIN)), seed)
    agents = {agent.external for agent in store.agents(run)}
    names = [split.train.users.ids[int(user)] for user in split.test.users]
    free = sorted((place for place, name in enumerate(names) if name not in agents), key=lambda place: lot(seed, names[place]))
    if len(free) < (test or 0):
        raise DataError(f"{test} test rows are asked for, {len(free)} held-out users were not simulated; ask for fewer")
    (test,) = sizes(len(free), (test,), (TEST,))
    n = n or max((len(row.candidates) for row in rows), default=1)
    test_rows = rerank_rows(recommender, split.train, split.test, free[:test], n, "test")
    source = f"train and dev: pages of {_trust(store, run)}; test: {split.train.name}, {split.name}, real users whom nobody simulated, "
    source += f"top {n} of {recommender.name}, seed {seed}"
    return RankingTask(f"{split.train.name}-simulated", source, train_rows, dev_rows, test_rows)


def _trust(store: Store, run: str) -> str:
    """The agents of a run in words, with how well they tell a user's real items from others, where that was measured."""
    policies = sorted({agent.policy for agent in store.agents(run)})
    found = [e for e in store.evaluations(run) if e.part == "fidelity" and e.metric == "AUC" and e.model in (*policies, "popularity")]
    figures = ", ".join(f"{e.model} {e.mean:.3f} ({e.arm})" for e in found) or "not measured"
    return f"{' and '.join(policies)} agents of {run}, fidelity AUC: {figures}"
