"""Sequences as models read them: jagged batches of tokens, each behind what came before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_core.data.dataset import Dataset
from recsys_core.data.features import missing, plain_values
from recsys_core.data.histories import Histories
from recsys_core.data.jagged import Ints, Jagged

BY_TOKEN = ("tokens", "targets", "times", "next_times", "ratings", "next_ratings")


@dataclass(frozen=True, eq=False)
class SequenceBatch:
    """B sequences of T tokens in all. A sequence begins with the start token; token ids are dense item ids, and `n_items` is the start.

    tokens: [T] int64; offsets: [B + 1] int64, the last of them may be less than T, and then the tokens from there on are padding;
    users: [B] int64, -1 for unknown; longest: a bound on tokens of a sequence.
    targets: [T] int64, the item after each token, or None where there is nothing to learn.
    times: [T] int64 seconds of each token, the start token's being that of the item after it; next_times: [T] int64 seconds of what comes
    after each token; ratings: [T] float32 of each token, NaN where unknown; next_ratings: [T] likewise of each target.
    features: interaction features [T] by name: int64 codes, -1 where missing, or float32 values, NaN where missing.
    """

    tokens: Tensor
    offsets: Tensor
    users: Tensor
    longest: int
    targets: Tensor | None = None
    times: Tensor | None = None
    next_times: Tensor | None = None
    ratings: Tensor | None = None
    next_ratings: Tensor | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def size(self) -> int:
        """B, as `len` says it; while a graph is exported it is a symbol, which `len` cannot be."""
        return self.users.shape[0]

    @property
    def tightest(self) -> int:
        """The longest sequence's tokens where asking is free, else `longest`: a GPU would have to be waited for, a graph has none."""
        known = self.offsets.device.type == "cpu" and not torch.compiler.is_exporting() and len(self) > 0
        return int(self.offsets.diff().max()) if known else self.longest

    @property
    def rows(self) -> Tensor:
        """The sequence of each token [T] int64; B for padding."""
        return torch.searchsorted(self.offsets[1:], torch.arange(self.tokens.shape[0], device=self.tokens.device), right=True)

    @property
    def real(self) -> Tensor:
        """Whether each token [T] belongs to a sequence, and is no padding."""
        return torch.arange(self.tokens.shape[0], device=self.tokens.device) < self.offsets[-1]

    @property
    def last(self) -> Tensor:
        """The place of each sequence's last token [B] int64."""
        return self.offsets[1:] - 1

    def roomy(self, tokens: int, rows: int) -> Self:
        """An empty batch on the same device with room for that many tokens and sequences."""

        def room(column: Tensor | None) -> Tensor | None:
            return None if column is None else column.new_zeros(tokens)

        changed: dict[str, Any] = {name: room(getattr(self, name)) for name in BY_TOKEN}
        changed["features"] = {name: column.new_zeros(tokens) for name, column in self.features.items()}
        return replace(self, offsets=self.offsets.new_zeros(rows + 1), users=self.users.new_full((rows,), -1), **changed)

    def load(self, batch: Self) -> bool:
        """Takes over a batch in place, the rest becoming padding; False, and nothing changed, where there is no room for it."""
        tokens, rows = len(batch.tokens), len(batch)
        if tokens > len(self.tokens) or rows > len(self):
            return False
        for name in BY_TOKEN:
            if (column := getattr(self, name)) is not None:
                column[:tokens].copy_(getattr(batch, name))
        for name, column in self.features.items():
            column[:tokens].copy_(batch.features[name])
        self.offsets[: rows + 1].copy_(batch.offsets)
        self.offsets[rows + 1 :].fill_(tokens)
        self.users[:rows].copy_(batch.users)
        return True

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {k: v.to(device, non_blocking=True) for k, v in moved.items() if isinstance(v, Tensor)}
        changed["features"] = {k: v.to(device, non_blocking=True) for k, v in self.features.items()}
        return replace(self, **changed)


@dataclass(frozen=True, eq=False)
class SequenceLog:
    """A dataset's interactions in the order of `Dataset.order`, as columns to cut windows from.

    items: jagged [U] rows; times: [T] int64; ratings: [T] float32, NaN where there are none; features: interaction features [T] by name.
    """

    items: Jagged
    times: Ints
    ratings: NDArray[np.float32]
    features: Mapping[str, NDArray]

    @classmethod
    def of(cls, dataset: Dataset) -> SequenceLog:
        """The columns of a dataset."""
        order = dataset.order
        ratings = np.full(len(dataset), np.nan, np.float32) if dataset.rating is None else dataset.rating[order]
        features = {f.name: plain_values(f)[order] for f in dataset.features.interaction}
        return cls(dataset.sequences(), dataset.timestamp[order], ratings, features)

    def latest(self, max_length: int) -> Jagged:
        """The places of the latest `max_length` items of every sequence that has any."""
        return latest(self.items, max_length).take(np.flatnonzero(self.items.lengths))

    def windows(self, max_length: int, rng: np.random.Generator) -> Jagged:
        """Cuts every sequence into rows of at most `max_length` places of the log, [T] int64 in all, each once.

        Where a sequence is cut first is drawn anew each time, so that a position is seen behind contexts of all lengths.
        """
        lengths, place = self.items.lengths, np.arange(len(self.items.values)) - np.repeat(self.items.offsets[:-1], self.items.lengths)
        phase = rng.integers(0, max_length, len(lengths))
        # A sequence that fits is never cut.
        cut = np.repeat(np.where(lengths > max_length, phase, -1), lengths)
        starts = np.flatnonzero((place == 0) | (place % max_length == cut))
        return Jagged(np.arange(len(place)), np.append(starts, len(place)).astype(np.int64))

    def batch(self, places: Jagged, start_token: int, max_length: int) -> SequenceBatch:
        """Windows to learn from: the items at `places` are the targets, and each is read behind the token before it."""
        heads = places.offsets[:-1][places.lengths > 0]
        here = places.values

        def shifted(column: NDArray, first: NDArray | float) -> Tensor:
            moved = np.roll(column, 1)
            moved[heads] = first
            return torch.from_numpy(moved)

        items, times, ratings = self.items.values[here], self.times[here], self.ratings[here]
        return SequenceBatch(
            tokens=shifted(items, start_token),
            offsets=torch.from_numpy(places.offsets),
            users=torch.from_numpy(self.items.row_ids[here[heads]]),
            longest=max_length,
            targets=torch.from_numpy(items),
            times=shifted(times, times[heads]),
            next_times=torch.from_numpy(times),
            ratings=shifted(ratings, np.nan),
            next_ratings=torch.from_numpy(ratings),
            features={name: shifted(column[here], missing(column)) for name, column in self.features.items()},
        )


def history_batch(histories: Histories, start_token: int, max_length: int) -> SequenceBatch:
    """Histories to rank behind: the start token and the latest max_length - 1 items of each; the question follows the last token."""
    kept = latest(histories.items, max_length - 1)
    offsets = kept.offsets + np.arange(len(kept) + 1)
    place = np.arange(len(kept.values)) + kept.row_ids + 1
    size, source = int(offsets[-1]), kept.values
    has = kept.lengths > 0
    first, starts = kept.offsets[:-1][has], offsets[:-1]

    tokens = np.full(size, start_token, np.int64)
    tokens[place] = histories.items.values[source]
    times = next_times = None
    if histories.timestamps is not None:
        at = histories.at if histories.at is not None else np.zeros(len(kept), np.int64)
        times = np.zeros(size, np.int64)
        times[place] = histories.timestamps[source]
        times[starts] = at
        times[starts[has]] = histories.timestamps[source][first]
        next_times = np.roll(times, -1)
        ends = offsets[1:] - 1
        # A question at no stated time is asked right after the last item.
        next_times[ends] = times[ends] if histories.at is None else histories.at
    ratings = np.full(size, np.nan, np.float32)
    if histories.ratings is not None:
        ratings[place] = histories.ratings[source]
    features = {}
    for name, column in histories.features.items():
        spread = np.full(size, missing(column), column.dtype)
        spread[place] = column[source]
        features[name] = torch.from_numpy(spread)
    return SequenceBatch(
        tokens=torch.from_numpy(tokens),
        offsets=torch.from_numpy(offsets),
        users=torch.from_numpy(histories.users.copy()),
        longest=max_length,
        times=None if times is None else torch.from_numpy(times),
        next_times=None if next_times is None else torch.from_numpy(next_times),
        ratings=torch.from_numpy(ratings),
        features=features,
    )


def latest(rows: Jagged, count: int) -> Jagged:
    """The places of the last `count` values of each row."""
    from_end = np.repeat(rows.offsets[1:], rows.lengths) - np.arange(len(rows.values))
    offsets = np.concatenate([[0], np.cumsum(np.minimum(rows.lengths, count))]).astype(np.int64)
    return Jagged(np.flatnonzero(from_end <= count), offsets)
