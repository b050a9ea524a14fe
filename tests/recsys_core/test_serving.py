"""Serving: external ids in and out, rules, unknown users, and items that came after training."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_core import create
from recsys_core.data import Dataset, Histories, Vocabulary
from recsys_core.data.features import Category, Features, Number, Tags
from recsys_core.data.jagged import Floats, Jagged
from recsys_core.errors import DataError, UnknownNameError
from recsys_core.serving import AtMost, Between, Catalogue, Has, NewItem, Only, Rule, Service, TextMap, Titled, parse_rule
from recsys_core.serving.rules import capped
from tests.conftest import GENRES, film_log


def described(dataset: Dataset) -> Dataset:
    """The log with features of its items, of each kind."""
    n = np.arange(len(dataset.items))
    words = Vocabulary(["long", "short"])
    return replace(
        dataset,
        features=Features(
            item=(
                Category("genre", Vocabulary(GENRES), n % len(GENRES)),
                Number("year", (1950 + n % 70).astype(np.float32)),
                Tags("shape", words, Jagged.from_rows([[i % 2] * int(i % 3 > 0) for i in n])),
            )
        ),
    )


@pytest.fixture(scope="module")
def log() -> Dataset:
    return described(film_log(users=240))


@pytest.fixture(scope="module")
def popular(log: Dataset) -> Service:
    return Service.of(create("popularity").fit(log), log)


@pytest.fixture(scope="module")
def folder(log: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved service with a sequence model that reads item features."""
    model = create("sasrec", dim=16, blocks=1, max_length=12, epochs=20, learning_rate=5e-3, batch_size=32, features=True).fit(log)
    out = tmp_path_factory.mktemp("service")
    Service.of(model, log).save(out)
    return out


def fresh(genre: str, n: int = 0) -> NewItem:
    return NewItem(f"new-{genre}-{n}", f"A {genre} of later", (genre,), {"genre": genre, "year": 1990.0, "shape": ["long", "short"]})


def words(texts: Sequence[str]) -> Floats:
    """A text encoder that knows the genres alone."""
    return np.array([[float(genre in text) for genre in GENRES] for text in texts], np.float32)


def test_known_users_get_unseen_items_by_external_id(popular: Service, log: Dataset) -> None:
    answers = popular.recommend(["u3", "u0"], k=5)
    for user, answer in zip((3, 0), answers, strict=True):
        seen = set(log.items.decode(log.sequences()[user]))
        order = [i for i in np.argsort(-log.item_counts, kind="stable") if log.items.ids[i] not in seen]
        assert answer.ids == log.items.decode(order[:5])
        assert [i.title for i in answer.items] == [log.titles[i] for i in order[:5]]
        assert answer.candidates == len(log.items) - len(seen)
        assert answer.missing == 0
    again = popular.recommend(["u3"], k=80, repeat=True)[0]
    assert sorted(again.ids) == sorted(log.items.ids)


def test_a_history_serves_as_its_user_does(folder: Path, log: Dataset) -> None:
    service = Service.load(folder)
    rows = [log.items.decode(log.sequences()[u]) for u in (1, 2)]
    assert service.recommend_for([*rows, []], k=7)[:2] == service.recommend(["u1", "u2"], k=7)
    assert len(service.recommend_for([[]], k=7)[0].items) == 7
    assert service.recommend_for([]) == []


def test_lists_do_not_depend_on_who_else_asks(popular: Service, log: Dataset) -> None:
    many = popular.recommend(list(log.users.ids) * 2, k=3)
    assert len(many) == 480
    assert many[-1] == popular.recommend([log.users.ids[-1]], k=3)[0]


def test_unknown_ids_are_named(popular: Service) -> None:
    with pytest.raises(DataError, match=r"1 unknown user.*'nobody'.*history"):
        popular.recommend(["u1", "nobody"])
    with pytest.raises(DataError, match="'nothing'"):
        popular.recommend_for([["i1", "nothing"]])
    with pytest.raises(DataError, match="'nothing'"):
        popular.recommend(["u1"], rules=[~Only(["nothing"])])
    with pytest.raises(UnknownNameError, match="'gerne'; did you mean 'genre'"):
        popular.popular(rules=[Has("gerne", ["Drama"])])
    with pytest.raises(DataError, match="'Comdey'; the nearest of its 4 values: Comedy"):
        popular.popular(rules=[Has("tag", ["Comdey"])])
    with pytest.raises(DataError, match="k is 0"):
        popular.recommend(["u1"], k=0)
    with pytest.raises(DataError, match="timestamps"):
        popular.recommend_for([["i1"]], timestamps=[[1, 2]])


def test_one_text_is_not_taken_for_its_letters(folder: Path) -> None:
    log = film_log(users=12)
    named = replace(log, users=Vocabulary("0123456789ab"), items=Vocabulary(chr(200 + i) for i in range(len(log.items))))
    service = Service.of(create("popularity").fit(named), named)
    first, second = named.items.ids[:2]
    for ask, fix in (
        (lambda: service.recommend("12"), r"users are a list, not the text '12'; write \['12'\]"),
        (lambda: service.recommend_for([first + second]), "external ids are a list, not the text"),
        (lambda: Histories.external(named.items, [first + second]), "external ids are a list"),
        (lambda: service.popular(rules=[Only(first + second)]), "external ids are a list"),
        (lambda: service.popular(rules=[Has("tag", "Drama")]), r"values of 'tag' are a list.*write \['Drama'\]"),
        (lambda: Service.load(folder).add_items([NewItem("a", "A film", "Drama", {"genre": "Drama"})]), "tags of new item 'a'"),
    ):
        with pytest.raises(DataError, match=fix):
            ask()


def test_a_service_refuses_what_does_not_belong_together(popular: Service, log: Dataset) -> None:
    with pytest.raises(DataError, match="knows 80 items, not the 40"):
        Service.of(popular.model, film_log(items=40))
    with pytest.raises(DataError, match="knows 240 users"):
        Service.of(popular.model, film_log(users=30))
    with pytest.raises(DataError, match="has not been trained"):
        Service.of(create("popularity"), log)
    with pytest.raises(DataError, match="popularity has no item vectors"):
        popular.use_index("exact")


@pytest.mark.parametrize(
    ("rule", "passes"),
    [
        (Only(["i3", "i70"]), lambda i: i in (3, 70)),
        (~Only(["i3"]), lambda i: i != 3),
        (Has("tag", ["Drama", "Horror"]), lambda i: i % 4 in (1, 2)),
        (~Has("genre", ["Drama"]), lambda i: i % 4 != 1),
        (Has("shape", ["short"]), lambda i: i % 2 == 1 and i % 3 > 0),
        (Between("year", 1960, 1962), lambda i: 10 <= i % 70 <= 12),
        (Titled("FILM 7"), lambda i: str(i).startswith("7")),
        (Has("tag", ["Drama"]) & Between("year", low=2000), lambda i: i % 4 == 1 and i % 70 >= 50),
        (Has("tag", ["Drama"]) | Only(["i0"]), lambda i: i % 4 == 1 or i == 0),
        (parse_rule("tag=Drama, Horror"), lambda i: i % 4 in (1, 2)),
        (parse_rule("tag!=Drama"), lambda i: i % 4 != 1),
        (parse_rule("year=1960..1962"), lambda i: 10 <= i % 70 <= 12),
        (parse_rule("year=..1950"), lambda i: i % 70 == 0),
        (parse_rule("year!=1951.."), lambda i: i % 70 == 0),
        (parse_rule("title~film 7"), lambda i: str(i).startswith("7")),
    ],
)
def test_rules_pass_what_they_say(rule: Rule, passes: object, popular: Service) -> None:
    assert np.flatnonzero(rule.mask(popular.catalogue)).tolist() == [i for i in range(80) if passes(i)]  # type: ignore[operator]


@pytest.mark.parametrize("text", ["tag", "=Drama", "tag~Drama", "", "tag="])
def test_rules_of_no_form_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="not of the form"):
        parse_rule(text)


def test_rules_of_the_wrong_kind_are_refused(popular: Service) -> None:
    for rule, fix in ((Has("year", ["1990"]), "range"), (Between("genre", 1, 2), "Has"), (parse_rule("genre=1..2"), "Has")):
        with pytest.raises(DataError, match=fix):
            popular.popular(rules=[rule])
    with pytest.raises(DataError, match="no numbers"):
        parse_rule("year=1.2.3..4")
    with pytest.raises(DataError, match="is a number"):
        popular.popular(caps=[AtMost(1, "year")])
    with pytest.raises(DataError, match="at least 1"):
        AtMost(0)


def test_a_short_list_says_so(popular: Service) -> None:
    answer = popular.recommend_for([["i1"]], k=10, rules=[Only(["i1", "i2", "i3"])])[0]
    assert set(answer.ids) == {"i2", "i3"}
    assert (answer.asked, answer.candidates, answer.missing) == (10, 2, 8)
    assert popular.recommend_for([["i1"]], rules=[Only([])])[0].items == ()


@given(st.lists(st.lists(st.integers(0, 3), max_size=3, unique=True), max_size=12), st.integers(1, 3), st.integers(1, 6))
def test_a_cap_keeps_the_best_list_that_keeps_it(tags: list[list[int]], count: int, k: int) -> None:
    codes = [np.array(t, np.int64) for t in tags]
    taken = capped(range(len(tags)), [(count, codes)], k)
    assert taken == sorted(set(taken))
    assert len(taken) <= k
    for tag in range(4):
        assert sum(tag in tags[i] for i in taken) <= count
    # Whatever was passed over would have broken the cap at its turn, or came when the list was full.
    for i in set(range(len(tags))) - set(taken):
        before = [j for j in taken if j < i]
        assert len(before) == k or any(sum(t in tags[j] for j in before) == count for t in tags[i])


def test_caps_hold_in_answers(popular: Service) -> None:
    answer = popular.recommend(["u0"], k=10, caps=[AtMost(2)])[0]
    genres = [int(i[1:]) % 4 for i in answer.ids]
    assert max(np.bincount(genres)) == 2
    assert (len(answer.items), answer.missing) == (8, 2)
    assert [i.score for i in answer.items] == sorted((i.score for i in answer.items), reverse=True)
    assert popular.recommend(["u0"], k=3, caps=[AtMost(80)]) == popular.recommend(["u0"], k=3)


def test_the_popular_list_counts(popular: Service, log: Dataset) -> None:
    answer = popular.popular(k=3, rules=[Has("tag", ["Western"])])
    best = [i for i in np.argsort(-log.item_counts, kind="stable") if i % 4 == 3][:3]
    assert answer.ids == log.items.decode(best)
    assert [i.score for i in answer.items] == log.item_counts[best].tolist()


def test_saved_and_loaded_services_answer_alike(folder: Path, tmp_path: Path) -> None:
    service = Service.load(folder)
    service.save(tmp_path)
    assert Service.load(tmp_path).recommend(["u5"], rules=[Between("year", 1955)]) == service.recommend(
        ["u5"], rules=[Between("year", 1955)]
    )
    with pytest.raises(DataError, match="holds no service"):
        Service.load(tmp_path / "model")


def test_a_service_whose_writer_stopped_is_the_old_one_the_new_one_or_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, replace, outcomes = Service.load(folder), Path.replace, []
    new = Service.load(folder)
    new.add_items([fresh("Drama")])
    for stop_at in range(6):  # weights, model, catalogue, users, histories, hashes
        place, left = tmp_path / str(stop_at), iter(range(stop_at, -1, -1))
        old.save(place)

        def stopped(self: Path, target: Path, left: Iterator[int] = left) -> Path:
            if next(left) == 0:
                raise KeyboardInterrupt
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stopped)
            with pytest.raises(KeyboardInterrupt):
                new.save(place)
        try:
            outcomes.append(str(len(Service.load(place).catalogue)))
        except DataError as error:
            outcomes.append(str(error).partition("is of another saving); ")[2])
        new.save(place)
        assert len(Service.load(place).catalogue) == len(new.catalogue)
    assert outcomes == [str(len(old.catalogue))] * 2 + ["save it again"] * 4


@pytest.mark.parametrize(
    "name", ["service.json", "catalogue.json", "users.json", "known.safetensors", "model/model.json", "model/weights-*"]
)
@pytest.mark.parametrize("gone", [False, True])
def test_a_service_that_is_not_whole_says_so(name: str, gone: bool, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "service")
    (file,) = (tmp_path / "service").glob(name)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    if gone:
        file.unlink()
    with pytest.raises(DataError, match=str(tmp_path / "service")) as caught:
        Service.load(tmp_path / "service")
    assert "save" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_new_items_reach_those_whose_taste_they_fit(folder: Path, log: Dataset) -> None:
    service = Service.load(folder)
    before = service.recommend(["u0", "u1", "u2", "u3"], k=5, rules=[Only(log.items.ids)])
    old = service.model.score(service.known)
    service.add_items([fresh(genre) for genre in GENRES])
    # Old items keep ids and scores.
    np.testing.assert_allclose(service.model.score(service.known)[:, :80], old, atol=1e-5)
    assert service.recommend(["u0", "u1", "u2", "u3"], k=5, rules=[Only(log.items.ids)]) == before
    answers = service.recommend(log.users.ids, k=1, rules=[Only([fresh(g).id for g in GENRES])])
    hits = [a.ids[0] == fresh(GENRES[u % 4]).id for u, a in enumerate(answers)]
    # By chance a quarter.
    assert np.mean(hits) > 0.8


def test_new_items_stand_in_histories_and_survive_saving(folder: Path, tmp_path: Path) -> None:
    service = Service.load(folder)
    service.add_items([fresh("Drama"), fresh("Drama", 1), fresh("Horror")])
    service.add_items([NewItem("plain", features={"year": 1950.0, "genre": "Noir"})])
    service.save(tmp_path)
    loaded = Service.load(tmp_path)
    history = [fresh("Drama").id, "i1", "plain", fresh("Horror").id]
    assert loaded.recommend_for([history], k=84) == service.recommend_for([history], k=84)
    assert not set(history) & set(loaded.recommend_for([history], k=84)[0].ids)
    assert loaded.recommend_for([history])[0] != loaded.recommend_for([["i1"]])[0]
    assert loaded.popular(k=1, rules=[Has("genre", ["Noir"])]).ids == ["plain"]
    assert loaded.catalogue.titles[-1] == "plain"
    assert loaded.catalogue.trained == 80
    loaded.add_items([fresh("Western")])
    assert len(loaded.model.items) == 85  # type: ignore[arg-type]


def test_refused_new_items_change_nothing(folder: Path, popular: Service) -> None:
    service = Service.load(folder)
    for items, problem in (
        ([NewItem("i3", features={"year": 1.0})], "'i3' occurs twice"),
        ([NewItem("a", features={"colour": "red"})], "'colour'"),
        ([NewItem("a", features={"year": "old"})], "kind number and cannot be 'old'"),
        ([NewItem("a", features={"genre": ["Drama"]})], "kind category"),
        ([NewItem("a", "A film", ("Drama",))], "nothing known of new item 'a' reaches sasrec.*genre, year, shape"),
    ):
        with pytest.raises((DataError, UnknownNameError), match=problem):
            service.add_items(items)
    assert len(service.catalogue) == len(service.model.items) == 80  # type: ignore[arg-type]
    with pytest.raises(DataError, match="popularity has no item vectors"):
        popular.add_items([fresh("Drama")])


def test_text_places_new_items_where_it_says_something() -> None:
    log = film_log(users=240)
    model = create("sasrec", dim=16, blocks=1, max_length=12, epochs=20, learning_rate=5e-3, batch_size=32).fit(log)
    service = Service.of(model, log)
    told = service.text_map(words)
    # Eight held-out items alone tell the recall; the share of variance is steadier, and text that says nothing stays below this.
    assert told.r2 > 0.05
    service.add_items([NewItem(f"new-{g}", "Later", (g,)) for g in GENRES], told)
    answers = service.recommend(log.users.ids, k=1, rules=[Only([f"new-{g}" for g in GENRES])])
    assert np.mean([a.ids[0] == f"new-{GENRES[u % 4]}" for u, a in enumerate(answers)]) > 0.5


def test_text_that_says_nothing_is_found_out() -> None:
    rng = np.random.default_rng(0)
    texts, vectors = [str(n) for n in range(300)], rng.normal(size=(300, 8)).astype(np.float32)
    noise = {text: rng.normal(size=40).astype(np.float32) for text in texts}
    nothing = TextMap.fit(lambda rows: np.stack([noise[r] for r in rows]), texts, vectors)
    assert nothing.r2 < 0.05
    assert nothing.recall < 0.2
    weights = rng.normal(size=(40, 8)).astype(np.float32)
    all_of_it = TextMap.fit(lambda rows: np.stack([noise[r] for r in rows]), texts, np.stack(list(noise.values())) @ weights)
    assert all_of_it.r2 > 0.99
    assert all_of_it.recall > 0.95
    np.testing.assert_allclose(all_of_it(texts[:3]), np.stack([noise[t] for t in texts[:3]]) @ weights, atol=0.1)
    with pytest.raises(DataError, match="49 items"):
        TextMap.fit(words, texts[:49], vectors[:49])


def test_the_catalogue_reads_back_what_it_wrote(log: Dataset, tmp_path: Path) -> None:
    catalogue = Catalogue.of(log).extended([NewItem("x", features={"shape": ["round"]})])
    catalogue.save(tmp_path / "c.json")
    loaded = Catalogue.load(tmp_path / "c.json")
    assert loaded.ids.ids == catalogue.ids.ids
    assert loaded.texts([1, 80]) == ["Film 1 (1951). Drama", "x"]
    for rule in (Has("shape", ["round"]), Between("year"), ~Has("genre", GENRES), Has("tag", ["Drama"])):
        np.testing.assert_array_equal(rule.mask(loaded), rule.mask(catalogue))
    assert np.flatnonzero(Has("shape", ["round"]).mask(loaded)).tolist() == [80]
    assert not Between("year").mask(loaded)[80]
