"""How good a recommender is, and whether it is better than another: metrics, evaluation, comparison."""

from recsys_core.evaluation.compare import Comparison, compare, holm
from recsys_core.evaluation.evaluate import DEFAULT_METRICS, Evaluation, evaluate
from recsys_core.evaluation.lists import beyond_accuracy, coverage, diversity, gini, novelty, popularity, top_lists
from recsys_core.evaluation.metrics import Ranking, rank
from recsys_core.evaluation.names import metric_names, parse_metric

__all__ = [
    "DEFAULT_METRICS", "Comparison", "Evaluation", "Ranking", "beyond_accuracy", "compare", "coverage", "diversity", "evaluate", "gini",
    "holm", "metric_names", "novelty", "parse_metric", "popularity", "rank", "top_lists",
]  # fmt: skip
