"""HLLM: vectors of texts, InfoNCE over texts read once, and what a saved model can do without the models it came from."""

from __future__ import annotations

import builtins
import copy
import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import recsys_core
from recsys_core import Histories, assets
from recsys_core.data import Dataset, Split, Vocabulary
from recsys_core.errors import DataError, UnavailableError, UnknownNameError
from recsys_core.language.decoder import SMOLLM2, decoder_config, decoder_folder, new_decoder, pretrained_decoder, read_tokenizer
from recsys_core.language.gguf import VERSION
from recsys_core.language.reader import TextReader, TextTokens, pieces
from recsys_core.models.hllm import HLLM
from recsys_core.models.hllm.learner import HLLMLearner
from recsys_core.models.hllm.network import TrainedTexts
from recsys_core.recommender import FitOptions, weights_file
from recsys_core.sequence.batch import SequenceBatch
from recsys_core.serving import NewItem, Service

pytest.importorskip("transformers", reason="HLLM's decoders need the extra llm")

from tiny_language import CONTROL, tiny, tiny_decoder, tiny_of

ROWS = st.lists(st.lists(st.integers(0, 200), min_size=1, max_size=9), min_size=1, max_size=7)


@functools.cache
def _decoder(folder: Path) -> torch.nn.Module:
    return pretrained_decoder(folder, decoder_config(folder, None))


def reader(closing: bool, piece: int = 10**6, recompute: bool = False, prompt: tuple[int, ...] = (5, 6)) -> TextReader:
    folder = decoder_folder(tiny_decoder())
    decoder = copy.deepcopy(_decoder(folder))
    torch.manual_seed(0)
    return TextReader(decoder, prompt, closing, piece, recompute)


def jagged(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([t for row in rows for t in row]), torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)


def alone(model: TextReader, row: list[int]) -> Tensor:
    """The vector of one text, unpadded, written out."""
    words = model.decoder.get_input_embeddings()(torch.tensor([[5, 6, *row]]))  # type: ignore[operator]
    if model.closing is None:
        return model.decoder(inputs_embeds=words).last_hidden_state[0, 2:].mean(0)
    return model.decoder(inputs_embeds=torch.cat([words, model.closing[None, None]], 1)).last_hidden_state[0, -1]


@settings(max_examples=15, deadline=None)
@given(ROWS, st.booleans(), st.integers(1, 60))
def test_a_text_has_the_same_vector_in_any_company(rows: list[list[int]], closing: bool, piece: int) -> None:
    model = reader(closing, piece)
    with torch.no_grad():
        together = model(*jagged(rows))
        torch.testing.assert_close(together, torch.stack([alone(model, row) for row in rows]), rtol=1e-4, atol=1e-5)
        chosen = torch.tensor([len(rows) - 1, 0, 0])
        torch.testing.assert_close(model.rows(*jagged(rows), chosen), together[chosen], rtol=1e-4, atol=1e-5)


def test_activations_computed_again_change_no_gradient() -> None:
    rows = [[1, 2, 3], [4], [9, 8, 7, 6, 5], [3, 3]]
    found = []
    for recompute in (False, True):
        model = reader(True, 12, recompute)
        model(*jagged(rows)).square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert "closing" in found[0]
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40).map(sorted), st.integers(1, 200), st.integers(0, 5))
def test_pieces_cover_all_texts_within_the_budget(lengths: list[int], budget: int, besides: int) -> None:
    cut = pieces(np.array(lengths), budget, besides)
    assert [n for first, last, _ in cut for n in range(first, last)] == list(range(len(lengths)))
    for first, last, longest in cut:
        assert longest == max(lengths[first:last])
        assert last == first + 1 or (last - first) * (longest + besides) <= budget


@settings(max_examples=60)
@given(st.text(max_size=12), st.text(max_size=12), st.integers(1, 9))
def test_what_spells_a_control_token_stays_characters(before: str, after: str, most: int) -> None:
    tokenizer = read_tokenizer(Path(tiny_decoder()))
    whole, cut = TextTokens(tokenizer, 10**6), TextTokens(tokenizer, most)
    text = f"{before}{CONTROL}{after}"
    tokens = whole([text, "plain"])
    control = whole._tokenizer.token_to_id(CONTROL)
    assert control is not None
    assert control not in tokens.values
    assert whole._tokenizer.decode(tokens[0].tolist()) == f" {text}"
    assert cut([text])[0].tolist() == tokens[0].tolist()[:most]


def learner(split: Split, **fields: Any) -> HLLMLearner:
    model = HLLM(HLLM.Config(**tiny(**fields)))
    model.items, model.n_users = split.train.items, len(split.train.users)
    torch.manual_seed(3)
    model._initialize(split.train)
    return model._learner(split.train)


def batch_of(made: HLLMLearner) -> SequenceBatch:
    """The first windows of an epoch."""
    return made.shard(made.epoch(np.random.default_rng(0), torch.device("cpu"))[0], 0, 20)


def naive(made: HLLMLearner, batch: SequenceBatch, drawn: Tensor) -> Tensor:
    """InfoNCE in float64, one sequence and one negative at a time, every text read wherever it occurs."""
    network, config = made.network, made.config

    def vector(item: int) -> Tensor:
        return network.embedding.read(torch.tensor([item]))[0]

    total = torch.zeros((), dtype=torch.float64)
    assert batch.targets is not None
    for first, last in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        tokens = batch.tokens[first:last].tolist()
        inputs = torch.stack([network.embedding.start if t == made.n_items else vector(t) for t in tokens])
        states = network.user(inputs_embeds=inputs[None]).last_hidden_state[0]
        for state, target in zip(states, batch.targets[first:last].tolist(), strict=True):

            def score(item: int, state: Tensor = state) -> Tensor:
                return torch.nn.functional.cosine_similarity(state.double(), vector(item).double(), dim=0) / config.temperature

            negatives = []
            for item in drawn.tolist():
                if item != target:
                    expected = float(made.get_buffer("log_frequency")[item]) + np.log(len(drawn)) if config.sampling == "in-batch" else 0.0
                    negatives.append(score(item) - expected)
            total = total - torch.log_softmax(torch.stack([score(target), *negatives]), 0)[0]
    return total


@pytest.mark.parametrize("sampling", ["shared", "in-batch", "all"])
@pytest.mark.parametrize("trained", [True, False])
def test_loss_and_gradients_are_those_of_texts_read_one_by_one(split: Split, sampling: str, trained: bool) -> None:
    made = learner(split, sampling=sampling, train_item_model=trained, negatives=6, max_length=5, user_layers=1, item_layers=1)
    batch = batch_of(made)
    assert batch.targets is not None
    drawn = made.drawn(batch.targets)
    assert len(drawn) == (80 if sampling == "all" else 6)
    loss, expected = made.info_nce(batch, drawn), naive(made, batch, drawn)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    parameters = {name: p for name, p in made.named_parameters() if p.requires_grad}
    mine = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    theirs = torch.autograd.grad(expected, list(parameters.values()), allow_unused=True)
    for name, a, b in zip(parameters, mine, theirs, strict=True):
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_a_step_reads_each_text_once(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner(split)
    batch, seen = batch_of(made), list[Tensor]()
    read = TrainedTexts.read
    monkeypatch.setattr(TrainedTexts, "read", lambda self, rows: seen.append(rows) or read(self, rows))
    made(batch)
    assert batch.targets is not None
    used = set(batch.targets.tolist()) | (set(batch.tokens.tolist()) - {made.n_items})
    (rows,) = seen
    assert len(set(rows.tolist())) == len(rows)
    assert used <= set(rows.tolist())
    assert len(rows) <= len(used) + made.config.negatives


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 79), min_size=1, max_size=6), st.lists(st.integers(0, 79), max_size=4))
def test_a_state_depends_on_nothing_after_it(fitted: HLLM, history: list[int], more: list[int]) -> None:
    def states(rows: list[list[int]]) -> Tensor:
        tokens = torch.tensor([t for row in rows for t in (80, *row)])
        offsets = torch.tensor([0, *(len(row) + 1 for row in rows)]).cumsum(0)
        return fitted.network(SequenceBatch(tokens, offsets, torch.full((len(rows),), -1), longest=12))

    with torch.no_grad():
        short, long = states([history, [3]]), states([[*history, *more], [9, 9]])
    torch.testing.assert_close(long[: len(history) + 1], short[: len(history) + 1], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def fitted(split: Split) -> HLLM:
    """A model whose item model learned too."""
    model = recsys_core.create("hllm", **tiny(epochs=1)).fit(split.train)
    assert isinstance(model, HLLM)
    return model


@pytest.mark.parametrize("fields", [{"sampling": "in-batch"}, {"train_item_model": False, "sampling": "all", "learning_rate": 3e-3}])
def test_what_texts_have_in_common_is_learned(fields: dict[str, Any]) -> None:
    kinds, rng = ("Comedy", "Drama", "Horror", "Western"), np.random.default_rng(0)
    item = np.concatenate([u % 4 * 10 + rng.permutation(10)[:6] for u in range(120)])
    # One more of each kind, which nobody takes.
    titles = [f"{kinds[i // 10 if i < 40 else i - 40]} {rng.integers(100)}" for i in range(44)]
    data = Dataset(
        "kinds", Vocabulary(f"u{u}" for u in range(120)), Vocabulary(f"i{i}" for i in range(44)),
        np.repeat(np.arange(120), 6), item.astype(np.int64), np.arange(720), titles=tuple(titles),
    )  # fmt: skip
    model = recsys_core.create("hllm", **tiny(epochs=12, batch_size=12, pretrained=False, **fields)).fit(data)
    scores = model.score(Histories.of([data.sequences()[u] for u in range(4)]))
    for user in range(4):
        unmet = scores[user, 40:]
        assert unmet.argmax() == user
        assert scores[user, user * 10 : user * 10 + 10].mean() > np.delete(scores[user, :40], range(user * 10, user * 10 + 10)).mean() + 1


@pytest.mark.parametrize("trained", [True, False])
def test_a_saved_model_needs_no_other(split: Split, tmp_path: Path, trained: bool) -> None:
    source = tmp_path / "decoder"
    shutil.copytree(tiny_decoder(), source)
    fields = tiny(item_model=str(source), user_model=str(source), epochs=1, train_item_model=trained)
    model = recsys_core.create("hllm", **fields).fit(split.train)
    assert isinstance(model, HLLM)
    model.save(tmp_path / "saved")
    expected, told = model.score(split.test.histories), model.text_vectors(["A later film. Comedy"])
    shutil.rmtree(source)
    loaded = recsys_core.load(tmp_path / "saved")
    assert isinstance(loaded, HLLM)
    np.testing.assert_array_equal(loaded.score(split.test.histories), expected)
    if trained:
        assert torch.equal(loaded.text_vectors(["A later film. Comedy"]), told)
        return
    # A frozen item model is not a part of what was trained, so it is not saved; another in its place would read texts differently.
    assert not any("reader" in name for name in load_file(weights_file(tmp_path / "saved")))
    shutil.copytree(tiny_decoder(), source)
    assert torch.equal(loaded.text_vectors(["A later film. Comedy"]), told)
    config = (source / "config.json").read_text()
    (source / "config.json").write_text(config + " ")
    with pytest.raises(DataError, match="holds another item model"):
        loaded.text_vectors(["A later film. Comedy"])


def test_new_items_are_ranked_by_their_text(films: Dataset, fitted: HLLM, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    service = Service.of(recsys_core.load(tmp_path / "model"), films)
    service.add_items([NewItem("twin", films.titles[7], films.tags[7]), NewItem("other", "Another Film (1998)", ["Drama"])])
    (answer,) = service.recommend_for([["i3", "twin"]], k=82, repeat=True)
    score = {item.id: item.score for item in answer.items}
    assert len(score) == 82
    with pytest.raises(DataError, match=r"nothing known of new item 'untold' reaches hllm.*; give it a title or tags"):
        service.add_items([NewItem("untold", " ")])
    assert score["twin"] == pytest.approx(score["i7"], abs=1e-4)
    (same,) = service.recommend_for([["i3", "i7"]], k=82, repeat=True)
    assert [i.score for i in same.items] == pytest.approx([i.score for i in answer.items], abs=1e-4)
    with pytest.raises(DataError, match=r"nothing known of new item 'nameless' reaches hllm.*give it a title or tags"):
        service.add_items([NewItem("nameless")])
    service.save(tmp_path / "service")
    (again,) = Service.load(tmp_path / "service").recommend_for([["i3", "twin"]], k=82, repeat=True)
    assert again == answer


def test_items_without_interactions_have_vectors_of_their_own(split: Split) -> None:
    train = split.train.rows(split.train.item != 11)
    model = recsys_core.create("hllm", **tiny(epochs=1)).fit(train)
    assert isinstance(model, HLLM)
    told = model.text_vectors([train.text(11)])[0]
    torch.testing.assert_close(model.id_vectors()[11], told, rtol=1e-4, atol=1e-5)


class Interrupted(HLLM):
    steps = 0

    def _learner(self, dataset: Dataset) -> HLLMLearner:
        made = super()._learner(dataset)
        made.register_forward_pre_hook(self._count)
        return made

    def _count(self, *_: object) -> None:
        self.steps -= 1
        if not self.steps:
            raise KeyboardInterrupt


@pytest.mark.parametrize("trained", [True, False])
def test_an_interrupted_training_ends_with_the_weights_of_a_straight_one(split: Split, tmp_path: Path, trained: bool) -> None:
    fields = tiny(epochs=3, batch_size=30, patience=5, train_item_model=trained, dropout=0.2)
    models = []
    for name, stops in (("straight", ()), ("stopped", (2, 6))):
        for steps in (*stops, 0):
            model = Interrupted(Interrupted.Config(**fields))
            model.steps = steps
            try:
                model.fit(split.train, options=FitOptions(split.valid, tmp_path / name, "cpu", checkpoint_every=1))
            except KeyboardInterrupt:
                assert steps
        models.append(model._state())
    assert models[0].keys() == models[1].keys()
    for name, array in models[0].items():
        np.testing.assert_array_equal(models[1][name], array, name)


def test_first_layers_alone_are_taken(split: Split) -> None:
    made = learner(split, item_layers=1, user_layers=2)
    assert (len(made.network.embedding.reader.decoder.layers), len(made.network.user.layers)) == (1, 2)
    stored = load_file(Path(tiny_decoder()) / "model.safetensors")
    weights = made.network.user.state_dict()
    assert torch.equal(weights["layers.1.mlp.up_proj.weight"], stored["model.layers.1.mlp.up_proj.weight"])
    other = learner(split, pretrained=False).network.user.state_dict()
    assert not torch.equal(other["layers.1.mlp.up_proj.weight"], stored["model.layers.1.mlp.up_proj.weight"])
    with pytest.raises(DataError, match=r"3 layers are asked of .*which has 2"):
        learner(split, item_layers=3)


def test_models_of_different_widths_go_together(split: Split, tmp_path: Path) -> None:
    model = recsys_core.create("hllm", **tiny(epochs=1, item_model=tiny_decoder(16))).fit(split.train)
    assert model.item_vectors().shape == (80, 32)  # type: ignore[attr-defined]
    model.save(tmp_path)
    np.testing.assert_array_equal(recsys_core.load(tmp_path).score(split.test.histories), model.score(split.test.histories))


@pytest.mark.parametrize("trained", [True, False])
def test_decoders_of_other_families_are_taken(split: Split, tmp_path: Path, trained: bool) -> None:
    other = tiny_of("gpt2")
    fields = tiny(item_model=other, user_model=other, epochs=1, train_item_model=trained, text_length=20, item_layers=1)
    model = recsys_core.create("hllm", **fields).fit(split.train)
    model.save(tmp_path)
    np.testing.assert_array_equal(recsys_core.load(tmp_path).score(split.test.histories), model.score(split.test.histories))


def test_a_model_that_looks_ahead_or_has_too_few_places_is_refused(split: Split) -> None:
    for field in ("item_model", "user_model"):
        with pytest.raises(DataError, match=r"reads later tokens too, as encoders do"):
            recsys_core.create("hllm", **tiny(**{field: tiny_of("bert")}, text_length=20)).fit(split.train)
    for field, fits, more in (
        ("user_model", {"max_length": 40}, {"max_length": 41}),
        ("item_model", {"text_length": 38}, {"text_length": 39}),
    ):
        assert learner(split, **{field: tiny_of("gpt2")}, **fits)
        with pytest.raises(DataError, match=r"places for 40 tokens and 41 would be read; lower max_length or text_length"):
            learner(split, **{field: tiny_of("gpt2")}, **more)


def test_code_in_a_models_folder_is_never_offered_to_be_run(split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "decoder"
    shutil.copytree(tiny_decoder(), folder)
    (folder / "own.py").write_text("raise SystemExit('code from the folder was run')\n")
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | own))

    asked: list[object] = []
    monkeypatch.setattr(builtins, "input", lambda *given: asked.append(given) or "n")
    with pytest.raises(DataError, match="describes no model that transformers knows"):
        recsys_core.create("hllm", **tiny(user_model=str(folder))).fit(split.train)
    assert not asked


def test_a_log_without_texts_is_refused(split: Split) -> None:
    bare = replace(split.train, titles=(), tags=())
    with pytest.raises(DataError, match=r"no titles and no tags for hllm to read"):
        recsys_core.create("hllm", **tiny()).fit(bare)


@pytest.mark.parametrize("trained", [True, False])
def test_texts_that_leave_no_tokens_have_a_vector(split: Split, tmp_path: Path, trained: bool) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path / "decoder"
    shutil.copytree(tiny_decoder(), folder)
    words = Tokenizer(models.WordLevel({"?": 0, "Film": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    blank = replace(split.train, titles=("Film", *["  "] * 79), tags=())
    fields = tiny(item_model=str(folder), prompt="", text_length=1, piece=1, epochs=1, train_item_model=trained)
    vectors = recsys_core.create("hllm", **fields).fit(blank).item_vectors()  # type: ignore[attr-defined]
    assert bool(vectors.isfinite().all())
    torch.testing.assert_close(vectors[1:], vectors[1:2].expand(79, -1))
    assert not torch.allclose(vectors[0], vectors[1])


@pytest.mark.parametrize("trained", [True, False])
def test_a_text_read_later_has_the_vector_it_has_in_the_catalogue(split: Split, trained: bool) -> None:
    model = recsys_core.create("hllm", **tiny(epochs=1, precision="bfloat16", train_item_model=trained)).fit(split.train)
    assert isinstance(model, HLLM)
    torch.testing.assert_close(model.text_vectors([split.train.text(n) for n in range(80)]), model.id_vectors(), rtol=1e-4, atol=1e-5)


def test_a_training_does_not_go_on_with_another_item_model(split: Split, tmp_path: Path) -> None:
    folder = tmp_path / "decoder"
    shutil.copytree(tiny_decoder(), folder)
    fields = tiny(item_model=str(folder), train_item_model=False, epochs=2, batch_size=30)
    model = Interrupted(Interrupted.Config(**fields))
    model.steps = 3
    with pytest.raises(KeyboardInterrupt):
        model.fit(split.train, options=FitOptions(None, tmp_path / "fit", "cpu", checkpoint_every=1))
    weights = load_file(folder / "model.safetensors")
    save_file({name: -tensor for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"belongs to another training .*item model"):
        recsys_core.create("hllm", **fields).fit(split.train, options=FitOptions(None, tmp_path / "fit", "cpu"))


def test_wrong_folders_are_explained(split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.json", "tokenizer.json"):
        folder = tmp_path / name
        shutil.copytree(tiny_decoder(), folder)
        (folder / name).unlink()
        with pytest.raises(DataError, match=name):
            recsys_core.create("hllm", **tiny(item_model=str(folder))).fit(split.train)
    with pytest.raises(UnknownNameError, match=rf"'smollm'; did you mean '{SMOLLM2}'\? known: {SMOLLM2}, or a folder"):
        recsys_core.create("hllm", **tiny(user_model="smollm")).fit(split.train)
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_decoder(), folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(DataError, match="cannot be loaded as a language model"):
        recsys_core.create("hllm", **tiny(user_model=str(folder))).fit(split.train)
    # Pickled weights may hold code; they are not even opened.
    torch.save(load_file(Path(tiny_decoder()) / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"cannot be loaded as a language model.*safetensors"):
        recsys_core.create("hllm", **tiny(user_model=str(folder))).fit(split.train)
    shutil.copy(Path(tiny_decoder(16)) / "model.safetensors", folder)
    with pytest.raises(DataError, match="damaged"):
        recsys_core.create("hllm", **tiny(user_model=str(folder))).fit(split.train)
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr("recsys_core.extras.import_module", lambda name: without(name))
    with pytest.raises(UnavailableError, match=r"needs the package 'transformers'; install it with: pip install '\.\[llm\]'"):
        recsys_core.create("hllm", **tiny()).fit(split.train)


@pytest.mark.skipif(
    not (assets.cache.cache_folder() / "derived" / SMOLLM2 / VERSION / "manifest.json").is_file(),
    reason=f"{SMOLLM2} is not in the cache, converted",
)
def test_the_default_model_knows_which_titles_are_alike() -> None:
    folder = decoder_folder(SMOLLM2)
    shape = decoder_config(folder, 12)
    words = TextTokens(read_tokenizer(folder), 32)
    made = TextReader(pretrained_decoder(folder, shape), words.prompt("Movie:"), closing=False)
    texts = ["Star Wars (1977). Action, Sci-Fi", "Star Trek (1979). Action, Sci-Fi", "Cinderella (1950). Animation, Children's"]
    tokens = words([*texts, "Snow White (1937). Animation, Children's"])
    with torch.no_grad():
        found = made(torch.from_numpy(tokens.values), torch.from_numpy(tokens.offsets))
    likeness = torch.corrcoef((found - found.mean(0)) / found.std(0))
    assert min(likeness[0, 1], likeness[2, 3]) > likeness[:2, 2:].max() + 0.2
    assert new_decoder(shape).state_dict().keys() == made.decoder.state_dict().keys()


@pytest.mark.gpu
@pytest.mark.parametrize("trained", [True, False])
def test_a_gpu_computes_the_same_loss_in_16_bits_almost(split: Split, trained: bool) -> None:
    made = learner(split, train_item_model=trained, recompute=True, piece=40)
    batch = batch_of(made)
    assert batch.targets is not None
    drawn = made.drawn(batch.targets)
    expected = float(made.info_nce(batch, drawn))
    made, moved = made.to("cuda"), batch.to("cuda")
    assert float(made.info_nce(moved, drawn.cuda())) == pytest.approx(expected, rel=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        loss = made.info_nce(moved, drawn.cuda())
    assert float(loss) == pytest.approx(expected, rel=0.05)
    loss.backward()
    gradients = [p.grad for p in made.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.gpu
def test_a_model_trained_on_a_gpu_ranks_the_same_on_a_processor(split: Split, tmp_path: Path) -> None:
    model = recsys_core.create("hllm", **tiny(precision="bfloat16", patience=2)).fit(
        split.train, options=FitOptions(split.valid, device="cuda")
    )
    model.save(tmp_path)
    expected = model.score(split.test.histories)
    np.testing.assert_allclose(recsys_core.load(tmp_path).score(split.test.histories), expected, atol=1e-2)
    empty = Histories.of([[]])
    np.testing.assert_allclose(model.to("cpu").score(empty), recsys_core.load(tmp_path).score(empty), atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_translated_layers_train_the_same_model(split: Split, device: str) -> None:
    scores = []
    for compile_ in (False, True):
        model = recsys_core.create("hllm", **tiny(epochs=1, negatives=6, compile=compile_, recompute=compile_, patience=1))
        scores.append(model.fit(split.train, options=FitOptions(split.valid, device=device)).score(split.test.histories))
    np.testing.assert_allclose(scores[1], scores[0], atol=2e-2)
