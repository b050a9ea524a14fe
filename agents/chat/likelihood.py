"""Log-likelihoods of given continuations, one forward pass for a prompt and all its continuations.

The continuations are branches of a tree whose trunk is the prompt: each branch token sees the trunk up to where the branch leaves it, and
its own branch. The prompt is thus read once, and no key or value is ever copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.chat.llama import Llama
from agents.chat.text import Text

_HEAD_ROWS = 128
"""Positions whose vocabulary logits are held at a time (25 MB in float32)."""


@dataclass(frozen=True)
class Branch:
    """Leaves the trunk after its first `depth` tokens and goes on with `tokens`."""

    depth: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Tree:
    """A prompt's token ids and its continuations. Nodes are counted in tokens that must be read."""

    trunk: tuple[int, ...]
    branches: tuple[Branch, ...]

    @property
    def nodes(self) -> int:
        return len(self.trunk) + sum(max(len(b.tokens) - 1, 0) for b in self.branches)


def tree(text: Text, prompt: str, continuations: Sequence[str]) -> Tree:
    """Tokens of every `prompt + continuation`, split as `Text.continuation` says."""
    split = [text.continuation(prompt, c) for c in continuations]
    trunk = (text.document, *text.encode(prompt))
    return Tree(trunk, tuple(Branch(depth, tuple(ids[depth:])) for ids, depth in split))


def log_likelihoods(model: Llama, trees: Sequence[Tree]) -> list[list[float]]:
    """For each tree, the sum of log P(token | what precedes it) over each branch, in nats; 0 for an empty branch."""
    if not trees:
        return []
    ids: list[int] = []
    rows: list[int] = []
    columns: list[int] = []
    positions: list[int] = []
    at: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    width = max(t.nodes for t in trees)
    mask = torch.zeros(len(trees), width, width, dtype=torch.bool)
    offset = count = 0
    for row, t in enumerate(trees):
        trunk = len(t.trunk)
        mask[row, :trunk, :trunk] = torch.ones(trunk, trunk, dtype=torch.bool).tril()
        ids += t.trunk
        positions += range(trunk)
        node = trunk
        for branch in t.branches:
            read = branch.tokens[:-1]
            stop = node + len(read)
            mask[row, node:stop, : branch.depth] = True
            mask[row, node:stop, node:stop] = torch.ones(len(read), len(read), dtype=torch.bool).tril()
            ids += read
            positions += range(branch.depth, branch.depth + len(read))
            if branch.tokens:
                at += [offset + branch.depth - 1, *range(offset + node, offset + stop)]
                targets += branch.tokens
                owner += [count] * len(branch.tokens)
            node, count = stop, count + 1
        rows += [row] * node
        columns += range(node)
        offset += node
    kv = model.cache(len(trees), width)
    hidden = model.forward(torch.tensor(ids), torch.tensor(rows), torch.tensor(columns), torch.tensor(positions), kv, mask)
    total = torch.zeros(count, dtype=torch.float64)
    if targets:
        total.index_add_(0, torch.tensor(owner), _token_log_probability(model, hidden[torch.tensor(at)], torch.tensor(targets)).double())
    return [part.tolist() for part in torch.split(total, [len(t.branches) for t in trees])]


def _token_log_probability(model: Llama, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Log softmax of the chosen tokens, [N] float32.

    The token's own logit is exact; rounding in the normalizer averages out over the vocabulary.
    """
    parts = zip(torch.split(hidden, _HEAD_ROWS), torch.split(tokens, _HEAD_ROWS), strict=True)
    return torch.cat([model.exact_logits(h, t[:, None])[:, 0] - model.logits(h).logsumexp(-1) for h, t in parts])
