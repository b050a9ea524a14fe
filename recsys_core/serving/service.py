"""A trained recommender with the catalogue and the users it serves: external ids in, external ids out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from recsys_core.data.dataset import Dataset
from recsys_core.data.features import plain_values
from recsys_core.data.histories import Histories
from recsys_core.data.jagged import Floats, Ints, Jagged
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError, damaged, refuse_text
from recsys_core.files import atomic_file, sha256
from recsys_core.models.registry import load
from recsys_core.recommender import MODEL_FILE, Recommender, check_k, top_k
from recsys_core.serving.catalogue import Catalogue, NewItem
from recsys_core.serving.index import ItemIndex, Kind
from recsys_core.serving.rules import AtMost, Mask, Rule, capped
from recsys_core.serving.text import TextMap
from recsys_core.vectors import VectorRecommender

# Scores of so many users over the catalogue are held at a time.
_BLOCK = 256
_PARTS = (f"model/{MODEL_FILE}", "catalogue.json", "users.json", "known.safetensors")


@dataclass(frozen=True)
class Item:
    """One recommended item, by its external id."""

    id: str
    title: str
    score: float


@dataclass(frozen=True)
class Answer:
    """The list for one user or history, best first. candidates: items that the rules left to choose from."""

    items: tuple[Item, ...]
    asked: int
    candidates: int

    @property
    def missing(self) -> int:
        """How many items fewer than asked there are, because rules and caps left no more."""
        return self.asked - len(self.items)

    @property
    def ids(self) -> list[str]:
        """External ids, best first."""
        return [item.id for item in self.items]


class Service:
    """Recommends for known users, and for anyone whose history is given.

    model: a trained recommender; catalogue: its items, in its order; users: external ids of known users; known: what each of them did.
    Raises DataError when model, catalogue and users do not belong together.
    """

    def __init__(self, model: Recommender, catalogue: Catalogue, users: Vocabulary, known: Histories) -> None:
        if model.items is None:
            raise DataError(f"{model.name} has not been trained; call fit(dataset) or load(folder) first")
        if model.items.ids != catalogue.ids.ids:
            raise DataError(f"{model.name} knows {len(model.items)} items, not the {len(catalogue)} of this catalogue; use its own dataset")
        if len(users) != model.n_users or len(known) != len(users):
            raise DataError(f"{model.name} knows {model.n_users} users, and {len(users)} ids with {len(known)} histories are given")
        self.model, self.catalogue, self.users, self.known = model, catalogue, users, known
        self._index: ItemIndex | None = None

    @classmethod
    def of(cls, model: Recommender, dataset: Dataset) -> Service:
        """A model with the items of a dataset, and its users with all their interactions there."""
        order = dataset.order
        known = Histories(
            dataset.sequences(),
            np.arange(len(dataset.users)),
            dataset.timestamp[order] if dataset.timed else None,
            None if dataset.rating is None else dataset.rating[order],
            features={f.name: plain_values(f)[order] for f in dataset.features.interaction},
        )
        return cls(model, Catalogue.of(dataset), dataset.users, known)

    def recommend(
        self,
        users: Sequence[str],
        k: int = 10,
        rules: Sequence[Rule] = (),
        caps: Sequence[AtMost] = (),
        repeat: bool = False,
        at: int | None = None,
    ) -> list[Answer]:
        """The k best items for each known user, by external id.

        rules: what an item must pass, all of them; caps: what a list must keep; repeat: whether items of the history may come again;
        at: seconds, the moment of asking, for models that read it. Raises DataError that names unknown users: give their history to
        `recommend_for`, or ask for `popular`.
        """
        refuse_text("users", users)
        unknown = [u for u in users if u not in self.users]
        if unknown:
            names = ", ".join(map(repr, unknown[:5]))
            raise DataError(f"{len(unknown)} unknown user(s): {names}; give a history to recommend for, or ask for what is popular")
        asked = None if at is None else np.full(len(users), at, np.int64)
        return self._rank(replace(self.known.take(self.users.encode(users)), at=asked), k, rules, caps, repeat)

    def recommend_for(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        rules: Sequence[Rule] = (),
        caps: Sequence[AtMost] = (),
        repeat: bool = False,
        timestamps: Sequence[Sequence[int]] | None = None,
        at: int | None = None,
    ) -> list[Answer]:
        """The k best items behind each history of external item ids, oldest first; whose it is need not be known.

        timestamps: seconds of each item, needed by models that read time. The rest is as in `recommend`. Raises DataError that names
        unknown items.
        """
        items = Jagged.from_rows([self.catalogue.ids.encode(row) for row in histories])
        times = None
        if timestamps is not None:
            given = Jagged.from_rows(timestamps)
            if not np.array_equal(given.offsets, items.offsets):
                raise DataError(
                    f"timestamps have {given.lengths.tolist()[:5]} entries, histories {items.lengths.tolist()[:5]}; one an item"
                )
            times = given.values
        asked = None if at is None else np.full(len(items), at, np.int64)
        return self._rank(Histories(items, np.full(len(items), -1, np.int64), times, at=asked), k, rules, caps, repeat)

    def popular(self, k: int = 10, rules: Sequence[Rule] = (), caps: Sequence[AtMost] = ()) -> Answer:
        """The most taken items, for someone nothing is known of; a score is a count of interactions."""
        check_k(k)
        counts = torch.from_numpy(self.catalogue.counts)[None].float()
        return self._answers(counts, self._passed(rules)[None], k, caps)[0]

    def use_index(self, kind: Kind | None) -> None:
        """Finds items through an index over the item vectors from now on; None scores the whole catalogue again.

        Raises DataError for a model without item vectors.
        """
        self._index = None if kind is None else ItemIndex(self._vectors().item_vectors().cpu().numpy(), kind)

    def text_map(self, encode: TextMap.Encoder, seed: int = 0) -> TextMap:
        """Learns from the trained items what vector a text stands for; see `TextMap`, whose figures say how far to trust it."""
        trained = np.flatnonzero(self.catalogue.counts[: self.catalogue.trained] > 0)
        return TextMap.fit(encode, self.catalogue.texts(trained), self._vectors().id_vectors().cpu().numpy()[trained], seed)

    def add_items(self, items: Sequence[NewItem], text_map: TextMap | None = None) -> None:
        """Appends items that came after training to catalogue and model; from now on they are recommended and may stand in histories.

        A model that reads text makes an item's vector of its title and tags. For others the vector of an item's id is what the text map
        makes of these, or without a map the mean over trained items, and models that read features add the vectors of its features. Raises
        DataError, and changes nothing, for an id twice, a feature value of the wrong kind, a model without item vectors, or an item of
        which neither text nor a feature reaches the model.
        """
        model = self._vectors()
        catalogue = self.catalogue.extended(items)
        reads_text = text_map is not None or model.reads_text
        for item in items:
            if not (reads_text and (item.title.strip() or item.tags)) and not set(item.features) & set(model.item_features):
                reads = f"features: {', '.join(model.item_features) or 'none'}"
                advice = "give it a title or tags" if reads_text else "pass a text_map"
                raise DataError(f"nothing known of new item {item.id!r} reaches {model.name}, which reads {reads}; {advice}")
        texts = catalogue.texts(range(len(self.catalogue), len(catalogue)))
        if text_map is not None:
            vectors = torch.from_numpy(text_map(texts))
        elif model.reads_text:
            vectors = model.text_vectors(texts)
        else:
            learned = model.id_vectors()[: catalogue.trained]
            vectors = learned[torch.from_numpy(catalogue.counts[: catalogue.trained] > 0)].mean(0, keepdim=True).repeat(len(items), 1)
        model.add_items([item.id for item in items], vectors, [item.features for item in items])
        self.catalogue = catalogue
        if self._index is not None:
            self.use_index(self._index.kind)

    def save(self, folder: str | Path) -> None:
        """Writes the model, the catalogue and the known users into a folder; an index is built anew, as it is quickly.

        `service.json`, written last, holds their hashes: where a process stopped meanwhile, `load` says so rather than mix two services.
        """
        folder = Path(folder)
        self.model.save(folder / "model")
        self.catalogue.save(folder / "catalogue.json")
        with atomic_file(folder / "users.json") as out:
            out.write(json.dumps(self.users.ids).encode())
        known = self.known
        columns = {"items": known.items.values, "offsets": known.items.offsets, "timestamps": known.timestamps, "ratings": known.ratings}
        columns |= {f"feature.{name}": column for name, column in known.features.items()}
        with atomic_file(folder / "known.safetensors") as out:
            out.write(save({name: column for name, column in columns.items() if column is not None}))
        with atomic_file(folder / "service.json") as out:
            out.write(json.dumps({name: sha256(folder / name) for name in _PARTS}).encode())

    @classmethod
    def load(cls, folder: str | Path) -> Service:
        """Reads what `save` wrote; raises DataError when there is none, or not all of it."""
        folder = Path(folder)
        if not (folder / "catalogue.json").is_file():
            raise DataError(f"{folder} holds no service (catalogue.json is missing); save one there with service.save(folder)")
        try:
            hashes = json.loads((folder / "service.json").read_text())
            if other := next((name for name in _PARTS if sha256(folder / name) != hashes[name]), None):
                raise ValueError(f"{other} is of another saving")
            columns = load_file(folder / "known.safetensors")
            users = Vocabulary(json.loads((folder / "users.json").read_text()))
            known = Histories(
                Jagged(columns["items"], columns["offsets"]),
                np.arange(len(users)),
                columns.get("timestamps"),
                columns.get("ratings"),
                features={name.removeprefix("feature."): c for name, c in columns.items() if name.startswith("feature.")},
            )
            catalogue = Catalogue.load(folder / "catalogue.json")
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise damaged(folder, "service", error) from error
        return cls(load(folder / "model"), catalogue, users, known)

    def _vectors(self) -> VectorRecommender:
        if not isinstance(self.model, VectorRecommender):
            raise DataError(f"{self.model.name} has no item vectors; an index, text and new items need a model such as sasrec or hstu")
        return self.model

    def _passed(self, rules: Sequence[Rule]) -> Mask:
        """Items that pass all rules [I], each asked once."""
        passed = np.ones(len(self.catalogue), bool)
        for rule in rules:
            passed &= rule.mask(self.catalogue)
        return passed

    def _rank(self, histories: Histories, k: int, rules: Sequence[Rule], caps: Sequence[AtMost], repeat: bool) -> list[Answer]:
        check_k(k)
        passed, answers = self._passed(rules), []
        for start in range(0, len(histories), _BLOCK):
            block = histories.slice(start, start + _BLOCK)
            allowed = np.repeat(passed[None], len(block), 0)
            if not repeat:
                allowed[block.items.row_ids, block.items.values] = False
            if self._index is not None and not caps:
                found = self._index.search(self._vectors().query_vectors(block).cpu().numpy(), k, allowed)
                answers += [self._answer(*row, k) for row in zip(*found, allowed.sum(1), strict=True)]
            else:
                answers += self._answers(self.model.scores(block), allowed, k, caps)
        return answers

    def _answers(self, scores: torch.Tensor, allowed: Mask, k: int, caps: Sequence[AtMost]) -> list[Answer]:
        """The best allowed items [B, I] by scores [B, I]. A cap may pass over any number of items, so then the whole order is needed."""
        reach = len(self.catalogue) if caps else min(k, len(self.catalogue))
        open_ = scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), float("-inf"))
        ids, top = (found.cpu().numpy() for found in top_k(open_, reach))
        held = [(cap.count, cap.codes(self.catalogue)) for cap in caps]
        answers = []
        for row, mask in enumerate(allowed):
            here = mask[ids[row]]
            items, best = ids[row][here], top[row][here]
            if caps:
                value = dict(zip(items.tolist(), best.tolist(), strict=True))
                items = np.array(capped(items.tolist(), held, k), np.int64)
                best = np.array([value[i] for i in items.tolist()], np.float32)
            answers.append(self._answer(items, best, int(mask.sum()), k))
        return answers

    def _answer(self, items: Ints, scores: Floats, candidates: int, k: int) -> Answer:
        known = self.catalogue
        pairs = zip(items.tolist(), scores.tolist(), strict=True)
        return Answer(tuple(Item(known.ids.ids[i], known.titles[i], s) for i, s in pairs if i >= 0), k, int(candidates))
