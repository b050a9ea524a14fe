"""One training loop for every model that learns by gradient steps."""

from recsys_core.training.config import TrainingConfig
from recsys_core.training.learner import Learner
from recsys_core.training.trainer import EpochReport, Trainer, pick_device

__all__ = ["EpochReport", "Learner", "Trainer", "TrainingConfig", "pick_device"]
