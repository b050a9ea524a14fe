"""Log-likelihoods of given continuations, one forward pass for a prompt and all its continuations.

The continuations are branches of a tree whose trunk is the prompt: each branch token sees the trunk up to where the branch leaves it, and
its own branch. The prompt is thus read once, and no key or value is ever copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from agents.chat.text import Text

PASS_NODES = 2048
"""Most tree nodes in one pass, padding included."""
_PASS_OUTPUTS = 768
"""Most positions in one pass whose logits over the vocabulary are held (150 MB in float32)."""


@dataclass(frozen=True)
class Branch:
    """Leaves the trunk after its first `depth` tokens and goes on with `tokens`."""

    depth: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Tree:
    """A prompt's token ids and its continuations. Nodes are the tokens that must be read: the trunk's, then each branch's but its last."""

    trunk: tuple[int, ...]
    branches: tuple[Branch, ...]

    @property
    def nodes(self) -> int:
        return len(self.trunk) + sum(max(len(b.tokens) - 1, 0) for b in self.branches)

    @property
    def outputs(self) -> int:
        """Nodes from the first one on whose logits are wanted."""
        return self.nodes - min((b.depth for b in self.branches), default=1) + 1


def tree(text: Text, prompt: str, continuations: Sequence[str]) -> Tree:
    """Tokens of every `prompt + continuation`, split as `Text.continuation` says."""
    split = [text.continuation(prompt, c) for c in continuations]
    trunk = (text.document, *text.encode(prompt))
    return Tree(trunk, tuple(Branch(depth, tuple(ids[depth:])) for ids, depth in split))


def log_likelihoods(model: Any, trees: Sequence[Tree]) -> list[list[float]]:
    """For each tree, the sum of log P(token | what precedes it) over each branch, in nats; 0 for an empty branch.

    model: as `model.load` gives it.
    """
    results: list[list[float]] = [[] for _ in trees]
    # Trees of like size share a pass, which pads them to the largest.
    waiting = sorted(range(len(trees)), key=lambda i: trees[i].nodes)
    while waiting:
        size = outputs = 0
        for i in waiting:
            outputs = max(outputs, trees[i].outputs)
            if size and ((size + 1) * trees[i].nodes > PASS_NODES or (size + 1) * outputs > _PASS_OUTPUTS):
                break
            size += 1
        for i, scores in zip(waiting[:size], _one_pass(model, [trees[i] for i in waiting[:size]]), strict=True):
            results[i] = scores
        del waiting[:size]
    return results


def _one_pass(model: Any, trees: Sequence[Tree]) -> list[list[float]]:
    width, outputs = max(t.nodes for t in trees), max(t.outputs for t in trees)
    ids, positions = torch.zeros(2, len(trees), width, dtype=torch.int64)
    # Every token sees itself; so does padding, which would come out as NaN if it saw nothing.
    mask = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1, 1)
    readers: list[list[list[int]]] = []
    for row, t in enumerate(trees):
        # Padded on the left, so that all wanted logits lie in the last `outputs` columns.
        root = node = width - t.nodes
        readers.append([])
        for depth, tokens in ((0, t.trunk), *((b.depth, b.tokens[:-1]) for b in t.branches)):
            stop = node + len(tokens)
            ids[row, node:stop] = torch.tensor(tokens, dtype=torch.int64)
            positions[row, node:stop] = torch.arange(depth, depth + len(tokens))
            mask[row, 0, node:stop, root : root + depth] = True
            mask[row, 0, node:stop, node:stop] = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
            readers[row].append([root + depth - 1, *range(node, stop)])
            node = stop
    logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=outputs).logits
    return [
        [_log_probability(logits[row], [at - width + outputs for at in readers[row][i]], b.tokens) for i, b in enumerate(t.branches, 1)]
        for row, t in enumerate(trees)
    ]


def _log_probability(logits: Tensor, at: Sequence[int], tokens: Sequence[int]) -> float:
    """Of tokens, the i-th after logits[at[i]]."""
    if not tokens:
        return 0.0
    return -float(cross_entropy(logits[at].float(), torch.tensor(tokens), reduction="none").double().sum())
