"""Recommender models; each file holds one, and `registry` finds them by name."""

from recsys_core.models.registry import create, known_models, load, model_class, register

__all__ = ["create", "known_models", "load", "model_class", "register"]
