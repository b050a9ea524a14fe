"""Datasets, splits, metrics and recommender models."""

from recsys_core.evaluation import Comparison, Evaluation, beyond_accuracy, compare, evaluate
from recsys_core.models import create, known_models, load, register
from recsys_core.recommender import Histories, ModelConfig, Recommendations, Recommender

__all__ = [
    "Comparison", "Evaluation", "Histories", "ModelConfig", "Recommendations", "Recommender", "beyond_accuracy", "compare", "create",
    "evaluate", "known_models", "load", "register",
]  # fmt: skip
