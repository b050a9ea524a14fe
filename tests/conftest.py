"""Logs that every package's tests share."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial

if "PYTEST_XDIST_WORKER" in os.environ:
    # Read when PyTorch is loaded: workers share the cores, and threads of one would wait for those of the others.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from recsys_core.data import Dataset, Split, Vocabulary, leave_one_out

if not torch.cuda.is_available():
    # Read when a kernel is defined: without a GPU, Triton's interpreter runs it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

GENRES = ("Comedy", "Drama", "Horror", "Western")


def film_log(users: int = 60, items: int = 80, length: int = 16, seed: int = 0) -> Dataset:
    """A small log with a taste to find: user u mostly takes items of genre u % 4 and rates them higher than others.

    Popularity is skewed, sessions are bursts of a few items a minute apart, days between them.
    """
    rng = np.random.default_rng(seed)
    genre = np.arange(items) % len(GENRES)
    skew = 1 / (1 + np.arange(items) // len(GENRES))
    columns: list[tuple[int, int, int, float]] = []
    for user in range(users):
        weight = skew * np.where(genre == user % len(GENRES), 12.0, 1.0)
        taken = rng.permutation(rng.choice(items, length, replace=False, p=weight / weight.sum()))
        time = 1_000_000 + user
        for item in taken:
            time += 60 if rng.random() < 0.75 else 86_400
            liked = genre[item] == user % len(GENRES)
            columns.append((user, int(item), time, float(np.clip(round(rng.normal(4.3 if liked else 2.6, 0.7)), 1, 5))))
    user_, item_, time_, rating_ = (np.array(c) for c in zip(*columns, strict=True))
    return Dataset(
        "films",
        Vocabulary(f"u{n}" for n in range(users)),
        Vocabulary(f"i{n}" for n in range(items)),
        user_.astype(np.int64),
        item_.astype(np.int64),
        time_.astype(np.int64),
        rating_.astype(np.float32),
        tuple(f"Film {n} ({1950 + n % 70})" for n in range(items)),
        tuple((GENRES[g],) for g in genre),
    )


@pytest.fixture(scope="session")
def films() -> Dataset:
    """A log of 60 users and 80 items with a genre taste planted in it."""
    return film_log()


@pytest.fixture(scope="session")
def split(films: Dataset) -> Split:
    """Its leave-one-out division."""
    return leave_one_out(films)


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Presses Ctrl-C, from any thread; this process heeds it even as a background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield partial(signal.pthread_kill, threading.get_ident(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)
