"""TIGER as a recommender: semantic ids of the catalogue, and a network that generates the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Jagged, check_rows
from recsys_core.data.split import Holdout
from recsys_core.errors import DataError
from recsys_core.models.tiger.config import TIGERConfig
from recsys_core.models.tiger.network import TIGERNetwork
from recsys_core.models.tiger.search import all_scores, beam_search
from recsys_core.progress import Progress
from recsys_core.recommender import FitOptions, Histories, Recommendations, check_k
from recsys_core.semantic import SemanticIds, item_vectors, tokenize
from recsys_core.semantic.tokenizer import recipe
from recsys_core.semantic.vectors import origin
from recsys_core.sequence.batch import SequenceBatch, SequenceLog, history_batch
from recsys_core.sequence.windows import WindowLearner
from recsys_core.training import pick_device
from recsys_core.training.distributed import World
from recsys_core.training.network import NetworkRecommender

IDS_FILE = "semantic-ids.safetensors"
_WIDER = 4
"""How much wider the beam is for lists that the first could not prove."""


class TIGER(NetworkRecommender):
    """score = log-probability of an item's id behind a history, the sum over its codes; order is used, timestamps are not.

    Scores are of items, never of prefixes. `scores` gives every item's, and `recommend` finds the best by a beam search over existing ids;
    what neither that nor a wider one can prove to be the best it ranks by `scores` (see `TIGERConfig.proof`).
    """

    name = "tiger"
    Config = TIGERConfig
    config: TIGERConfig
    network: TIGERNetwork
    ids: SemanticIds
    origin = ""

    @property
    def training(self) -> str:
        config = self.config
        ids = f"semantic ids of {self.origin or config.vectors} ({config.tokenizer}, {config.levels} x {config.codes}"
        collide = f", {self.ids.collision_rate:.1%} collide" if self.items is not None else ""
        return f"softmax over codes ({config.softmax}), {ids}{collide}), order, no timestamps"

    def recommend(self, histories: Histories, k: int, exclude: Jagged | None = None) -> Recommendations:
        check_k(k)
        if not self.config.beams:
            return super().recommend(histories, k, exclude)
        best, proven = self.beam(histories, k, exclude)
        if not self.config.proof:
            return best
        banned, wide = histories.items if exclude is None else exclude, _WIDER * max(self.config.beams, k)
        # A wider beam proves most of what is left, and costs a fraction of a full ranking.
        for width in (wide, None) if wide < len(self._catalogue()) else (None,):
            if not len(open_ := np.flatnonzero(~proven)):
                break
            given = histories.take(open_), k, banned.take(open_)
            ranked, proven[open_] = self.beam(*given, width) if width else (super().recommend(*given), True)
            best.items[open_], best.scores[open_] = ranked.items, ranked.scores
        return best

    def beam(
        self, histories: Histories, k: int, exclude: Jagged | None = None, width: int | None = None
    ) -> tuple[Recommendations, NDArray[np.bool_]]:
        """`recommend` by the beam search alone, and whether each list is proven to be the best, [B] bool; see `search.beam_search`.

        width: prefixes kept at each level, by default `TIGERConfig.beams`, and k at least. Raises DataError as `recommend` does.
        """
        check_k(k)
        catalogue, banned = len(self._check(histories)), histories.items if exclude is None else exclude
        check_rows("exclude", banned, len(histories), catalogue)
        short, device, distinct = min(k, catalogue), self.network.table.device, banned.distinct()
        hidden = torch.from_numpy(distinct.row_ids).to(device), torch.from_numpy(distinct.values).to(device)
        found = beam_search(self.network, self._question(histories), short, max(width or self.config.beams, short), hidden)
        items, scores, proven = (part.cpu().numpy() for part in found)
        self._check_numbers(np.isnan(scores).any(1))
        pad = ((0, 0), (0, k - short))
        scores = np.pad(scores.astype(np.float32), pad, constant_values=-np.inf)
        return Recommendations(np.pad(items, pad, constant_values=-1), scores), proven

    def _score(self, histories: Histories) -> Tensor:
        return all_scores(self.network, self._question(histories))

    def _question(self, histories: Histories) -> SequenceBatch:
        return history_batch(histories, len(self._catalogue()), self.config.max_length + 1).to(self.network.table.device)

    def _fit(self, dataset: Dataset, progress: Progress, options: FitOptions) -> None:
        device = pick_device(options.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.config.seed)
            self.ids, self.origin = self._semantic_ids(dataset, progress, options), origin(dataset, self.config.vectors)
        progress(0.0, str(self.ids))
        super()._fit(dataset, progress, options)

    def _semantic_ids(self, dataset: Dataset, progress: Progress, options: FitOptions) -> SemanticIds:
        """The ids of a training: those in its folder, where they are of the same vectors and settings, or new ones."""
        vectors, config = item_vectors(dataset, self.config.vectors, progress), self.config.tokenizer_config()
        world = World.join(options.device)
        file = None if options.folder is None else Path(options.folder) / IDS_FILE
        found = SemanticIds.load(file) if file is not None and file.exists() else None
        # Of several processes the first says whether the folder's are used, and writes them: the others' vectors may differ in last bits.
        if world.from_main(float(found is not None and found.made_of == recipe(vectors, config))):
            if found is None:
                raise DataError(f"process {world.rank} finds no {file}, process 0 does; give them one folder that all of them see")
            return found
        ids = tokenize(vectors, config, options.device, lambda _, text: progress(0.0, f"semantic ids: {text}"))
        if file is not None and world.rank == 0:
            ids.save(file)
        return ids

    def _identity(self, dataset: Dataset, validation: Holdout | None) -> dict[str, str]:
        return super()._identity(dataset, validation) | {"semantic ids": self.ids.content_hash}

    def _network(self) -> TIGERNetwork:
        return TIGERNetwork(self.config, self.ids)

    def _learner(self, dataset: Dataset) -> TIGERLearner:
        return TIGERLearner(self.network, self.config, SequenceLog.of(dataset), len(dataset.items))

    def _meta(self) -> dict[str, Any]:
        return {"sizes": self.ids.sizes, "made_of": self.ids.made_of, "collision_rate": self.ids.collision_rate, "origin": self.origin}

    def _load_meta(self, meta: dict[str, Any]) -> None:
        self._sizes, self._made_of, self.origin = tuple(meta["sizes"]), meta["made_of"], meta["origin"]

    def _state(self) -> dict[str, NDArray]:
        return super()._state() | {"semantic_ids": self.ids.codes.numpy()}

    def _load_state(self, state: dict[str, NDArray]) -> None:
        self.ids = SemanticIds(torch.from_numpy(state.pop("semantic_ids")), self._sizes, self._made_of)
        super()._load_state(state)


class TIGERLearner(WindowLearner):
    """A network with a training log: each position of a sequence is predicted from the items before it, the first from none."""

    def __init__(self, network: TIGERNetwork, config: TIGERConfig, log: SequenceLog, n_items: int) -> None:
        # A window is the start token with the history; the item behind its last token is what is learned.
        super().__init__(log, n_items, config.max_length + 1, config.batch_size)
        self.network, self.config = network, config

    def windows(self, rng: np.random.Generator) -> Jagged:
        rows, count = self.log.items, len(self.log.items.values)
        last = rng.permutation(count)[: self.config.targets or None]
        before = np.minimum(last - rows.offsets[rows.row_ids[last]], self.max_length - 1)
        offsets = np.concatenate([[0], np.cumsum(before + 1)]).astype(np.int64)
        places = np.arange(offsets[-1]) + np.repeat(last - before - offsets[:-1], before + 1)
        return Jagged(places, offsets)

    def weight(self, batch: SequenceBatch) -> float:
        return float(len(batch))

    def forward(self, batch: SequenceBatch) -> Tensor:
        assert batch.targets is not None
        # A static batch has rows without tokens, whose last place is that of the row before them, or none.
        found = self.network(batch, batch.targets[batch.last.clamp(min=0)])
        return -torch.where(batch.offsets.diff() > 0, found.sum(1), 0.0).sum()
