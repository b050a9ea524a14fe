"""Generating many answers at once: rows join and leave a running batch, and prompts reuse what a slot already holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.chat.constrain import Guide, Guides
from agents.chat.model import Slots
from agents.chat.text import common_prefix
from recsys_core.errors import DataError

PREFILL_TOKENS = 2560
"""Most prompt tokens in one forward pass, padding included; bounds the memory of activations."""
_WORTH_SHARING = 256
"""Prompt tokens that must be saved before one row is computed ahead of its group."""


@dataclass(eq=False)
class Row:
    """One answer in the making. `cancelled` is asked every step."""

    prompt: list[int]
    max_tokens: int
    temperature: float
    seed: int
    guide: Guide | None
    stops: frozenset[int]
    cancelled: Callable[[], bool]
    out: list[int] = field(default_factory=list)
    finished: bool = False
    error: DataError | None = None

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        if self.guide:
            self._extend(self.guide.forced())

    def choose(self, logits: Tensor) -> None:
        """Takes the next token from logits [V]: the largest at temperature 0, else drawn by the Gumbel-max trick.

        Unlike a draw by cumulative probability, its outcome hardly ever turns on rounding, which differs with the batch.
        """
        if self.temperature > 0:
            race = torch.from_numpy(self._random.standard_exponential(len(logits), np.float32))
            # A draw of exactly 0 comes once in ten million; its -inf would make NaN of a forbidden token's, and NaN wins every argmax.
            logits = logits / self.temperature - race.clamp_min(torch.finfo(torch.float32).tiny).log()
        token = int(logits.argmax())
        if token in self.stops:
            self.finished = True
        else:
            self._extend([token, *(self.guide.accept(token) if self.guide else [])])

    def _extend(self, tokens: list[int]) -> None:
        for token in tokens:
            if token in self.stops or len(self.out) == self.max_tokens:
                self.finished = True
                return
            self.out.append(token)
        self.finished = len(self.out) >= self.max_tokens or bool(self.guide and self.guide.finished)


class Decoder:
    """Slots of a key-value cache; the first `len(rows)` are in use. model: as `model.load` gives it; slots: largest batch."""

    def __init__(self, model: Any, guides: Guides, slots: int) -> None:
        self.model, self.guides = model, guides
        self.kv = Slots(slots)
        # What each slot's keys and values stand for; a slot that was left still serves as a source of prefixes.
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self.rows: list[Row] = []

    @property
    def free(self) -> int:
        return len(self.held) - len(self.rows)

    def admit(self, rows: list[Row]) -> list[Row]:
        """Reads the prompts of at most `free` new rows and takes their first tokens; returns those already finished."""
        waiting, finished = list(rows), []
        while waiting:
            group = self._next_group(waiting)
            waiting = waiting[len(group) :]
            first = len(self.rows)
            for row in group:
                self._place(row)
            self._advance(first)
            finished += self._sweep()
        return finished

    def step(self) -> list[Row]:
        """One decode step for every row; returns the finished ones, which leave their slots."""
        finished = self._sweep()
        if self.rows:
            self._advance(0)
            finished += self._sweep()
        return finished

    def _next_group(self, waiting: list[Row]) -> list[Row]:
        lead = waiting[0]
        have = max(common_prefix(lead.prompt, held) for held in self.held)
        saved = sum(max(common_prefix(lead.prompt, row.prompt) - have, 0) for row in waiting[1:])
        if saved >= _WORTH_SHARING:
            return [lead]
        longest = size = 0
        for row in waiting:
            longest = max(longest, len(row.prompt))
            if size and (size + 1) * longest > PREFILL_TOKENS:
                break
            size += 1
        return waiting[:size]

    def _place(self, row: Row) -> None:
        """Gives a row the next slot, filled with the longest prefix of its prompt that any slot holds."""
        slot = len(self.rows)
        lengths = [common_prefix(row.prompt, held) for held in self.held]
        source = max(range(len(lengths)), key=lambda s: (lengths[s], s == slot))
        # The last prompt token is always read, since its output gives the first answer token.
        length = min(lengths[source], len(row.prompt) - 1)
        if source != slot:
            self.kv.copy(source, slot, length)
        self.held[slot] = row.prompt[:length]
        self.rows.append(row)

    def _advance(self, first: int) -> None:
        """Reads all tokens not yet held by the slots from `first` on, then takes one more token for each."""
        rows = self.rows[first:]
        fresh = [(r.prompt + r.out)[len(held) :] for r, held in zip(rows, self.held[first:], strict=False)]
        starts = torch.tensor([len(held) for held in self.held[first : first + len(rows)]])[:, None]
        ends = starts + torch.tensor([len(f) for f in fresh])[:, None]
        longest, width = max(len(f) for f in fresh), int(ends.max())
        # Padded on the left, so that every row's next token is read off the last column.
        ids = torch.tensor([[0] * (longest - len(f)) + f for f in fresh])
        columns = ends + torch.arange(-longest, 0)
        columns = columns.where(columns >= starts, -1)
        # Padding looks at column 0: a token that sees nothing comes out as NaN.
        positions = columns.clamp(min=0)
        mask = torch.arange(width) <= positions[:, None, :, None]
        self.kv.write(first, columns, width)
        output = self.model(ids, attention_mask=mask, position_ids=positions, past_key_values=self.kv, use_cache=True, logits_to_keep=1)
        for slot, tokens in enumerate(fresh, first):
            self.held[slot] = self.held[slot] + tokens
        logits = output.logits[:, -1].float()
        self.guides.restrict(logits, [r.guide for r in rows])
        for row, scores in zip(rows, logits, strict=True):
            try:
                row.choose(scores)
            except DataError as error:  # this row's own; its neighbours go on
                row.error, row.finished = error, True

    def _sweep(self) -> list[Row]:
        """Takes out finished and cancelled rows; the last row moves into the gap."""
        gone = [row for row in self.rows if row.finished or row.cancelled()]
        for row in gone:
            slot, last = self.rows.index(row), len(self.rows) - 1
            if slot != last:
                self.kv.copy(last, slot, len(self.held[last]))
                self.held[slot], self.rows[slot] = self.held[last], self.rows[last]
            self.rows.pop()
        return [row for row in gone if row.finished]
