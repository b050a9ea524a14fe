"""The existing ids as a tree of prefixes, in tensors: which codes may follow a prefix, and which item an id is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys_core.semantic.ids import SemanticIds


class Trie(nn.Module):
    """Prefixes of I ids of C codes. Depth d = 0 .. C has N_d nodes, one a prefix of d codes, numbered in lexicographic order.

    Node 0 of depth 0 is the empty prefix, and the I nodes of depth C are the items. Tensors by depth, all int64 buffers:
    child(d): [N_d, sizes[d]], the node of depth d + 1 behind a node and a code, -1 where no id begins so, for d < C.
    parent(d): [N_d], the node of depth d - 1 before it; code(d): [N_d], the last code; for d > 0.
    member(d): [I], the node of each item. leaf: [I], the item of each node of depth C.
    """

    leaf: Tensor

    def __init__(self, ids: SemanticIds) -> None:
        super().__init__()
        self.sizes, self.depth = ids.sizes, ids.levels
        node, count = torch.zeros(len(ids), dtype=torch.int64), 1
        self._hold("member", 0, node)
        for depth, (size, codes) in enumerate(zip(ids.sizes, ids.codes.T, strict=True)):
            # Sorted keys number prefixes by their parents first, then by code.
            key, node = (node * size + codes).unique(return_inverse=True)
            child = torch.full((count * size,), -1).index_copy_(0, key, torch.arange(len(key)))
            self._hold("child", depth, child.view(count, size))
            self._hold("parent", depth + 1, key // size)
            self._hold("code", depth + 1, key % size)
            self._hold("member", depth + 1, node)
            count = len(key)
        self.register_buffer("leaf", node.argsort(), persistent=False)

    def _hold(self, name: str, depth: int, value: Tensor) -> None:
        self.register_buffer(f"{name}{depth}", value, persistent=False)

    def child(self, depth: int) -> Tensor:
        return self.get_buffer(f"child{depth}")

    def parent(self, depth: int) -> Tensor:
        return self.get_buffer(f"parent{depth}")

    def code(self, depth: int) -> Tensor:
        return self.get_buffer(f"code{depth}")

    def member(self, depth: int) -> Tensor:
        return self.get_buffer(f"member{depth}")

    def count(self, depth: int) -> int:
        """N_d."""
        return len(self.parent(depth)) if depth else 1

    def lookup(self, codes: Tensor) -> Tensor:
        """The items [N] int64 whose ids are the codes [N, C] int64; -1 where there is none."""
        node = codes.new_zeros(len(codes))
        for depth, column in enumerate(codes.T):
            known = (node >= 0) & (column >= 0) & (column < self.sizes[depth])
            found = self.child(depth)[node.clamp(min=0), column.clamp(0, self.sizes[depth] - 1)]
            node = torch.where(known, found, -1)
        return torch.where(node >= 0, self.leaf[node.clamp(min=0)], -1)

    def asked(self, everywhere: bool) -> list[Tensor]:
        """The nodes of each depth 0 .. C - 1 that a decoder has to read to score all items, rising.

        everywhere: all of them. Else those with several children, where something is left to say, and the nodes on the way to these.
        """
        if everywhere:
            return [torch.arange(self.count(depth), device=self.leaf.device) for depth in range(self.depth)]
        found: list[Tensor] = []
        for depth in reversed(range(self.depth)):
            needed = (self.child(depth) >= 0).sum(1) > 1
            if found:
                needed[self.parent(depth + 1)[found[0]]] = True
            # The root is always read, so that a catalogue of one item needs no case of its own.
            found.insert(0, torch.ones(1, dtype=torch.bool, device=needed.device).nonzero()[:, 0] if not depth else needed.nonzero()[:, 0])
        return found
