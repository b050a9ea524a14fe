"""Evaluation of a recommender on held-out users."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Jagged
from recsys_core.data.split import Holdout, Split
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError, UnknownNameError
from recsys_core.evaluation import beyond_accuracy, evaluate
from recsys_core.models import create
from recsys_core.recommender import FitOptions, Histories, Progress, Recommender


class Fixed(Recommender):
    """Scores item i by -i, and remembers how many users it was asked about at once."""

    name = "fixed"

    def _fit(self, dataset: Dataset, progress: Progress, options: FitOptions) -> None:
        self.asked: list[int] = []

    def _score(self, histories: Histories) -> NDArray:
        self.asked.append(len(histories))
        return np.tile(-np.arange(len(self._catalogue()), dtype=np.float32), (len(histories), 1))

    def _state(self) -> dict[str, NDArray]:
        return {}

    def _load_state(self, state: dict[str, NDArray]) -> None: ...


@pytest.fixture
def model() -> Fixed:
    names = Vocabulary(map(str, range(6)))
    return Fixed().fit(Dataset("tiny", names, names, np.array([0]), np.array([0]), np.array([0])))


HOLDOUT = Holdout(Histories.of([[0, 1], [], [5], [0]], [3, 1, -1, 2]), Jagged.from_rows([[2], [2, 0], [5], [1, 5]]))


def test_values_are_kept_by_user(model: Fixed) -> None:
    result = evaluate(model, HOLDOUT, ("HR@1", "MRR", "Recall@2", "HR@1"))
    assert result.users.tolist() == [3, 1, -1, 2]
    assert result["HR@1"].tolist() == [1, 1, 0, 1]
    assert result["MRR"].tolist() == [1, 1, 0, 1]
    assert result["Recall@2"].tolist() == [1, 0.5, 0, 0.5]
    assert result.means == {"HR@1": 0.75, "MRR": 0.75, "Recall@2": 0.5}
    assert all(v.dtype == np.float64 for v in result.values.values())


def test_seen_items_compete_only_when_asked(model: Fixed) -> None:
    result = evaluate(model, HOLDOUT, ("MRR",), exclude_seen=False)
    np.testing.assert_allclose(result["MRR"], [1 / 3, 1, 1 / 6, 1 / 2])


def test_blocks_change_nothing(model: Fixed) -> None:
    whole, parts = evaluate(model, HOLDOUT), evaluate(model, HOLDOUT, block=3)
    assert model.asked == [4, 3, 1]
    for name, values in whole.values.items():
        np.testing.assert_array_equal(parts[name], values)


def test_blocks_shrink_with_the_catalogue(model: Fixed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["recsys_core.evaluation.evaluate"], "_SCORE_BYTES", 2 * 6 * 4)
    evaluate(model, HOLDOUT)
    assert model.asked == [2, 2]
    monkeypatch.setattr(sys.modules["recsys_core.evaluation.evaluate"], "_SCORE_BYTES", 1)
    evaluate(model, HOLDOUT, ("MRR",))
    assert model.asked[2:] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["popularity", "ease", "random"])
def test_metrics_of_lists_are_those_of_recommend(name: str, split: Split) -> None:
    model = create(name).fit(split.train)
    result = evaluate(
        model, split.test, ("coverage@5", "novelty@10", "NDCG@10", "diversity@10", "gini@10", "popularity@5"), train=split.train
    )
    lists = model.recommend(split.test.histories, 10).items
    assert result.lists is not None
    np.testing.assert_array_equal(result.lists, lists)
    vectors = np.array([[tag in tags for tag in ("Comedy", "Drama", "Horror", "Western")] for tags in split.train.tags], np.float32)
    ten, five = (beyond_accuracy(lists[:, :k], split.train.item_counts, vectors) for k in (10, 5))
    assert result.totals == {"coverage@5": five["coverage@5"], "gini@10": ten["gini@10"]}
    for metric, of in (("novelty@10", ten), ("diversity@10", ten), ("popularity@5", five)):
        assert result.means[metric] == pytest.approx(of[metric])
    assert list(result.values) == ["novelty@10", "NDCG@10", "diversity@10", "popularity@5"]


def test_metrics_of_lists_say_what_they_need(model: Fixed, split: Split) -> None:
    with pytest.raises(DataError, match=r"train=split\.train"):
        evaluate(model, HOLDOUT, ("novelty@5",))
    with pytest.raises(DataError, match="item vectors or a training log with tags"):
        evaluate(model, HOLDOUT, ("diversity@5",))
    with pytest.raises(DataError, match="cover 80 items, fixed was trained on 6"):
        evaluate(model, HOLDOUT, ("novelty@5",), train=split.train)
    assert model.asked == []
    assert evaluate(model, HOLDOUT, ("coverage@1",)).means == {"coverage@1": 0.5}
    with pytest.raises(UnknownNameError, match="per-user metric"):
        evaluate(model, HOLDOUT, ("coverage@1",))["coverage@1"]


def test_interval_holds_the_mean_and_repeats(model: Fixed) -> None:
    result = evaluate(model, HOLDOUT)
    low, high = result.interval("HR@10")
    assert low <= result.means["HR@10"] <= high
    assert result.interval("HR@10") == (low, high)


def test_mistakes_are_named_before_any_scoring(model: Fixed) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown metric 'Recal@10'; did you mean 'Recall@k'"):
        evaluate(model, HOLDOUT, ("HR@10", "Recal@10"))
    with pytest.raises(DataError, match="no users"):
        evaluate(model, Holdout(Histories.of([]), Jagged.from_rows([])))
    with pytest.raises(DataError, match="block is 0"):
        evaluate(model, HOLDOUT, block=0)
    assert model.asked == []
