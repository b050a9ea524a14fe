"""Running the command line in tests."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from recsys_core.data import Dataset
from tests.processes import SHORT_LEASE
from workbench.cli.main import run
from workbench.store import lease

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs one command line in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "store.sqlite"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(lease, "LEASE_SECONDS", SHORT_LEASE)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["workbench", *arguments])
        code = 0
        try:
            run()
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture(scope="module")
def log_file(films: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared test log as a CSV file."""
    path = tmp_path_factory.mktemp("data") / "films.csv"
    write_csv(path, films)
    return path


def write_csv(path: Path, films: Dataset) -> None:
    assert films.rating is not None
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["user", "item", "rating", "timestamp"])
        for u, i, r, t in zip(films.user, films.item, films.rating, films.timestamp, strict=True):
            writer.writerow([films.users.ids[u], films.items.ids[i], r, t])


def started(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """A command in a process of its own, stderr kept. Ctrl-C reaches it even where this one ignores it, as background jobs do."""

    def heed() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heed)


@contextmanager
def as_nobody() -> Iterator[Path]:
    """A folder of one's own outside pytest's, and the rights of a common user: the superuser may write anywhere."""
    folder, user = Path(tempfile.mkdtemp()), os.geteuid()
    try:
        if user == 0:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        yield folder
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def one_line_error(err: str) -> str:
    """The error, having made sure that it is one line and no traceback."""
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    return line
