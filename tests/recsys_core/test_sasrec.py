"""SASRec's shortcuts: the last token alone, tables that need no padding, histories ranked in pieces of like length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_core import Histories, create
from recsys_core.data import Dataset
from recsys_core.models.sasrec import SASRecConfig, SASRecNetwork
from recsys_core.sequence import recommender
from recsys_core.sequence.batch import SequenceBatch
from recsys_core.sequence.embedding import TokenEmbedding
from recsys_core.sequence.padding import Padding
from recsys_core.sequence.recommender import SequenceRecommender

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def batch(lengths: list[int], seed: int = 0) -> SequenceBatch:
    """Sequences of random tokens, of at least one each."""
    tokens = torch.randint(13, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return SequenceBatch(tokens, offsets, torch.full((len(lengths),), -1), longest=7)


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.sampled_from([1, 2]), st.sampled_from([1, 3]), st.integers(0, 2**20))
def test_the_last_state_alone_is_the_last_of_all_states(lengths: list[int], heads: int, blocks: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = SASRecConfig(dim=8, heads=heads, blocks=blocks, max_length=7, inner=2)
    network = SASRecNetwork(config, TokenEmbedding(12, 1, 8, {"item": [], "user": [], "interaction": []})).eval()
    given_ = batch(lengths, seed)
    torch.testing.assert_close(network.last(given_), network(given_)[given_.last], rtol=1e-4, atol=1e-5)


@given(LENGTHS, st.integers(0, 2**20))
def test_padding_is_undone_and_heads_stand_where_they_should(lengths: list[int], seed: int) -> None:
    x = torch.randn(sum(lengths), 12, generator=torch.Generator().manual_seed(seed))
    padding = Padding(batch(lengths))
    assert padding.full == (len(set(lengths)) == 1)
    assert torch.equal(padding.remove(padding.add(x)), x)
    assert padding.filled.sum(1).tolist() == lengths
    parts = padding.heads(x, 3, 2)
    for row, tokens in enumerate(x.split(lengths)):
        for part, table in enumerate(parts):
            for head in range(2):
                first = 4 * part + 2 * head
                assert torch.equal(table[row, head, : len(tokens)], tokens[:, first : first + 2])
                assert (table[row, head, len(tokens) :] == 0).all()


def test_the_gradient_goes_through_padding() -> None:
    for lengths in ([3, 1, 2], [2, 2, 2]):
        padding, x = Padding(batch(lengths)), torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, p=padding: p.remove(p.add(x).square()), (x,))


@pytest.mark.parametrize(("name", "config"), [("sasrec", {}), ("gru4rec", {}), ("bert4rec", {}), ("hstu", {"time": "target"})])
def test_pieces_keep_the_order_of_the_histories(name: str, config: dict[str, Any], films: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create(name, dim=8, max_length=6, epochs=1, **config).fit(films)
    assert isinstance(model, SequenceRecommender)
    rng = np.random.default_rng(0)
    rows = Histories.of([rng.integers(0, 80, n) for n in (4, 0, 9, 1, 5, 5, 0, 2)], np.arange(8))
    size = len(rows.items.values)
    histories = Histories(rows.items, rows.users, np.arange(size) * 1000, rng.random(size).astype(np.float32), np.arange(8) * 10**6)
    taken: list[int] = []
    whole = Histories.take

    def watched(self: Histories, chosen: Any) -> Histories:
        taken.append(len(chosen))
        return whole(self, chosen)

    monkeypatch.setattr(Histories, "take", watched)
    monkeypatch.setattr(recommender, "_CPU_PIECE", 3 * 8 * 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    found = model.query_vectors(histories)
    assert taken == [3, 3, 2]
    alone: list[Tensor] = [model.query_vectors(histories.slice(n, n + 1)) for n in range(8)]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert model.query_vectors(histories.slice(0, 0)).shape == (0, 8)


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=5), st.data())
def test_taken_histories_keep_all_they_know(rows: list[list[int]], data: st.DataObject) -> None:
    plain = Histories.of(rows, np.arange(len(rows)) + 5)
    count = np.arange(len(plain.items.values))
    histories = Histories(plain.items, plain.users, count * 2, count.astype(np.float32), plain.users * 3, {"f": count * 5})
    chosen = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6)), np.int64)
    found = histories.take(chosen)
    assert len(found) == len(chosen)
    for place, row in enumerate(chosen):
        one, other = found.slice(place, place + 1), histories.slice(row, row + 1)
        assert (one.users, one.at) == (other.users, other.at)
        for mine, theirs in [(one.items.values, other.items.values), (one.timestamps, other.timestamps), (one.ratings, other.ratings)]:
            np.testing.assert_array_equal(mine, theirs)  # type: ignore[arg-type]
        np.testing.assert_array_equal(one.features["f"], other.features["f"])
