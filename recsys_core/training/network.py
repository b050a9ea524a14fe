"""What all recommenders that the trainer trains share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import torch
from numpy.typing import NDArray
from torch import nn

from recsys_core.data.dataset import Dataset
from recsys_core.data.split import Holdout
from recsys_core.evaluation.evaluate import evaluate
from recsys_core.progress import Progress
from recsys_core.recommender import FitOptions, Recommender
from recsys_core.training.checkpoint import identity
from recsys_core.training.config import TrainingConfig
from recsys_core.training.distributed import pick_device
from recsys_core.training.learner import Learner
from recsys_core.training.trainer import Trainer


class NetworkRecommender(Recommender):
    """Base of recommenders whose weights are one module. A subclass sets `Config` and gives `_network`, `_learner` and `_score`."""

    keeps_checkpoints = True
    config: TrainingConfig
    network: nn.Module

    @abstractmethod
    def _network(self) -> nn.Module:
        """A new module for the catalogue, with weights from torch's random state."""

    @abstractmethod
    def _learner(self, dataset: Dataset) -> Learner:
        """The module with its training data."""

    def _initialize(self, dataset: Dataset) -> None:
        """Makes the module that is to be trained on a log."""
        self.network = self._network()

    def _fit(self, dataset: Dataset, progress: Progress, options: FitOptions) -> None:
        device = pick_device(options.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.config.seed)
            self._initialize(dataset)
            users = options.validation
            validate = None if users is None else lambda: evaluate(self, users, ("NDCG@10",)).means["NDCG@10"]
            Trainer(self._learner(dataset), self.config, options, progress, validate, self._identity(dataset, users)).run()

    def _identity(self, dataset: Dataset, validation: Holdout | None) -> dict[str, str]:
        """What a training is of, beside its configuration; a checkpoint of another one is refused."""
        return identity(self.name, dataset, validation)

    def to(self, device: str) -> Self:
        self.network.to(pick_device(device))
        return self

    def _state(self) -> dict[str, NDArray]:
        return {name: tensor.cpu().numpy() for name, tensor in self.network.state_dict().items()}

    def _load_state(self, state: dict[str, NDArray]) -> None:
        self.network = self._network().eval()
        self.network.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
