"""Items from a decoder of codes: every item's score, or the best few by a beam search that knows when it has found them."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_core.models.tiger.network import Cache, Memory, TIGERNetwork
from recsys_core.sequence.batch import SequenceBatch

_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}
"""What keys, values and probabilities of the histories that are worked on at once may take."""
_MARGIN = 1e-4
"""Rounding of a score: prefixes that are ahead by less are not held to be ahead."""


@torch.inference_mode()
def all_scores(network: TIGERNetwork, batch: SequenceBatch) -> Tensor:
    """Log-probabilities [B, I] of all items behind B histories.

    A prefix that items share is decoded once for all of them, so the work grows with the number of prefixes. Where probabilities are
    taken over the codes that exist behind a prefix, one that is followed by a single code says nothing, and is passed over.
    """
    trie = network.trie
    asked = trie.asked(everywhere=network.config.softmax == "codebook")
    memory = network.read(batch)
    scores = network.table.new_empty(len(batch), len(trie.leaf))
    step = _rows(network, max(map(len, asked)))
    for start in range(0, len(batch), step):
        scores[start : start + step] = _descend(network, memory.rows(start, start + step), asked)[:, trie.member(trie.depth)]
    return scores


def _descend(network: TIGERNetwork, memory: Memory, asked: list[Tensor]) -> Tensor:
    """Log-probabilities [B, I] of the nodes of the last depth."""
    trie, past = network.trie, Cache()
    scores = network.table.new_zeros(len(memory.readable), 1)
    for depth, nodes in enumerate(asked):
        if depth:
            parents = torch.searchsorted(asked[depth - 1], trie.parent(depth)[nodes])
            past = [(k.index_select(1, parents), v.index_select(1, parents)) for k, v in past]
        states, past = network.step(depth, trie.code(depth)[nodes][None] if depth else None, past, memory)
        shares = network.log_shares(depth, states, nodes)
        # What each node of the next depth adds: its code's share behind its parent, or nothing behind a parent that was passed over.
        row = torch.full((trie.count(depth),), -1, device=nodes.device).index_copy_(0, nodes, torch.arange(len(nodes), device=nodes.device))
        parent, code = trie.parent(depth + 1), trie.code(depth + 1)
        scores = scores.index_select(1, parent)
        known = (row[parent] >= 0).nonzero()[:, 0]
        scores.index_add_(1, known, shares[:, row[parent[known]], code[known]])
    return scores


@torch.inference_mode()
def beam_search(
    network: TIGERNetwork, batch: SequenceBatch, k: int, width: int, excluded: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The best k items [B, k] int64 behind B histories, their log-probabilities [B, k], and whether the search proves them the best [B].

    width: prefixes kept at each depth, at least k; k is at most I. excluded: rows [E] and items [E], distinct pairs that are not listed.
    Best first, equals by dense id; -1 and -inf where the catalogue ran out.

    A prefix whose items are all excluded is dropped, so each one kept leads to an item, and k come back wherever there are k. A prefix is
    at least as probable as what it leads to. So if the k-th item is ahead of every prefix that was dropped for want of room, no item
    behind those can be among the best k: the list is proven. Two items whose scores differ by less than rounding may change places.
    """
    memory, parts = network.read(batch), []
    step = _rows(network, width + 1)
    for start in range(0, max(len(batch), 1), step):
        mine = (excluded[0] >= start) & (excluded[0] < start + step)
        parts.append(_search(network, memory.rows(start, start + step), k, width, (excluded[0][mine] - start, excluded[1][mine])))
    items, scores, proven = (torch.cat(found) for found in zip(*parts, strict=True))
    return items, scores, proven


def _search(network: TIGERNetwork, memory: Memory, k: int, width: int, excluded: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    trie, users, device = network.trie, len(memory.readable), network.table.device
    row = torch.arange(users, device=device)[:, None]
    nodes, scores = torch.zeros(users, 1, dtype=torch.int64, device=device), network.table.new_zeros(users, 1)
    dropped = network.table.new_full((users,), -torch.inf)
    codes: Tensor | None = None
    past = Cache()
    for depth in range(trie.depth):
        states, past = network.step(depth, codes, past, memory)
        reached = scores[..., None] + network.log_shares(depth, states, nodes)
        children = trie.child(depth)[nodes]
        left = _left(trie.member(depth + 1), trie.count(depth + 1), users, excluded)[row[..., None], children.clamp(min=0)]
        reached = reached.masked_fill(~left | (children < 0), -torch.inf).flatten(1)
        best, place = reached.topk(min(width + 1, reached.shape[1]))
        if best.shape[1] > width:
            dropped = torch.maximum(dropped, best[:, width])
        scores, place = best[:, :width], place[:, :width]
        # Of a beam without any prefix left the node does not matter: it stays at -inf.
        nodes = children.flatten(1).gather(1, place).clamp(min=0)
        from_, codes = place // children.shape[2], place % children.shape[2]
        past = [(keys[row, from_], values[row, from_]) for keys, values in past]
    items, order = trie.leaf[nodes].sort(1)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    items = items.gather(1, order).masked_fill(scores.isneginf(), -1)
    proven = dropped.isneginf() | (scores[:, k - 1] - dropped > _MARGIN)
    return items[:, :k], scores[:, :k], proven


def _left(member: Tensor, count: int, users: int, excluded: tuple[Tensor, Tensor]) -> Tensor:
    """Whether a node [B, N] has any item left for each user."""
    held = torch.bincount(member, minlength=count).expand(users, -1)
    gone = torch.zeros(users * count, dtype=torch.int64, device=member.device)
    places = excluded[0] * count + member[excluded[1]]
    return held > gone.index_add_(0, places, torch.ones_like(places)).view(users, count)


def _rows(network: TIGERNetwork, nodes: int) -> int:
    """Histories to work on at once where each has so many nodes of a depth."""
    config = network.config
    held = 2 * network.n_codes * config.heads * config.head_dim * (config.layers + 2) + 4 * max(network.trie.sizes) + config.inner
    # And for each user 64-bit counts of what is left behind every prefix, twice.
    each = network.table.element_size() * nodes * held + 16 * len(network.trie.leaf)
    return max(1, _BYTES[network.table.device.type] // each)
