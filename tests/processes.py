"""Processes to kill and to run side by side, each a copy of one that has imported what is heavy: they start at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

_HEAVY = ["langchain_openai", "pytest", "recsys_core.models.sasrec", "torch._dynamo", "torch.utils.tensorboard", "workbench.cli.main"]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(_HEAVY)


SHORT_LEASE = 3.0
"""Seconds without a sign of life after which tests take a process for dead."""


class Child:
    """A function of a module in a process of its own, which heeds Ctrl-C; what it prints is kept in files of `folder`."""

    def __init__(self, folder: Path, target: Callable[..., object], *arguments: object) -> None:
        number = len(list(folder.glob("*.out")))
        self._out, self._err = (folder / f"{number}.{stream}" for stream in ("out", "err"))
        self._out.touch()
        self._process = _CONTEXT.Process(target=_run, args=(dict(os.environ), self._out, self._err, target, *arguments))
        self._process.start()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def printed(self) -> str:
        """Its stdout until now."""
        return self._out.read_text()

    def send(self, how: signal.Signals) -> None:
        """Signals it; one that has ended feels nothing."""
        assert self._process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, how)

    def end(self, seconds: float = 120) -> tuple[int, str, str]:
        """Waits for its end: exit code, the negative signal where it was killed, stdout and stderr."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"still running after {seconds} s"
        return self._process.exitcode, self._out.read_text(), self._err.read_text()


def command_line(*arguments: str) -> None:
    """`workbench ARGUMENTS`, for a child, which is forgotten soon after it was killed."""
    from workbench.cli.main import run
    from workbench.store import lease

    lease.BEAT_SECONDS, lease.LEASE_SECONDS = 0.3, SHORT_LEASE
    sys.argv = ["workbench", *arguments]
    run()


def _run(environment: dict[str, str], out: Path, err: Path, target: Callable[..., object], *arguments: object) -> None:
    os.environ.clear()
    os.environ.update(environment)
    # As in a process that the shell starts, also where this one is a background job and ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        with path.open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    # One for each core would wait for those of other tests.
    torch.set_num_threads(1)
    target(*arguments)
