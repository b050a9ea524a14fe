"""A training that was interrupted anywhere ends as one that was not, and what is stored survives every fault."""

from __future__ import annotations

import importlib.util
import json
import random
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from training_runs import PLAIN, RANDOM, SMALL, circle, fit, fit_and_save

from recsys_core.data import leave_one_out
from recsys_core.errors import DataError, RunStoppedError
from recsys_core.models.sasrec import SASRec, SASRecConfig
from recsys_core.recommender import FitOptions, weights_file
from recsys_core.training import EpochReport
from recsys_core.training.checkpoint import CHECKPOINT_FILE, Checkpoint, Position
from recsys_core.training.journal import JOURNAL_FILE
from tests.processes import Child

EARLY = RANDOM | {"patience": 2, "epochs": 4}
STEPS = 6
"""Steps an epoch of the circle."""


def same(one: SASRec, other: SASRec) -> bool:
    """Whether two models have equal weights, bit by bit."""
    mine, theirs = one._state(), other._state()
    return mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / JOURNAL_FILE).read_text().splitlines()]


@pytest.fixture(scope="module")
def straight() -> SASRec:
    """A training with dropout, drawn negatives and early stopping that nothing disturbed."""
    return fit(EARLY, None)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=3), st.integers(1, 8))
def test_interruptions_change_nothing(tmp_path_factory: pytest.TempPathFactory, straight: SASRec, stops: list[int], every: int) -> None:
    folder = tmp_path_factory.mktemp("training")
    for steps in stops:
        try:
            fit(EARLY, folder, steps, checkpoint_every=every)
        except KeyboardInterrupt:
            assert not list(folder.glob("*.partial"))
    resumed = fit(EARLY, folder, checkpoint_every=every)
    assert same(resumed, straight)
    assert [line["epoch"] for line in lines(folder)] == list(range(1, len(lines(folder)) + 1))
    assert lines(folder)[-1]["step"] == STEPS * len(lines(folder))


def test_a_run_killed_at_random_moments_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    long = RANDOM | {"epochs": 6}
    undisturbed = Child(tmp_path, fit_and_save, long, tmp_path / "once", tmp_path / "straight")
    folder, out = tmp_path / "folder", tmp_path / "killed"
    checkpoint, kills, draw = folder / CHECKPOINT_FILE, 0, random.Random(0)
    while not out.exists():
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        child = Child(tmp_path, fit_and_save, long, folder, out)
        if kills < 4:
            while child.alive and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns != before):
                time.sleep(0.001)
            time.sleep(draw.random() * 0.02)
            child.send(signal.SIGKILL)
        code, _, err = child.end()
        assert code in (0, -signal.SIGKILL), err
        kills += code == -signal.SIGKILL
    undisturbed.end()
    assert kills >= 3
    # Weights bear their content's name.
    assert weights_file(out).name == weights_file(tmp_path / "straight").name  # type: ignore[union-attr]
    told, expected = ([(e["epoch"], e["loss"], e["ndcg"]) for e in lines(tmp_path / name)] for name in ("folder", "once"))
    assert told == expected
    assert len(told) == 6


def test_a_finished_training_returns_at_once(tmp_path: Path) -> None:
    first = fit(EARLY, tmp_path)
    written = (tmp_path / JOURNAL_FILE).read_bytes()
    again = fit(EARLY, str(tmp_path), 0)
    assert same(first, again)
    assert not again.network.training
    assert (tmp_path / JOURNAL_FILE).read_bytes() == written
    assert not any(name.startswith(("optimizer.", "best.")) for name in load_file(tmp_path / CHECKPOINT_FILE))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"learning_rate": 0.5}, r"learning_rate 0\.001, here 0\.5"), ({"seed": 1}, "seed 0, here 1"), ({"blocks": 2}, "blocks 1, here 2")],
)
def test_the_checkpoint_of_another_configuration_is_refused(tmp_path: Path, change: dict, named: str) -> None:
    fit(SMALL, tmp_path)
    with pytest.raises(DataError, match=named) as error:
        fit(SMALL | change, tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "another folder" in str(error.value)


def test_the_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    fit(SMALL, tmp_path)
    split = leave_one_out(circle(users=61))
    with pytest.raises(DataError, match="dataset"):
        SASRec(SASRecConfig(**SMALL)).fit(split.train, options=FitOptions(split.valid, tmp_path, "cpu"))
    with pytest.raises(DataError, match="validation"):
        SASRec(SASRecConfig(**SMALL)).fit(leave_one_out(circle()).train, options=FitOptions(None, tmp_path, "cpu"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint file."""
    folder = tmp_path_factory.mktemp("stored")
    Checkpoint(folder, {"model": "x"}).write(Position(step=3, reports=[EpochReport(1, 3, 0.1, 0.2, 1.0, 5.0)]), {"a": torch.arange(40.0)})
    return (folder / CHECKPOINT_FILE).read_bytes()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_file_is_an_error_that_names_it(tmp_path_factory: pytest.TempPathFactory, stored: bytes, data: st.DataObject) -> None:
    damaged = bytearray(stored)
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(stored) - 1)) :]
    else:
        damaged[data.draw(st.integers(0, len(stored) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / CHECKPOINT_FILE).write_bytes(damaged)
    with pytest.raises(DataError, match=r"no whole checkpoint.*delete it"):
        Checkpoint(folder, {"model": "x"}).read()


def test_a_file_comes_back_as_it_was_written(tmp_path: Path, stored: bytes) -> None:
    (tmp_path / CHECKPOINT_FILE).write_bytes(stored)
    found = Checkpoint(tmp_path, {"model": "x"}).read()
    assert found is not None
    assert found[0] == Position(step=3, reports=[EpochReport(1, 3, 0.1, 0.2, 1.0, 5.0)])
    assert torch.equal(found[1]["a"], torch.arange(40.0))


def test_another_programs_file_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(DataError, match="no whole checkpoint"):
        fit(SMALL, tmp_path)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to make any file of this process longer, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_loses_nothing_already_stored(tmp_path: Path, straight: SASRec) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(EARLY, tmp_path, STEPS + 2)
    kept = (tmp_path / CHECKPOINT_FILE).read_bytes()
    with files_of_at_most(len(kept) // 2), pytest.raises(RunStoppedError, match=r"step 12 could not be stored.*before it is kept"):
        fit(EARLY, tmp_path)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == kept
    assert not list(tmp_path.glob("*.partial"))
    assert same(fit(EARLY, tmp_path), straight)


def test_a_full_disk_stops_the_journal_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The thread that writes event files would say so too, in many lines.
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with files_of_at_most(100), pytest.raises(RunStoppedError, match=r"journal .* cannot be written"):
        fit(PLAIN, tmp_path)


def test_checkpoints_have_a_distance() -> None:
    with pytest.raises(DataError, match="checkpoint_every is 0"):
        fit(SMALL, None, checkpoint_every=0)
