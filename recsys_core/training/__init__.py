"""One training loop for every model that learns by gradient steps."""

from recsys_core.training.checkpoint import identity
from recsys_core.training.config import TrainingConfig
from recsys_core.training.distributed import is_main_process, pick_device
from recsys_core.training.journal import EpochReport
from recsys_core.training.learner import Learner
from recsys_core.training.trainer import Trainer

__all__ = ["EpochReport", "Learner", "Trainer", "TrainingConfig", "identity", "is_main_process", "pick_device"]
