"""How far simulated users can be trusted: can they tell what a real user took from what they did not, and do they rate alike?

Discrimination is Agent4Rec's 1:1 test (Zhang et al. 2024, section 4.1) made stricter: the real items are each user's latest of the
training log, personas and policies are built from the earlier part only, the agent sees them in random order on one page, and beside
uniform negatives there are popularity-matched ones, since a popularity count alone beats published agents on the former.
Every figure stands between a floor (popularity) and a reference (EASE trained on the same earlier part).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agents.persona import LogProfile, build_personas
from agents.seeding import stream
from agents.types import Decision, PageContext, Policy
from recsys_core import Histories, create
from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Ints
from recsys_core.errors import DataError
from recsys_core.evaluation.compare import bootstrap_means

Negatives = Literal["uniform", "popularity"]
CEILING = "half of the users' own"


@dataclass(frozen=True, eq=False)
class Discrimination:
    """AUC within a page of real and other items. users: [N] dense ids of the pages the policy answered itself, `fallbacks` it did not.

    auc: per-user values [N] by judge: the policy's name, `popularity` (the floor) and `ease` (the reference).
    """

    policy: str
    negatives: Negatives
    users: Ints
    auc: dict[str, NDArray[np.float64]]
    fallbacks: int

    def interval(self, judge: str, seed: int = 0) -> tuple[float, float, float]:
        """Mean over users with its 95% bootstrap interval."""
        means = bootstrap_means(self.auc[judge], np.random.default_rng(seed), 2000)
        low, high = np.quantile(means, (0.025, 0.975))
        return float(self.auc[judge].mean()), float(low), float(high)


@dataclass(frozen=True, eq=False)
class RatingFidelity:
    """Ratings given to real items that the agent took, beside the user's own of the same items: given, own [N] in rating units.

    mean: the log's mean rating, what a constant rater would give.
    """

    policy: str
    given: NDArray[np.float64]
    own: NDArray[np.float64]
    mean: float

    def figures(self, seed: int = 0, resamples: int = 500) -> dict[tuple[str, str], tuple[float, float, float]]:
        """(rater, measure) to value with its 95% bootstrap interval over ratings.

        Measures: W1, Wasserstein-1 between the two distributions, and RMSE. Raters: the policy, `constant` (the floor), and for W1
        `half of the users' own` against the other half (the ceiling: what equals look like at this size), a mean over ways to halve them.
        """
        rng = stream(seed, "ratings")
        values: dict[tuple[str, str], list[float]] = {}
        for resample in range(resamples + 1):
            rows = rng.integers(0, len(self.own), len(self.own)) if resample else np.arange(len(self.own))
            given, own = self.given[rows], self.own[rows]
            for rater, ratings in ((self.policy, given), ("constant", np.full(len(own), self.mean))):
                values.setdefault((rater, "W1"), []).append(wasserstein(ratings, own))
                values.setdefault((rater, "RMSE"), []).append(float(np.sqrt(((ratings - own) ** 2).mean())))
            half = rng.permutation(len(own))
            first, second = own[half[: len(own) // 2]], own[half[len(own) // 2 :]]
            values.setdefault((CEILING, "W1"), []).append(wasserstein(first, second))
        spans = {key: np.quantile(v[1:], (0.025, 0.975)) for key, v in values.items()}
        figures = {key: float(np.mean(v)) if key[0] == CEILING else v[0] for key, v in values.items()}
        return {key: (figure, float(spans[key][0]), float(spans[key][1])) for key, figure in figures.items()}


@dataclass(frozen=True)
class Fidelity:
    """Both measurements of one policy."""

    discrimination: tuple[Discrimination, ...]
    ratings: RatingFidelity | None
    """None where the log has no ratings or the agents took fewer than two real items."""


@dataclass(frozen=True, eq=False)
class _Trial:
    """One page: items in display order, which of them are real, and the user's rating of those (NaN for the others)."""

    user: int
    items: Ints
    real: NDArray[np.bool_]
    rating: NDArray[np.float64]


async def measure(build: Callable[[Dataset], Policy], log: Dataset, users: Ints, seed: int = 0, positives: int = 5) -> Fidelity:
    """Measures the policy that `build` makes from the earlier part of `log` on the given users (dense ids).

    positives: real items a page, with as many others; each user needs one interaction more than that.
    """
    inner, held = _hold_out(log, users, positives)
    policy, profile = build(inner), LogProfile(inner)
    personas = build_personas(profile, users)
    ease = create("ease").fit(inner)
    sequences = inner.sequences()
    ease_scores = ease.score(Histories.of([sequences[int(u)] for u in users], users))
    kinds: tuple[Negatives, ...] = ("uniform", "popularity")
    trials = {kind: [_trial(log, inner, int(u), rows, kind, seed) for u, rows in zip(users, held, strict=True)] for kind in kinds}
    contexts = [
        PageContext(p, 0, profile.page_items(t.items), "", tuple(map(int, sequences[t.user])), seed)
        for kind in kinds
        for p, t in zip(personas, trials[kind], strict=True)
    ]
    # All pages at once: a language model answers them in full batches.
    answers = await policy.decide(contexts)
    rows, given, own = [], [], []
    for number, kind in enumerate(kinds):
        shown, decisions = trials[kind], answers[number * len(users) : (number + 1) * len(users)]
        answered = [n for n, d in enumerate(decisions) if not d.fallback]
        if not answered:
            raise DataError(f"policy {policy.name!r} answered none of {len(decisions)} fidelity pages: {decisions[0].fallback}")
        judged = {
            policy.name: [page_auc(_preference(decisions[n], shown[n]), shown[n].real) for n in answered],
            "popularity": [page_auc(inner.item_counts[shown[n].items], shown[n].real) for n in answered],
            "ease": [page_auc(ease_scores[n, shown[n].items], shown[n].real) for n in answered],
        }
        auc = {judge: np.array(values) for judge, values in judged.items()}
        rows.append(Discrimination(policy.name, kind, users[answered], auc, len(decisions) - len(answered)))
        for n in answered:
            for watch in decisions[n].watched:
                if shown[n].real[watch.number - 1]:
                    given.append(watch.rating)
                    own.append(shown[n].rating[watch.number - 1])
    rated = log.rating is not None and len(own) > 1
    ratings = RatingFidelity(policy.name, np.array(given), np.array(own), profile.mean) if rated else None
    return Fidelity(tuple(rows), ratings)


def page_auc(preference: NDArray, real: NDArray[np.bool_]) -> float:
    """Probability that a real item is preferred to another on the page; ties count half, so a constant policy scores 0.5."""
    a, b = preference[real][:, None], preference[~real][None, :]
    return float(((a > b) + 0.5 * (a == b)).mean())


def wasserstein(a: NDArray, b: NDArray) -> float:
    """W1 of two samples: the area between their distribution functions, in the units of the samples."""
    points = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(x), points[:-1], side="right") / len(x) for x in (a, b)]
    return float((np.abs(below[0] - below[1]) * np.diff(points)).sum())


def _hold_out(log: Dataset, users: Ints, positives: int) -> tuple[Dataset, list[Ints]]:
    """The log without each given user's last `positives` rows, and those rows."""
    lengths = np.diff(log.offsets)[users]
    if (lengths <= positives).any():
        short = int(users[lengths <= positives][0])
        raise DataError(
            f"user {log.users.ids[short]!r} has {lengths.min()} interactions; fidelity with {positives} real items needs {positives + 1}"
        )
    held = [log.order[log.offsets[u + 1] - positives : log.offsets[u + 1]] for u in users]
    keep = np.ones(len(log), bool)
    keep[np.concatenate(held)] = False
    return log.rows(keep, f"{log.name}/earlier"), held


def _trial(log: Dataset, inner: Dataset, user: int, rows: Ints, kind: Negatives, seed: int) -> _Trial:
    rng = stream(seed, "fidelity", kind, user)
    weight = np.ones(len(log.items)) if kind == "uniform" else inner.item_counts.astype(float)
    weight[log.item[log.user == user]] = 0
    negatives = rng.choice(len(weight), len(rows), replace=False, p=weight / weight.sum())
    items = np.concatenate([log.item[rows], negatives])
    rating = np.concatenate([np.ones(len(rows)) if log.rating is None else log.rating[rows], np.full(len(rows), np.nan)])
    order = rng.permutation(len(items))
    return _Trial(user, items[order], order < len(rows), rating[order])


def _preference(decision: Decision, trial: _Trial) -> NDArray:
    if len(decision.preference) != len(trial.items):
        raise DataError(
            f"a decision has {len(decision.preference)} preferences for {len(trial.items)} items; give one an item, or 0/1 for taken"
        )
    return np.array(decision.preference)
