"""The codes of a catalogue's items: unique, with figures about them, and on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from recsys_core.errors import DataError, damaged
from recsys_core.files import atomic_file


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """A unique sequence of codes for each item.

    codes: [I, L + 1] int64 on the processor, 0 <= codes[:, l] < sizes[l]. The first L levels say what the item is like, and the last one
    tells items apart that share all of those: 0, 1, .. by dense id. sizes: how many codes there are at each level.
    made_of: a hash of what the codes were made from, empty where nobody said.
    """

    codes: Tensor
    sizes: tuple[int, ...]
    made_of: str = ""

    def __post_init__(self) -> None:
        codes, sizes = self.codes, torch.tensor(self.sizes)
        if codes.ndim != 2 or codes.dtype != torch.int64 or codes.shape[1] != len(sizes) or len(sizes) < 2 or not len(codes):
            shape = f"{codes.dtype} {list(codes.shape)} with {len(sizes)} sizes"
            raise DataError(f"codes are {shape}; give int64 [I, L + 1] of at least 1 item and 2 levels, and a size a level")
        if bool((codes < 0).any() | (codes >= sizes).any()):
            wrong = int(((codes < 0) | (codes >= sizes)).any(0).nonzero()[0])
            column = codes[:, wrong]
            raise DataError(f"codes of level {wrong} are {column.min()} .. {column.max()}; the level has 0 .. {self.sizes[wrong] - 1}")
        if len(torch.unique(codes, dim=0)) < len(codes):
            raise DataError(f"{len(codes)} items have fewer different ids; build them with SemanticIds.distinguish")

    @classmethod
    def distinguish(cls, codes: Tensor, size: int, made_of: str = "") -> SemanticIds:
        """From codes [I, L] int64 below `size` that items may share: a last level is added, as in section 3.1 of the paper."""
        _, group = torch.unique(codes, dim=0, return_inverse=True)
        # A stable sort by group keeps dense ids in order; an item's code is its place behind the group's first.
        sorted_, order = group.sort(stable=True)
        first = torch.searchsorted(sorted_, sorted_)
        last = torch.empty_like(group).index_copy_(0, order, torch.arange(len(codes)) - first)
        return cls(torch.cat([codes, last[:, None]], 1), (*[size] * codes.shape[1], int(last.max()) + 1), made_of)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def levels(self) -> int:
        """Codes an item, the one that tells items apart among them."""
        return len(self.sizes)

    @cached_property
    def collision_rate(self) -> float:
        """Share of items whose codes, but for the last, are also another item's."""
        _, group, counts = torch.unique(self.codes[:, :-1], dim=0, return_inverse=True, return_counts=True)
        return float((counts[group] > 1).double().mean())

    @cached_property
    def perplexities(self) -> tuple[float, ...]:
        """How many codes of each level are in use, in effect: the exponential of the entropy of their frequencies over items."""
        shares = [torch.bincount(column).double() / len(self) for column in self.codes.T]
        return tuple(float(torch.special.entr(share).sum().exp()) for share in shares)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of codes and sizes."""
        return hashlib.sha256(f"{self.sizes}".encode() + self.codes.contiguous().numpy().tobytes()).hexdigest()

    def __str__(self) -> str:
        use = ", ".join(f"{p:.0f}/{n}" for p, n in zip(self.perplexities[:-1], self.sizes[:-1], strict=True))
        return f"{self.collision_rate:.1%} of {len(self)} items collide, at most {self.sizes[-1]} of them; codes in use {use}"

    def save(self, file: Path) -> None:
        """Writes one safetensors file, in one piece."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as out:
            out.write(save({"codes": self.codes.contiguous(), "sizes": torch.tensor(self.sizes)}, {"made_of": self.made_of}))

    @classmethod
    def load(cls, file: Path) -> SemanticIds:
        """Reads what `save` wrote; raises DataError for a file that holds no semantic ids."""
        try:
            with safe_open(file, "pt") as held:
                made_of = (held.metadata() or {}).get("made_of", "")
                codes, sizes = held.get_tensor("codes"), held.get_tensor("sizes")
        except (OSError, SafetensorError) as error:
            raise damaged(file, "set of semantic ids", error) from error
        return cls(codes, tuple(sizes.tolist()), made_of)
