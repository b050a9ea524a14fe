"""A saved model is the old one or the new one, whenever its writer stops."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import recsys_core
from recsys_core.models.bpr import BPR
from recsys_core.recommender import MODEL_FILE, Recommender, weights_file
from tests.conftest import film_log
from tests.processes import Child

DIMS = (4, 8)


def trained(dim: int) -> Recommender:
    return recsys_core.create("bpr", dim=dim, epochs=1).fit(film_log(users=12, items=20, length=6))


def save_in_turn(folder: Path) -> None:
    models = [trained(dim) for dim in DIMS]
    while True:
        for model in models:
            model.save(folder)
            print("saved", flush=True)


def is_one_of(folder: Path, models: dict[int, Recommender]) -> None:
    """The folder holds one of the models, whole: configuration and weights are of one saving."""
    found = recsys_core.load(folder)
    expected = models[found.config.dim]  # type: ignore[attr-defined]
    for name, value in expected._state().items():
        assert np.array_equal(found._state()[name], value), name


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_writer_that_is_killed_leaves_one_whole_model(tmp_path: Path) -> None:
    models, folder, draw = {dim: trained(dim) for dim in DIMS}, tmp_path / "model", random.Random(0)
    for _ in range(8):
        child = Child(tmp_path, save_in_turn, folder)
        while child.alive and not child.printed():
            time.sleep(0.001)
        time.sleep(draw.random() * 0.02)
        child.send(signal.SIGKILL)
        assert child.end()[0] == -signal.SIGKILL
        is_one_of(folder, models)


class Stop(BaseException):
    """What no `except Exception` catches, as a kill."""


def test_at_every_rename_the_old_model_or_the_new_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, replace = {dim: trained(dim) for dim in DIMS}, Path.replace
    seen = []
    for stop_at in (0, 1):
        folder = tmp_path / str(stop_at)
        models[4].save(folder)
        countdown: Iterator[int] = iter(range(stop_at, -1, -1))

        def interrupted(self: Path, target: Path, countdown: Iterator[int] = countdown) -> Path:
            if next(countdown) == 0:
                raise Stop
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", interrupted)
            with pytest.raises(Stop):
                models[8].save(folder)
        is_one_of(folder, models)
        seen.append(BPR.load(folder).config.dim)
        # And the next saving works, and clears what it replaces.
        models[8].save(folder)
        assert BPR.load(folder).config.dim == 8
        assert {f.name for f in folder.iterdir()} == {MODEL_FILE, weights_file(folder).name}  # type: ignore[union-attr]
    assert seen == [4, 4]


def test_saving_again_keeps_the_weights_it_names(tmp_path: Path) -> None:
    model = trained(4)
    for _ in range(2):
        model.save(tmp_path)
    assert BPR.load(tmp_path).config.dim == 4
