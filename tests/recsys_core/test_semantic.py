"""Semantic ids: quantizers against slow ones in float64, unique ids, and the trie against a dictionary."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import recsys_core
from kernels.residual_quantize import residual_quantize
from recsys_core import assets
from recsys_core.data import Dataset, Vocabulary
from recsys_core.errors import DataError
from recsys_core.recommender import FitOptions
from recsys_core.semantic import SemanticIds, TokenizerConfig, Trie, item_vectors, tokenize, vectors
from recsys_core.semantic.kmeans import kmeans, residual_kmeans
from recsys_core.semantic.rqvae import RQVAE, RQVAELearner

SIZE = 3
CODES = st.integers(1, 3).flatmap(
    lambda levels: st.lists(st.lists(st.integers(0, SIZE - 1), min_size=levels, max_size=levels), min_size=1, max_size=30)
)


@given(CODES)
def test_ids_are_unique_and_begin_with_the_codes(rows: list[list[int]]) -> None:
    ids = SemanticIds.distinguish(torch.tensor(rows), SIZE)
    seen: Counter[tuple[int, ...]] = Counter()
    for row, found in zip(rows, ids.codes.tolist(), strict=True):
        assert found == [*row, seen[tuple(row)]]
        seen[tuple(row)] += 1
    assert ids.sizes == (*[SIZE] * len(rows[0]), max(seen.values()))
    assert ids.collision_rate == pytest.approx(sum(n for n in seen.values() if n > 1) / len(rows))
    for level, perplexity in enumerate(ids.perplexities[:-1]):
        shares = [n / len(rows) for n in Counter(row[level] for row in rows).values()]
        assert perplexity == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


@given(CODES)
def test_the_trie_finds_every_id_and_nothing_else(rows: list[list[int]]) -> None:
    ids = SemanticIds.distinguish(torch.tensor(rows), SIZE)
    trie, known = Trie(ids), {tuple(id_): item for item, id_ in enumerate(ids.codes.tolist())}
    # Every id there could be, and codes that no level has.
    asked = [*itertools.product(*(range(n) for n in ids.sizes)), (-1,) * ids.levels, ids.sizes]
    assert trie.lookup(torch.tensor(asked)).tolist() == [known.get(id_, -1) for id_ in asked]
    for depth in range(ids.levels + 1):
        prefixes = sorted({id_[:depth] for id_ in known})
        assert trie.count(depth) == len(prefixes)
        assert [prefixes[n] for n in trie.member(depth).tolist()] == [id_[:depth] for id_ in known]


@given(CODES)
def test_what_a_decoder_has_to_read_are_branches_and_the_way_to_them(rows: list[list[int]]) -> None:
    ids = SemanticIds.distinguish(torch.tensor(rows), SIZE)
    trie, known = Trie(ids), [tuple(id_) for id_ in ids.codes.tolist()]
    for depth, nodes in enumerate(trie.asked(everywhere=False)):
        prefixes = sorted({id_[:depth] for id_ in known})
        # A prefix is needed if behind it some longer or equal prefix goes on in several ways.
        needed = [
            n for n, prefix in enumerate(prefixes)
            if not depth or any(len({i[: d + 1] for i in known if i[:d] == j[:d]}) > 1 for j in known if j[:depth] == prefix
                                for d in range(depth, ids.levels))
        ]  # fmt: skip
        assert nodes.tolist() == needed
    assert [len(nodes) for nodes in trie.asked(everywhere=True)] == [trie.count(d) for d in range(ids.levels)]


@given(st.integers(1, 40), st.integers(1, 3), st.integers(2, 8), st.integers(0, 99))
@settings(max_examples=40)
def test_codes_are_the_nearest_of_each_level_in_float64(count: int, levels: int, size: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(count, 5)
    codebooks = residual_kmeans(x, levels, size, iterations=4)
    codes, _ = residual_quantize(x, codebooks)
    residual = x.double().numpy()
    for level, book in enumerate(codebooks.double().numpy()):
        distances = np.square(residual[:, None] - book[None]).sum(2)
        chosen = distances[np.arange(count), codes[:, level]]
        assert (chosen <= distances.min(1) + 1e-5).all()
        residual = residual - book[codes[:, level]]


def test_kmeans_finds_planted_groups_and_ends_at_their_means() -> None:
    torch.manual_seed(0)
    group = torch.arange(200) % 5
    x = 10 * torch.eye(5)[group] + 0.1 * torch.randn(200, 5)
    centres = kmeans(x, 5, iterations=10)
    code = residual_quantize(x, centres[None])[0][:, 0]
    assert len({(g, c) for g, c in zip(group.tolist(), code.tolist(), strict=True)}) == 5
    for c in range(5):
        torch.testing.assert_close(centres[c], x[code == c].mean(0))


def test_more_levels_leave_less() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 8)
    books = residual_kmeans(x, 4, 16)
    left = [float(residual_quantize(x, books[: n + 1])[1].square().sum()) for n in range(4)]
    assert left == sorted(left, reverse=True)
    assert left[-1] < 0.3 * float(x.square().sum())


@pytest.mark.parametrize("kind", ["kmeans", "rqvae"])
def test_fewer_or_equal_vectors_than_codes_get_unique_ids(kind: str) -> None:
    config = TokenizerConfig(kind=kind, levels=2, size=8, epochs=3, batch_size=4)
    for x in (torch.randn(5, 6), torch.ones(20, 6), torch.zeros(1, 6)):
        ids = tokenize(x, config, "cpu")
        assert Trie(ids).lookup(ids.codes).tolist() == list(range(len(x)))


def test_a_seed_gives_one_set_of_ids_and_leaves_the_random_state_alone() -> None:
    x = torch.randn(60, 6)
    for kind in ("kmeans", "rqvae"):
        torch.manual_seed(3)
        one, two, other = (tokenize(x, TokenizerConfig(kind=kind, size=8, epochs=2, seed=s), "cpu") for s in (1, 1, 2))
        after = torch.rand(1)
        torch.manual_seed(3)
        assert torch.equal(after, torch.rand(1))
        assert one.content_hash == two.content_hash
        assert one.made_of == two.made_of
        assert one.made_of != other.made_of


def test_the_loss_of_the_autoencoder_is_the_papers_and_its_gradients_stop_where_they_should() -> None:
    torch.manual_seed(0)
    network, x, beta = RQVAE(7, 3, 5).double(), torch.randn(6, 7).double(), 0.25
    with torch.no_grad():
        network.codebooks.copy_(0.05 * torch.randn_like(network.codebooks))
    z = network.encoder(x)
    expected, codebook, commitment, left = torch.zeros(6).double(), 0.0, 0.0, z
    total = torch.zeros_like(z)
    for book in network.codebooks:
        code = torch.cdist(left.detach(), book.detach()).argmin(1)
        codebook = codebook + (left.detach() - book[code]).square().sum()
        commitment = commitment + (left - book[code].detach()).square().sum()
        total, left = total + book[code], left - book[code].detach()
    decoded = network.decoder(z + (total - z).detach())
    expected = (x - decoded).square().sum() + codebook + beta * commitment
    found = network.losses(x, beta).sum()
    # The encoder's product is rounded to float32 before codes are chosen.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    parameters = list(network.parameters())
    for mine, theirs in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_codes_that_nobody_takes_come_back_to_life() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    network = RQVAE(6, 2, 8)
    learner = RQVAELearner(network, x, 50, 0.25)
    with torch.no_grad():
        network.codebooks[:, 3:] = 1e3

    def used() -> list[int]:
        with torch.no_grad():
            codes, _ = residual_quantize(network.encoder(x), network.codebooks)
        return [len(column.unique()) for column in codes.T]

    assert max(used()) <= 3
    batches = learner.epoch(np.random.default_rng(0), torch.device("cpu"))
    assert min(used()) >= 5
    assert [len(b.x) for b in batches] == [50] * 4


def test_the_autoencoder_learns_to_say_what_vectors_are() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(20, 12, generator=generator)[torch.arange(200) % 20], dim=1)
    ids = tokenize(x, TokenizerConfig(kind="rqvae", levels=2, size=16, epochs=30, batch_size=100), "cpu")
    # Equal vectors have equal codes; of 20 different ones few share them.
    assert len(torch.unique(ids.codes[:, :-1], dim=0)) >= 17
    assert ids.collision_rate == 1.0


def test_ids_that_are_none_are_refused() -> None:
    for codes, sizes, problem in (
        (torch.tensor([[0, 0], [0, 0]]), (2, 2), "distinguish"),
        (torch.tensor([[0, 2]]), (2, 2), r"level 1 are 2 \.\. 2; the level has 0 \.\. 1"),
        (torch.tensor([[0, -1]]), (2, 2), r"level 1 are -1 \.\. -1"),
        (torch.tensor([[0.0, 1.0]]), (2, 2), "int64"),
        (torch.tensor([[0]]), (2,), "2 levels"),
        (torch.empty(0, 2, dtype=torch.int64), (2, 2), "at least 1 item"),
    ):
        with pytest.raises(DataError, match=problem):
            SemanticIds(codes, sizes)
    for x in (torch.full((3, 2), float("nan")), torch.empty(0, 4), torch.zeros(3)):
        with pytest.raises(DataError, match="finite ones"):
            tokenize(x, TokenizerConfig(), "cpu")


def test_ids_on_disk(tmp_path: Path) -> None:
    ids = SemanticIds.distinguish(torch.tensor([[1, 2], [0, 2], [1, 2]]), 3, "of nothing")
    ids.save(tmp_path / "new" / "ids.safetensors")
    again = SemanticIds.load(tmp_path / "new" / "ids.safetensors")
    assert (again.content_hash, again.sizes, again.made_of) == (ids.content_hash, (3, 3, 2), "of nothing")
    (tmp_path / "new" / "ids.safetensors").write_bytes(b"cut short")
    with pytest.raises(DataError, match="no whole set of semantic ids"):
        SemanticIds.load(tmp_path / "new" / "ids.safetensors")


def test_texts_are_encoded_once(films: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def encode(texts: list[str]) -> np.ndarray:
        calls.append(texts)
        return np.stack([np.full(4, len(text), np.float32) for text in texts])

    def derived(asset: str, version: str, build: Callable[[Path, Path], Mapping[str, str]], progress: object) -> Path:
        if not (tmp_path / version).exists():
            (tmp_path / version).mkdir()
            build(tmp_path, tmp_path / version)
        return tmp_path / version

    monkeypatch.setattr(assets, "derived", derived)
    monkeypatch.setattr(vectors, "sentence_encoder", lambda: encode)
    one, two = item_vectors(films), item_vectors(films)
    assert torch.equal(one, two)
    assert len(calls) == 1
    assert calls[0][1] == "Film 1 (1951). Drama"
    assert one[1].tolist() == [len("Film 1 (1951). Drama")] * 4


def test_a_log_without_texts_is_refused_with_a_way_out(films: Dataset) -> None:
    bare = Dataset("bare", films.users, films.items, films.user, films.item, films.timestamp)
    with pytest.raises(DataError, match=r"'bare' has no titles and no tags .* set vectors = 'log'"):
        item_vectors(bare)
    found = item_vectors(bare, "log")
    # Who watches a genre watches it alone, mostly: films of one are nearer each other than films of two.
    alike = (found @ found.T).numpy()
    same = np.arange(80)[:, None] % 4 == np.arange(80) % 4
    assert alike[same & ~np.eye(80, dtype=bool)].mean() > alike[~same].mean() + 0.1


def test_vectors_of_another_model_follow_its_external_ids(films: Dataset, tmp_path: Path) -> None:
    model = recsys_core.create("sasrec", dim=8, heads=2, epochs=1, max_length=8).fit(films, options=FitOptions(device="cpu"))
    model.save(tmp_path / "sasrec")
    renamed = Dataset("turned", films.users, Vocabulary(films.items.ids[::-1]), films.user, films.item, films.timestamp)
    found = item_vectors(renamed, str(tmp_path / "sasrec"))
    torch.testing.assert_close(found.flip(0), model.item_vectors())  # type: ignore[attr-defined]
    recsys_core.create("popularity").fit(films).save(tmp_path / "counts")
    with pytest.raises(DataError, match=r"popularity model .* has no item vectors"):
        item_vectors(films, str(tmp_path / "counts"))
