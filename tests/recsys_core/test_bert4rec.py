"""BERT4Rec: what is masked, what is seen, and where the question stands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_core import Histories
from recsys_core.data import Dataset, Vocabulary
from recsys_core.data.features import Category, Features
from recsys_core.data.jagged import Jagged
from recsys_core.models.bert4rec import BERT4Rec, BERT4RecConfig, MaskedBatch, draw_masks

windows = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=8).map(Jagged.from_rows)
CONFIG = {"dim": 8, "heads": 2, "blocks": 1, "max_length": 5, "epochs": 1, "batch_size": 2, "dropout": 0.0, "features": True}


def built() -> tuple[BERT4Rec, Dataset]:
    """A model before training and its log: five users of four items, and how each item was taken."""
    user, item = np.repeat(np.arange(5), 4), (np.arange(20) * 7) % 9
    features = Features(interaction=(Category("how", Vocabulary("xyz"), np.arange(20) % 3),))
    names = Vocabulary(map(str, range(5))), Vocabulary(map(str, range(9)))
    dataset = Dataset("made", *names, user, item, np.arange(20), features=features)
    model = BERT4Rec(BERT4RecConfig.model_validate(CONFIG))
    return model.fit(dataset), dataset


@settings(deadline=None)
@given(windows, st.floats(0.01, 0.99), st.floats(0, 1), st.integers(0, 2**20))
def test_every_window_has_a_mask(rows: Jagged, share: float, last: float, seed: int) -> None:
    chosen = draw_masks(rows, share, last, np.random.default_rng(seed))
    assert chosen.shape == rows.values.shape
    assert (np.bincount(rows.row_ids[chosen], minlength=len(rows)) > 0).all()


def test_masks_have_the_shares_asked_for() -> None:
    rows = Jagged.from_rows([np.arange(20)] * 4000)
    chosen = draw_masks(rows, 0.3, 0.25, np.random.default_rng(0)).reshape(4000, 20)
    only_last = chosen[:, -1] & (chosen.sum(1) == 1)
    assert only_last.mean() == pytest.approx(0.25, abs=0.03)
    assert chosen[~only_last].mean() == pytest.approx(0.3, abs=0.01)
    assert draw_masks(rows, 0.3, 1.0, np.random.default_rng(0)).reshape(4000, 20)[:, -1].all()


def test_neither_the_item_nor_its_feature_stands_at_a_mask() -> None:
    model, dataset = built()
    batches = model._learner(dataset).epoch(np.random.default_rng(0), torch.device("cpu"))
    assert sum(len(b) for b in batches) == 5
    for batch in batches:
        assert isinstance(batch, MaskedBatch)
        assert batch.targets is not None
        hidden = torch.zeros(len(batch.tokens), dtype=torch.bool)
        hidden[batch.masked] = True
        assert (batch.tokens[hidden] == 9).all()
        assert (batch.features["how"][hidden] == -1).all()
        assert torch.equal(batch.tokens[~hidden], batch.targets[~hidden])
        assert (batch.features["how"][~hidden] >= 0).all()
        for n, user in enumerate(batch.users.tolist()):
            row = batch.targets[batch.offsets[n] : batch.offsets[n + 1]]
            assert row.tolist() == dataset.sequences()[user].tolist()


def test_shards_make_up_the_batch_and_its_loss() -> None:
    model, dataset = built()
    learner = model._learner(dataset).eval()
    (batch, *_) = learner.epoch(np.random.default_rng(0), torch.device("cpu"))
    parts = [learner.shard(batch, rank, 2) for rank in range(2)]
    assert sum(map(learner.weight, parts)) == learner.weight(batch)
    torch.testing.assert_close(sum(learner(part) for part in parts), learner(batch))


def test_the_question_is_a_mask_behind_the_latest_items() -> None:
    model, _ = built()
    how = np.array([0, 1, 2, 1, 2, 0, 1, 0])
    batch = model._question(Histories(Jagged.from_rows([[1, 2], [], [3, 4, 5, 6, 7, 8]]), np.full(3, -1), features={"how": how}))
    assert batch.tokens.tolist() == [1, 2, 9, 9, 5, 6, 7, 8, 9]
    assert batch.offsets.tolist() == [0, 3, 4, 9]
    assert batch.features["how"].tolist() == [0, 1, -1, -1, 2, 0, 1, 0, -1]


def test_a_mask_sees_both_sides_and_no_other_sequence() -> None:
    model, dataset = built()
    learner = model._learner(dataset)
    whole = learner.masked_batch(Jagged(np.arange(20), np.arange(0, 21, 4)), np.array([1, 6]))
    with torch.no_grad():
        before = model.network(whole)
        for place, changes in ((0, True), (3, True), (4, False)):
            tokens = whole.tokens.clone()
            tokens[place] = (tokens[place] + 1) % 9
            after = model.network(
                MaskedBatch(
                    tokens, *(getattr(whole, f) for f in ("offsets", "users", "longest")), features=whole.features, masked=whole.masked
                )
            )
            assert torch.allclose(before[1], after[1], atol=1e-6) is not changes
    assert len(whole) == 5
