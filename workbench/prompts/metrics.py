"""How good rankings of candidates are, row by row, where ties count as the mean over all orders they leave open."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys_core.errors import DataError, unknown_name
from recsys_core.evaluation import Comparison, Evaluation
from recsys_core.evaluation import compare as compare_users
from workbench.prompts.tasks import Ranking, Row

Values = NDArray[np.float64]
DEFAULT_METRICS = ("MRR", "MRR-all", "NDCG@5", "NDCG@10", "HR@1", "HR@5", "Recall@5", "MAP", "AUC")
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Places:
    """What may be expected at each place of B ranked lists of at most C candidates; rows shorter than C are filled with zeros.

    Ties are in random order (McSherry and Najork 2008), so a place holds the mean of its group. All are float64. [B, C]: gain, exp_gain:
    expected grade, and expected 2^grade - 1; positive: probability of a positive; first: probability that it is the list's first; before:
    positives expected above the place if it holds one; below: negatives expected below any positive of its group. [B, P]: ideal,
    exp_ideal: gains of the best possible order, missed positives included. [B]: of: positives, missed ones included; negatives.
    """

    gain: Values
    exp_gain: Values
    positive: Values
    first: Values
    before: Values
    below: Values
    ideal: Values
    exp_ideal: Values
    of: Values
    negatives: Values

    @property
    def rank(self) -> Values:
        """Ranks 1 .. C [C]."""
        return np.arange(1.0, self.gain.shape[1] + 1)


def _mrr(p: Places, k: int) -> Values:
    """1 / rank of the first positive; 0 if none was offered."""
    return _total(p.first / p.rank)


def _mrr_all(p: Places, k: int) -> Values:
    """Mean over all positives of 1 / rank, as MIND's own evaluation has it; equal to MRR where there is one positive."""
    return _total(p.positive / p.rank) / p.of


def _hr(p: Places, k: int) -> Values:
    return _total(p.first[:, :k])


def _recall(p: Places, k: int) -> Values:
    return _total(p.positive[:, :k]) / p.of


def _map(p: Places, k: int) -> Values:
    """Average precision: the mean over all positives of the precision at its rank."""
    return _total(p.positive * (1 + p.before) / p.rank) / p.of


def _auc(p: Places, k: int) -> Values:
    """Share of (positive, negative) pairs in order, equal ones half; a missed positive loses all; .5 where there are no negatives."""
    pairs = p.negatives * p.of
    return np.where(pairs > 0, _total(p.positive * p.below) / np.maximum(pairs, 1), 0.5)


def _ndcg(p: Places, k: int) -> Values:
    """Järvelin and Kekäläinen (2002) with gains equal to grades and discount log2(1 + rank)."""
    return _discounted(p.gain, k) / _discounted(p.ideal, k)


def _ndcg_exp(p: Places, k: int) -> Values:
    """Burges et al. (2005): gains 2^grade - 1. Equal to NDCG where grades are 0 and 1."""
    return _discounted(p.exp_gain, k) / _discounted(p.exp_ideal, k)


def _discounted(gains: Values, k: int) -> Values:
    head = gains[:, :k]
    return _total(head / np.log2(np.arange(2, head.shape[1] + 2)))


def _total(values: Values) -> Values:
    """Sums [B] of rows [B, C]."""
    total: Values = values.sum(1)
    return total


METRICS: dict[str, Callable[[Places, int], Values]] = {
    "MRR": _mrr, "MRR-all": _mrr_all, "MAP": _map, "AUC": _auc, "HR@k": _hr, "Recall@k": _recall, "NDCG@k": _ndcg, "NDCG-exp@k": _ndcg_exp,
}  # fmt: skip


def parse_metric(name: str) -> tuple[Callable[[Places, int], Values], int]:
    """The function of a metric and its cut-off, 0 for one without; `NDCG@5` is `NDCG@k` at 5. Raises UnknownNameError for another name."""
    kind = re.sub(r"@[1-9][0-9]{0,5}\Z", "@k", name)
    if kind not in METRICS or (name == kind and kind.endswith("@k")):
        raise unknown_name("ranking metric", name, METRICS)
    return METRICS[kind], int(name.partition("@")[2] or 0)


@dataclass(frozen=True, eq=False)
class Measured:
    """One ranker on R rows. name: the ranker's; rows: their ids; values: metric name to the value of each row [R] float64."""

    name: str
    rows: tuple[str, ...]
    values: Mapping[str, Values]

    def __getitem__(self, metric: str) -> Values:
        """Per-row values [R]; raises UnknownNameError for a metric that was not measured."""
        if metric not in self.values:
            raise unknown_name(f"metric of {self.name}", metric, self.values)
        return self.values[metric]

    def mean(self, metric: str) -> float:
        """The mean over rows."""
        return float(self[metric].mean())

    def interval(self, metric: str, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
        """The 95% percentile-bootstrap interval of the mean over rows."""
        return self.evaluation.interval(metric, seed, resamples)

    @property
    def evaluation(self) -> Evaluation:
        """The same for recsys_core's tests and tables. Its user ids are hashes of the row ids, so only equal rows are ever paired."""
        keys = [hashlib.sha256(row.encode(errors="surrogatepass")).digest()[:8] for row in self.rows]
        return Evaluation(self.name, np.frombuffer(b"".join(keys), np.int64), self.values)


def measure(name: str, rows: Sequence[Row], rankings: Sequence[Ranking], metrics: Sequence[str] = DEFAULT_METRICS) -> Measured:
    """Measures one ranking a row; every row keeps its place in the mean, an unusable answer as `tied(row)`.

    Raises UnknownNameError for a metric, and DataError for no rows, a ranking that does not hold each candidate once, and a row of which
    nothing was chosen, whose metrics are not defined.
    """
    parsed = {metric: parse_metric(metric) for metric in metrics}
    if len(rows) != len(rankings) or not rows:
        raise DataError(f"{len(rankings)} rankings of {len(rows)} rows; give one a row, and at least one row")
    parts: dict[str, list[Values]] = {metric: [] for metric in parsed}
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        places = expected_places(rows[block], rankings[block])
        for metric, (function, k) in parsed.items():
            parts[metric].append(function(places, k))
    return Measured(name, tuple(row.id for row in rows), {metric: np.concatenate(values) for metric, values in parts.items()})


def expected_places(rows: Sequence[Row], rankings: Sequence[Ranking]) -> Places:
    """What the metrics are computed from; raises DataError for a ranking that lacks a candidate, and a row without positives."""
    groups: list[tuple[int, ...]] = []  # row, size, positives, positives above, negatives below; in the order of the lists
    gains: list[tuple[float, float]] = []  # of the group in sum: grades, and 2^grade - 1
    ideal: list[list[float]] = []
    for number, (row, ranking) in enumerate(zip(rows, rankings, strict=True)):
        _check(row, ranking)
        ideal.append(sorted((g for g in (*row.grades.values(), *row.missed) if g > 0), reverse=True))
        if not ideal[-1]:
            raise DataError(f"nothing of row {row.id!r} has a grade above 0; its metrics are not defined, leave the row out")
        positives = row.positives
        above, below = 0, len(row.candidates) - len(positives)
        for group in filter(None, ranking):
            mine = [row.grades[i] for i in group if i in positives]
            below -= len(group) - len(mine)
            groups.append((number, len(group), len(mine), above, below))
            gains.append((sum(mine), sum(map(_exponential, mine))))
            above += len(mine)

    row_of, size, positive, above_, below_ = np.array(groups).T
    lengths = np.array([len(row.candidates) for row in rows])
    within = _count_up(size)
    at = np.repeat(row_of, size), _count_up(lengths)

    def spread(of_groups: Values) -> Values:
        """From a value a group to a matrix with a value a place."""
        return _matrix(at, np.repeat(of_groups, size), len(rows))

    n, share = np.repeat(size, size), np.repeat(positive, size)
    # Of p positives among n tied candidates, none of the first j is one: the next is one with probability p / (n - j).
    hazard = _matrix(at, np.minimum(share / (n - within), 1.0), len(rows))
    none_yet = np.cumprod(1 - hazard, axis=1)
    first = hazard * np.concatenate([np.ones((len(rows), 1)), none_yet[:, :-1]], axis=1)
    before = np.repeat(above_, size) + np.maximum(share - 1, 0) * within / np.maximum(n - 1, 1)
    wanted = np.array([len(grades) for grades in ideal])
    best = np.repeat(np.arange(len(rows)), wanted), _count_up(wanted)
    gain, exp_gain = np.array(gains).T
    return Places(
        spread(gain / size), spread(exp_gain / size), spread(positive / size), first, _matrix(at, before, len(rows)),
        spread(below_ + (size - positive) / 2),
        _matrix(best, np.array([g for grades in ideal for g in grades]), len(rows)),
        _matrix(best, np.array([_exponential(g) for grades in ideal for g in grades]), len(rows)),
        wanted.astype(np.float64), lengths - np.array([len(row.positives) for row in rows], np.float64),
    )  # fmt: skip


def compare(a: Measured, b: Measured, metric: str, seed: int = 0) -> Comparison:
    """a minus b on the same rows: interval, sign-flip and Wilcoxon p-values. Raises DataError where the rows differ."""
    if a.rows != b.rows:
        raise DataError(f"{a.name} and {b.name} were measured on different rows or orders of rows; compare on one part")
    return compare_users(a.evaluation, b.evaluation, metric, seed)


def _check(row: Row, ranking: Ranking) -> None:
    ranked = [name for group in ranking for name in group]
    offered = {item.id for item in row.candidates}
    if len(ranked) == len(offered) and offered.issuperset(ranked) and len(set(ranked)) == len(ranked):
        return
    for why, names in (("no candidate", set(ranked) - offered), ("missing", offered - set(ranked))):
        if names:
            raise DataError(f"the ranking of row {row.id!r}: {min(names)!r} is {why}; rank each candidate once, tied if unknown")
    raise DataError(f"the ranking of row {row.id!r} has {len(ranked)} places for {len(offered)} candidates; rank each candidate once")


def _exponential(grade: float) -> float:
    return math.expm1(grade * math.log(2))


def _count_up(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 .. length - 1 for each length, one behind the other."""
    ends = np.cumsum(lengths)
    found: NDArray[np.int64] = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    return found


def _matrix(at: tuple[NDArray[np.int64], NDArray[np.int64]], values: NDArray, rows: int) -> Values:
    """Values at their rows and columns, zeros elsewhere."""
    filled = np.zeros((rows, int(at[1].max()) + 1))
    filled[at] = values
    return filled
