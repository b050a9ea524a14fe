"""What a prompt search leaves in the store."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from recsys_core.evaluation import Comparison as Found
from workbench.prompts.metrics import Measured
from workbench.prompts.optimize import Report
from workbench.prompts.trials import Trial
from workbench.prompts.versions import Shelf
from workbench.store import Comparison, Evaluation, PromptTrial, Store, hash_users


class TrialKeeper:
    """Writes trials and their templates into the store, those that a resumed search repeats only once."""

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run, self._shelf = store, run, Shelf(store)
        known = store.trials(run)
        self._seen = {(t.prompt_id, t.part, t.n, t.mean) for t in known}
        self._next = len(known)
        self._rows: dict[str, str] = {}

    def keep(self, part: str, trial: Trial) -> None:
        """Keeps a trial of a part, and its template if it is new."""
        version = trial.template.version
        if version not in self._rows:
            self._rows[version] = self._shelf.keep(trial.template).id
        metric = next(iter(trial.measured.values))
        mean, (low, high) = trial.measured.mean(metric), trial.measured.interval(metric)
        if (key := (self._rows[version], part, len(trial.rows), mean)) in self._seen:
            return
        self._seen.add(key)
        self._store.add_trial(self._run, PromptTrial(self._next, *key[:2], metric, key[2], mean, low, high, time.time()))
        self._next += 1


def keep_results(store: Store, run: str, optimizer: str, seed: int, report: Report) -> None:
    """Means, intervals and differences, once: a run that was stopped behind them has them already."""
    if store.evaluations(run):
        return
    rows, comparisons = [], []
    for name, part in (("fresh", report.fresh), ("test", report.test)):
        if part is None:
            continue
        arms = [("start", part.before), *([("favourite", part.after)] if part.after is not part.before else [])]
        for arm, measured in (*arms, *(("baseline", m) for m in part.baselines)):
            rows += _evaluations(seed, name, arm, measured)
        comparisons += [
            Comparison(optimizer, "start", "favourite", name, c.metric, c.difference, c.low, c.high, c.p_value)
            for c in part.differences.values()
        ]
    if not store.comparisons(run):
        store.add_comparisons(run, comparisons)
    store.add_evaluations(run, rows)


def keep_test(
    store: Store, run: str, seed: int, measured: Sequence[Measured], baselines: Sequence[Measured], differences: Mapping[str, Found]
) -> None:
    """The first template on the test rows, and the second where there is one, as arms `template` and `against`, beside baselines."""
    arms = [*zip(("template", "against"), measured, strict=False), *(("baseline", m) for m in baselines)]
    store.add_evaluations(run, [row for arm, m in arms for row in _evaluations(seed, "test", arm, m)])
    store.add_comparisons(
        run,
        [
            Comparison(measured[0].name, "against", "template", "test", c.metric, c.difference, c.low, c.high, c.p_value)
            for c in differences.values()
        ],
    )


def _evaluations(seed: int, part: str, arm: str, measured: Measured) -> list[Evaluation]:
    found, users = measured.evaluation, hash_users(measured.evaluation.users)
    return [
        Evaluation(measured.name, arm, seed, part, metric, measured.mean(metric), *found.interval(metric, seed, 2000), values, users)
        for metric, values in ((metric, measured[metric].astype("float32")) for metric in measured.values)
    ]
