"""TIGER: scores against teacher forcing item by item in float64, the beam search against a full ranking, training against loops."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import loss_and_gradients

import recsys_core
from recsys_core import Histories
from recsys_core.data import Dataset, Split, Vocabulary
from recsys_core.data.jagged import Jagged
from recsys_core.errors import DataError
from recsys_core.models.tiger import TIGER
from recsys_core.models.tiger.model import IDS_FILE, TIGERLearner
from recsys_core.models.tiger.search import all_scores, beam_search
from recsys_core.recommender import FitOptions, Recommender
from recsys_core.semantic import SemanticIds
from tests.conftest import film_log

SMALL = {"vectors": "log", "levels": 2, "codes": 5, "dim": 16, "heads": 2, "head_dim": 8, "inner": 32, "layers": 2, "max_length": 6}
MODES = ["codebook", "children"]


def untrained(films: Dataset, ids: SemanticIds | None = None, sharp: float = 6.0, **config: object) -> TIGER:
    """A model with random weights; the sharper, the farther apart are its probabilities."""
    torch.manual_seed(0)
    model = TIGER(TIGER.Config(**{**SMALL, **config}))
    model.items, model.n_users = films.items, len(films.users)
    model.ids = ids or model._semantic_ids(films, lambda share, text: None, FitOptions(device="cpu"))
    model.network = model._network().eval()
    with torch.no_grad():
        for head in model.network.heads:
            head.weight.mul_(sharp)
    return model


@pytest.fixture(scope="module", params=MODES)
def model(request: pytest.FixtureRequest) -> TIGER:
    return untrained(film_log(), softmax=request.param)


def some(films: Dataset, count: int = 12) -> Histories:
    """Users with their rows, one with a single item, and one without any."""
    rows = films.sequences()
    return Histories.of([*(rows[u] for u in range(count - 2)), [3], []], [*range(count - 2), -1, -1])


def test_scores_over_the_trie_are_those_of_teacher_forcing_item_by_item(films: Dataset) -> None:
    for mode, users in itertools.product(MODES, (0, 7)):
        model = untrained(films, softmax=mode, users=users)
        model.network.double()
        question, count = model._question(some(films)), len(films.items)
        found = all_scores(model.network, question)
        assert found.dtype == torch.float64
        with torch.no_grad():
            forced = [model.network(question, torch.full((len(question),), item)).sum(1) for item in range(count)]
        torch.testing.assert_close(found, torch.stack(forced, 1), rtol=1e-10, atol=1e-10)
        assert model.ids.collision_rate > 0.3


def test_over_children_the_catalogue_has_all_the_probability(films: Dataset, model: TIGER) -> None:
    total = np.exp(model.score(some(films)).astype(np.float64)).sum(1)
    if model.config.softmax == "children":
        np.testing.assert_allclose(total, 1, rtol=1e-4)
    else:
        assert (total < 1).all()


def ranked(model: TIGER, histories: Histories, k: int, exclude: Jagged | None = None) -> recsys_core.Recommendations:
    """The full ranking."""
    return Recommender.recommend(model, histories, k, exclude)


def searched(model: TIGER, histories: Histories, k: int, width: int, exclude: Jagged) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hidden = torch.from_numpy(exclude.distinct().row_ids), torch.from_numpy(exclude.distinct().values)
    items, scores, proven = beam_search(model.network, model._question(histories), k, width, hidden)
    return items.numpy(), scores.numpy(), proven.numpy()


def test_a_beam_as_wide_as_the_catalogue_is_the_full_ranking(films: Dataset, model: TIGER) -> None:
    histories, count = some(films), len(films.items)
    expected = ranked(model, histories, count)
    items, scores, proven = searched(model, histories, count, count, histories.items)
    assert proven.all()
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-4, atol=1e-4)
    # Items whose scores differ by rounding may change places.
    gaps = -np.diff(np.where(np.isinf(expected.scores), -1e9, expected.scores), axis=1, prepend=1e9, append=-2e9) > 1e-4
    apart = gaps[:, :-1] & gaps[:, 1:]
    assert apart.mean() > 0.5
    np.testing.assert_array_equal(items[apart], expected.items[apart])


@given(st.integers(1, 8), st.integers(0, 12), st.integers(0, 75), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_a_narrow_beam_lists_k_items_none_excluded_and_a_proof_holds(k: int, extra: int, gone: int, seed: int) -> None:
    films = film_log()
    model = untrained(films, _IDS.setdefault("films", untrained(films).ids), softmax=MODES[seed % 2])
    histories, rng = some(films, 5), np.random.default_rng(seed)
    exclude = Jagged.from_rows([rng.integers(0, 80, gone) for _ in range(5)])
    items, scores, proven = searched(model, histories, k, k + extra, exclude)
    expected = ranked(model, histories, k, exclude)
    exact = model.score(histories)
    for row in range(5):
        mine = items[row].tolist()
        # 75 draws leave more than 8 of 80 items, and every prefix that is kept leads to one of them.
        assert len(set(mine)) == k
        assert -1 not in mine
        assert not set(mine) & set(exclude[row].tolist())
        np.testing.assert_allclose(scores[row], exact[row, mine], rtol=1e-4, atol=1e-4)
        if proven[row]:
            np.testing.assert_allclose(scores[row], expected.scores[row], rtol=1e-4, atol=1e-4)


_IDS: dict[str, SemanticIds] = {}


def test_recommend_is_the_full_ranking_whatever_the_beam(films: Dataset) -> None:
    histories = some(films)
    for mode, beams in itertools.product(MODES, (1, 200)):
        model = untrained(films, sharp=0.5, softmax=mode, beams=beams)
        found, expected = model.recommend(histories, 4), ranked(model, histories, 4)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
        assert (found.items == expected.items).mean() > 0.95
        # Without proof a narrow beam misses some, or the test above would show nothing.
        loose = untrained(films, sharp=0.5, softmax=mode, beams=beams, proof=False).recommend(histories, 4)
        assert (loose.items == expected.items).all() == (beams == 200)


def test_a_list_that_is_not_proven_is_searched_wider_and_then_ranked_in_full(films: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    beam, full = TIGER.beam, Recommender.recommend

    def searching(self: TIGER, histories: Histories, k: int, exclude: Jagged | None = None, width: int | None = None) -> object:
        asked.append((f"beam {width or self.config.beams}", len(histories)))
        lists, proven = beam(self, histories, k, exclude, width)
        # A beam of 16 proves all of them; that one is missed is made up.
        proven[0] = False
        return lists, proven

    def ranking(self: Recommender, histories: Histories, k: int, exclude: Jagged | None = None) -> object:
        asked.append(("all", len(histories)))
        return full(self, histories, k, exclude)

    monkeypatch.setattr(TIGER, "beam", searching)
    monkeypatch.setattr(Recommender, "recommend", ranking)
    model, histories = untrained(films, sharp=2.0, beams=4), some(films)
    found, expected = model.recommend(histories, 2), full(model, histories, 2)
    assert asked == [("beam 4", 12), ("beam 16", 6), ("all", 1)]
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.items, expected.items)
    # A beam that would be as wide as the catalogue would be a full ranking, only slower.
    asked.clear()
    untrained(films, sharp=2.0, beams=20).recommend(histories, 2)
    assert asked == [("beam 20", 12), ("all", 1)]


@pytest.mark.parametrize("beams", [0, 4, 80])
def test_scores_that_are_no_numbers_are_refused(films: Dataset, beams: int) -> None:
    model = untrained(films, beams=beams, proof=False)
    with torch.no_grad():
        model.network.decoded.weight.fill_(torch.nan)
    with pytest.raises(DataError, match="tiger gave NaN for 12 of 12 users; lower its learning rate"):
        model.recommend(some(films), 4)


def test_a_catalogue_that_runs_out_and_lists_longer_than_it(films: Dataset, model: TIGER) -> None:
    everything_but_two = Jagged.from_rows([[i for i in range(80) if i not in (7, 30)]] * 12)
    found = model.recommend(some(films), 5, everything_but_two)
    assert (np.sort(found.items[:, :2]) == [7, 30]).all()
    assert (found.items[:, 2:] == -1).all()
    assert np.isneginf(found.scores[:, 2:]).all()
    longer = model.recommend(some(films), 100, Jagged.from_rows([[]] * 12))
    assert (np.sort(longer.items[:, :80]) == np.arange(80)).all()
    assert (longer.items[:, 80:] == -1).all()
    assert model.recommend(some(films).slice(0, 0), 3).items.shape == (0, 3)
    for k, exclude, problem in (
        (0, None, "k is 0"),
        (3, Jagged.from_rows([[80]] * 12), "exclude"),
        (3, Jagged.from_rows([[1]]), "exclude"),
    ):
        with pytest.raises(DataError, match=problem):
            model.recommend(some(films), k, exclude)


def test_equal_scores_are_listed_by_dense_id(films: Dataset) -> None:
    model = untrained(films, softmax="codebook", beams=3)
    with torch.no_grad():
        for head in model.network.heads:
            head.weight.zero_()
    assert (model.recommend(some(films), 9, Jagged.from_rows([[]] * 12)).items == np.arange(9)).all()


def test_candidates_have_the_scores_of_the_catalogue(films: Dataset, model: TIGER) -> None:
    candidates = np.random.default_rng(0).integers(0, 80, (12, 5))
    np.testing.assert_array_equal(model.score(some(films), candidates), np.take_along_axis(model.score(some(films)), candidates, 1))


def test_pieces_of_a_batch_do_not_change_the_scores(films: Dataset, model: TIGER, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, best = model.score(some(films)), model.recommend(some(films), 5)
    monkeypatch.setitem(recsys_core.models.tiger.search._BYTES, "cpu", 1)  # type: ignore[attr-defined]
    np.testing.assert_allclose(model.score(some(films)), whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.recommend(some(films), 5).items, best.items)


def test_the_latest_items_in_their_order_are_read_and_users_where_asked(films: Dataset) -> None:
    model, rows = untrained(films), [[9, 8, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [2, 1, 3, 4, 5, 6], [1, 2, 3, 4, 5]]
    same, plain, turned, shorter = model.score(Histories.of(rows, [0, 1, 2, -1]))
    np.testing.assert_allclose(same, plain, rtol=1e-4, atol=1e-5)
    assert np.abs(plain - turned).max() > 1e-3
    assert np.abs(plain - shorter).max() > 1e-3
    known = untrained(films, users=7)
    one, other, folded, stranger = known.score(Histories.of([[1, 2]] * 4, [0, 1, 7, -1]))
    np.testing.assert_allclose(one, folded, rtol=1e-4, atol=1e-5)
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - stranger).max() > 1e-3


def learner(films: Dataset, **config: object) -> TIGERLearner:
    model = untrained(films, dropout=0.0, **config)
    found = model._learner(films)
    return found.eval()


def test_every_position_is_learned_once_behind_its_latest_items(films: Dataset) -> None:
    found = learner(films, batch_size=64).epoch(np.random.default_rng(0), torch.device("cpu"))
    pairs = []
    for batch in found:
        assert batch.targets is not None
        for user, start, stop in zip(batch.users.tolist(), batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
            assert batch.tokens[start] == 80
            pairs.append((user, tuple(batch.tokens[start + 1 : stop].tolist()), int(batch.targets[stop - 1])))
    rows = films.sequences()
    expected = [(u, tuple(rows[u][max(n - 6, 0) : n].tolist()), int(rows[u][n])) for u in range(60) for n in range(len(rows[u]))]
    assert sorted(pairs) == sorted(expected)
    assert pairs != expected
    fewer = learner(films, batch_size=64, targets=100).epoch(np.random.default_rng(0), torch.device("cpu"))
    assert sum(len(batch) for batch in fewer) == 100


def test_a_batch_has_the_loss_of_its_items_one_by_one_and_static_padding_changes_nothing(films: Dataset) -> None:
    network = learner(films, batch_size=50, users=5)
    batches = network.epoch(np.random.default_rng(0), torch.device("cpu"))
    static = network.static(batches)
    assert static is not None
    for batch in (batches[0], batches[-1]):
        assert static.load(batch)
        for plain, padded in zip(*(loss_and_gradients(network, one) for one in (batch, static)), strict=True):
            torch.testing.assert_close(padded, plain, rtol=1e-4, atol=1e-4)
    parts = [network(network.shard(batches[0], rank, 3)).detach() for rank in range(3)]
    torch.testing.assert_close(sum(parts), network(batches[0]).detach())


def cycle(users: int = 40, items: int = 24, length: int = 8) -> Dataset:
    """Users who go round the items one by one."""
    rows = [[(u * 5 + n) % items for n in range(length)] for u in range(users)]
    user, item = np.repeat(np.arange(users), length), np.concatenate(rows)
    return Dataset(
        "cycle", Vocabulary(f"u{u}" for u in range(users)), Vocabulary(f"i{i}" for i in range(items)), user, item, np.arange(len(item))
    )


def test_it_learns_what_comes_next(tmp_path: Path) -> None:
    data = cycle()
    config = {**SMALL, "epochs": 25, "batch_size": 32, "learning_rate": 1e-2, "dropout": 0.0}
    model = recsys_core.create("tiger", **config).fit(data)
    ask = Histories.of([[i, (i + 1) % 24, (i + 2) % 24] for i in range(24)])
    assert (model.recommend(ask, 1).items[:, 0] == (np.arange(24) + 3) % 24).mean() > 0.9
    assert "collide" in model.training
    model.save(tmp_path)
    again = recsys_core.load(tmp_path)
    np.testing.assert_array_equal(again.recommend(ask, 5).items, model.recommend(ask, 5).items)
    assert again.training == model.training


def test_vectors_of_a_model_that_may_have_seen_more_are_told(split: Split, films: Dataset, tmp_path: Path) -> None:
    for name, log, told in (
        ("same", split.train, "sasrec's vectors (kmeans"),
        ("more", films, "sasrec's vectors, trained on another log ("),
    ):
        recsys_core.create("sasrec", dim=8, heads=2, epochs=1, max_length=8).fit(log).save(tmp_path / name)
        config = {**SMALL, "epochs": 1, "vectors": str(tmp_path / name)}
        recsys_core.create("tiger", **config).fit(split.train).save(tmp_path / "tiger")
        assert told in recsys_core.load(tmp_path / "tiger").training


class StoppedError(Exception):
    pass


def test_a_training_goes_on_with_its_own_ids(films: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**SMALL, "epochs": 3, "batch_size": 100, "dropout": 0.2}
    whole = recsys_core.create("tiger", **config).fit(films, options=FitOptions(device="cpu")).score(some(films))

    def stop(share: float, text: str) -> None:
        if share > 0.6:
            raise StoppedError

    with pytest.raises(StoppedError):
        recsys_core.create("tiger", **config).fit(films, stop, FitOptions(folder=tmp_path, device="cpu"))
    held = SemanticIds.load(tmp_path / IDS_FILE)

    def never(*given: object) -> None:
        raise AssertionError("the ids were made anew")

    with monkeypatch.context() as patch:
        patch.setattr("recsys_core.models.tiger.model.tokenize", never)
        resumed = recsys_core.create("tiger", **config).fit(films, None, FitOptions(folder=tmp_path, device="cpu"))
    np.testing.assert_array_equal(resumed.score(some(films)), whole)
    # Other ids under the same weights would be another model.
    other = SemanticIds(held.codes.flip(0), held.sizes, held.made_of)
    other.save(tmp_path / IDS_FILE)
    with pytest.raises(DataError, match=r"belongs to another training .*semantic ids"):
        recsys_core.create("tiger", **config).fit(films, None, FitOptions(folder=tmp_path, device="cpu"))


def test_early_stopping_ranks_items(split: Split) -> None:
    model = recsys_core.create("tiger", **SMALL, epochs=4, patience=1, learning_rate=1e-2, batch_size=64)
    model.fit(split.train, options=FitOptions(validation=split.valid))
    values = recsys_core.evaluate(model, split.test, ("NDCG@10",), train=split.train)
    random = recsys_core.evaluate(recsys_core.create("random").fit(split.train), split.test, ("NDCG@10",))
    assert values.means["NDCG@10"] > random.means["NDCG@10"]


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_a_gpu_scores_and_lists_as_a_processor_does(films: Dataset, mode: str) -> None:
    model = untrained(films, softmax=mode, beams=20)
    scores, best = model.score(some(films)), model.recommend(some(films), 10)
    model.to("cuda")
    np.testing.assert_allclose(model.score(some(films)), scores, rtol=1e-3, atol=1e-3)
    found = model.recommend(some(films), 10)
    np.testing.assert_allclose(found.scores, best.scores, rtol=1e-3, atol=1e-3)
    assert (found.items == best.items).mean() > 0.9


@pytest.mark.gpu
@pytest.mark.parametrize("tokenizer", ["kmeans", "rqvae"])
def test_a_replayed_training_is_the_one_kernel_by_kernel(films: Dataset, tokenizer: str) -> None:
    held, scores = [], []
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for capture in (True, False):
            config = {**SMALL, "tokenizer": tokenizer, "tokenizer_epochs": 20, "epochs": 3, "batch_size": 64, "dropout": 0.0}
            model = recsys_core.create("tiger", **config, capture=capture)
            assert isinstance(model, TIGER)
            model.fit(films, options=FitOptions(device="cuda"))
            held.append(model.ids)
            scores.append(model.score(some(films)))
    finally:
        torch.use_deterministic_algorithms(False)
    if held[0].content_hash == held[1].content_hash:
        np.testing.assert_allclose(scores[0], scores[1], rtol=2e-2, atol=2e-2)
    else:
        # The autoencoder's last bits may choose other codes; k-means has no such excuse.
        assert tokenizer == "rqvae"
    assert replace(held[0], made_of="").collision_rate < 1
