"""How well the ranking head tells which items will be rated highly: AUC and normalized entropy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys_core.data.split import Holdout
from recsys_core.errors import DataError
from recsys_core.models.hstu.model import HSTU


@dataclass(frozen=True)
class RankingReport:
    """One task of the ranking head on held-out ratings.

    task: the rating that counts as a yes from on; rate: share of yes among n; auc: of the probabilities over all held-out pairs, ties half;
    normalized_entropy: cross-entropy over the entropy of `base_rate` (He et al. 2014), below 1 where the head knows more than the rate of
    yes in training.
    """

    task: float
    n: int
    rate: float
    auc: float
    normalized_entropy: float


def ranking_report(model: HSTU, holdout: Holdout, base_rates: tuple[float, ...]) -> list[RankingReport]:
    """A report for each of the model's tasks over the first held-out item of each user.

    base_rates: the share of yes in the training log, one a task, which the entropy is normalized by. Raises DataError for a holdout
    without ratings.
    """
    if holdout.ratings is None:
        raise DataError("the holdout has no ratings; split a log with a rating column")
    first = holdout.targets.offsets[:-1]
    chance = model.score_candidates(holdout.histories, holdout.targets.values[first][:, None])[:, 0]
    ratings = holdout.ratings[first]
    return [_report(task, ratings >= task, chance[:, n].astype(np.float64), base_rates[n]) for n, task in enumerate(model.config.tasks)]


def _report(task: float, yes: NDArray[np.bool_], chance: NDArray[np.float64], base_rate: float) -> RankingReport:
    clipped = np.clip(chance, 1e-7, 1 - 1e-7)
    entropy = -np.where(yes, np.log(clipped), np.log1p(-clipped)).mean()
    base = -(yes.mean() * np.log(base_rate) + (1 - yes.mean()) * np.log1p(-base_rate))
    return RankingReport(task, len(yes), float(yes.mean()), auc(yes, chance), float(entropy / base))


def auc(yes: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Share of (yes, no) pairs in the right order, ties half (Mann-Whitney); 0.5 where there are no pairs."""
    pairs = int(yes.sum()) * int((~yes).sum())
    if not pairs:
        return 0.5
    values, place = np.unique(score, return_inverse=True)
    counts = np.bincount(place, minlength=len(values))
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positives = int(yes.sum())
    return float((rank[yes].sum() - positives * (positives + 1) / 2) / pairs)
