"""How good a recommender is, and whether it is better than another: metrics, evaluation, comparison."""

from recsys_core.evaluation.compare import Comparison, compare
from recsys_core.evaluation.evaluate import DEFAULT_METRICS, Evaluation, evaluate
from recsys_core.evaluation.metrics import Ranking, beyond_accuracy, coverage, gini, mean_popularity, novelty, rank

__all__ = [
    "DEFAULT_METRICS", "Comparison", "Evaluation", "Ranking", "beyond_accuracy", "compare", "coverage", "evaluate", "gini",
    "mean_popularity", "novelty", "rank",
]  # fmt: skip
