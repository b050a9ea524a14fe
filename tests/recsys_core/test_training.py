"""The trainer: its schedule, its reports, and several processes that compute what one does."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import training_runs
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from training_runs import PLAIN, RANDOM, circle, fit

from recsys_core import evaluate
from recsys_core.data import leave_one_out
from recsys_core.errors import DataError, UnavailableError
from recsys_core.models.sasrec import SASRec, SASRecConfig
from recsys_core.recommender import FitOptions, weights_file
from recsys_core.training import TrainingConfig, pick_device
from recsys_core.training.compiling import compiled
from recsys_core.training.distributed import World
from recsys_core.training.journal import EVENTS_FOLDER, JOURNAL_FILE


@given(st.floats(0.01, 0.9), st.floats(0, 1), st.sampled_from(["cosine", "constant"]))
def test_the_learning_rate_stays_under_its_peak(warmup: float, share: float, schedule: str) -> None:
    config = TrainingConfig(learning_rate=0.5, warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
    assert 0 <= config.rate(share) <= 0.5
    assert config.rate(0) == 0
    assert config.rate(1) == pytest.approx(0.5 if schedule == "constant" else 0)
    if share <= warmup and schedule == "constant":
        assert config.rate(share) == pytest.approx(0.5 * share / warmup)


def test_the_journal_and_the_event_files_say_what_happened(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KeyboardInterrupt):
        fit(PLAIN, tmp_path, 14)
    # A process that was killed between the journal and the checkpoint leaves a line too many.
    with (tmp_path / JOURNAL_FILE).open("a") as file:
        file.write('{"epoch": 3, "st')
    fit(PLAIN, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / JOURNAL_FILE).read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 6), (2, 12), (3, 18)]
    rows = len(leave_one_out(circle()).train)
    for line in lines:
        assert line["samples_per_second"] == pytest.approx(rows / line["seconds"])
        assert line["learning_rate"] == pytest.approx(TrainingConfig(learning_rate=0.01).rate((line["step"] - 0.5) / 18))
        assert line["gradient_norm"] > 0
        assert 0 <= line["ndcg"] <= 1
        assert line["peak_memory"] is None
    assert lines[2]["loss"] < lines[0]["loss"]
    events = EventAccumulator(str(tmp_path / EVENTS_FOLDER))
    events.Reload()
    read = [(e.step, e.value) for e in events.Scalars("training/loss")]
    assert read == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    assert "training/peak_memory" not in events.Tags()["scalars"]


def test_the_gradient_norm_is_only_measured_where_it_is_clipped(tmp_path: Path) -> None:
    fit(PLAIN | {"clip_norm": None, "epochs": 1}, tmp_path)
    assert json.loads((tmp_path / JOURNAL_FILE).read_text())["gradient_norm"] is None


def test_early_stopping_returns_the_best_weights(tmp_path: Path) -> None:
    split = leave_one_out(circle())
    model = fit(PLAIN | {"epochs": 30, "patience": 2, "learning_rate": 0.05}, tmp_path)
    told = [json.loads(line)["ndcg"] for line in (tmp_path / JOURNAL_FILE).read_text().splitlines()]
    assert len(told) < 30
    assert int(np.argmax(told)) == len(told) - 3
    assert evaluate(model, split.valid, ("NDCG@10",)).means["NDCG@10"] == max(told)


def test_a_training_that_diverges_names_the_learning_rate(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"diverged in epoch 1.*lower learning_rate"):
        fit(PLAIN | {"learning_rate": 1e30, "warmup": 0.0, "clip_norm": None}, tmp_path)


def weights(folder: Path) -> dict[str, np.ndarray]:
    found = weights_file(folder)
    assert found
    return load_file(found)


def start_two(root: Path, device: str) -> Path:
    """The folder in which two real processes left their models; see `training_runs.together`."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", training_runs.__file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([*launch, str(root), device], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left, started once for all workers of pytest-xdist, which share the folder above their own."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return start_two(tmp_path_factory.mktemp("torchrun"), "cpu")
    root = tmp_path_factory.getbasetemp().parent / "torchrun"
    with root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            start_two(tmp_path_factory.mktemp("torchrun"), "cpu").rename(root)
    return root


def test_two_processes_compute_what_one_does(two_processes: Path) -> None:
    for name, settings in (("plain", PLAIN), ("single-rows", PLAIN | {"batch_size": 1, "epochs": 1})):
        one, shared = fit(settings, None)._state(), weights(two_processes / "0" / name)
        # A softmax does not see a bias of its keys: that gradient is rounding alone, and AdamW makes whole steps of it.
        for state in (one, shared):
            del state["blocks.0.qkv.bias"]
        assert max(np.abs(one[key] - shared[key]).max() for key in one) < 1e-5, name


@pytest.mark.parametrize(
    "name", ["plain", "single-rows", "straight", "resumed", *(f"{t}-{n}" for t in ("kmeans", "rqvae") for n in ("ids", "ids-again"))]
)
def test_all_processes_end_with_the_same_weights(two_processes: Path, name: str) -> None:
    first, second = (weights(two_processes / rank / name) for rank in "01")
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_a_resumed_training_of_two_processes_ends_as_a_straight_one(two_processes: Path) -> None:
    straight, resumed = (weights(two_processes / "1" / name) for name in ("straight", "resumed"))
    assert all(np.array_equal(straight[key], resumed[key]) for key in straight)
    alone = fit(RANDOM | {"patience": 2}, None)._state()
    assert any(not np.array_equal(straight[key], alone[key]) for key in straight), "each process draws its own negatives"
    one, other = ((two_processes / name / JOURNAL_FILE).read_text().splitlines() for name in ("straight", "resumed"))
    assert [json.loads(line)["loss"] for line in one] == pytest.approx([json.loads(line)["loss"] for line in other], abs=0)


def test_one_process_takes_up_what_two_began(two_processes: Path) -> None:
    finished = SASRec(SASRecConfig(**RANDOM | {"patience": 2}))
    split = leave_one_out(circle())
    finished.fit(split.train, options=FitOptions(split.valid, two_processes / "straight", "cpu"))
    assert all(np.array_equal(finished._state()[key], value) for key, value in weights(two_processes / "0" / "straight").items())


def test_a_process_without_the_others_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(DataError, match=r"WORLD_SIZE is 2 and .*MASTER_ADDR.*torchrun"):
        World.join("cpu")


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(DataError, match="'warp' is unknown"):
        pick_device("warp")
    if not torch.cuda.is_available():
        with pytest.raises(DataError, match="finds no GPU"):
            pick_device("cuda")


@pytest.mark.slow
def test_a_translated_model_learns_the_same() -> None:
    settings = PLAIN | {"epochs": 1}
    plain, translated = fit(settings, None)._state(), fit(settings | {"compile": True}, None)._state()
    # See above: the gradient of this bias is rounding.
    del plain["blocks.0.qkv.bias"]
    assert max(np.abs(plain[key] - translated[key]).max() for key in plain) < 1e-4


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UnavailableError, match=r"C\+\+ compiler \(g\+\+ or clang\+\+\).*leave compile off"):
        compiled(torch.nn.Linear(1, 1), torch.device("cpu"))


def test_sixteen_bits_learn_nearly_the_same(tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        model = fit(PLAIN | {"precision": precision}, tmp_path / precision)
        assert {array.dtype for array in model._state().values()} == {np.dtype(np.float32)}
    full, half = (json.loads((tmp_path / p / JOURNAL_FILE).read_text().splitlines()[-1])["loss"] for p in ("float32", "bfloat16"))
    assert full != half
    assert half == pytest.approx(full, rel=0.01)


@pytest.mark.gpu
def test_a_training_resumes_on_a_gpu(tmp_path: Path) -> None:
    straight = fit(PLAIN, tmp_path / "straight", device="cuda")._state()
    with pytest.raises(KeyboardInterrupt):
        fit(PLAIN | {"capture": False}, tmp_path, 9, "cuda", checkpoint_every=2)
    resumed = fit(PLAIN | {"capture": False}, tmp_path, device="cuda")._state()
    for state in (straight, resumed):
        del state["blocks.0.qkv.bias"]
    assert max(np.abs(straight[key] - resumed[key]).max() for key in straight) < 1e-3
    assert json.loads((tmp_path / JOURNAL_FILE).read_text().splitlines()[-1])["peak_memory"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_compute_what_one_does(tmp_path: Path) -> None:
    root = start_two(tmp_path, "cuda")
    one, shared = fit(PLAIN, None, device="cuda")._state(), weights(root / "0" / "plain")
    for state in (one, shared):
        del state["blocks.0.qkv.bias"]
    assert max(np.abs(one[key] - shared[key]).max() for key in one) < 1e-3
    for name in ("plain", "single-rows", "straight", "resumed"):
        first, second = (weights(root / rank / name) for rank in "01")
        assert all(np.array_equal(first[key], second[key]) for key in first)
