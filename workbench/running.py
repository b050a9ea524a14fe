"""A stored run's life: however it ends, the store says so and the error says how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from recsys_core.errors import RunStoppedError, WorkbenchError
from workbench.store import Status, Store


@contextmanager
def marked(store: Store, run: str, resume: str) -> Iterator[None]:
    """Records how a run ended, whatever ended it. resume: the command that goes on with it, without the run's id."""
    try:
        yield
    except KeyboardInterrupt:
        _record(store, run, "stopped", "interrupted")
        raise RunStoppedError(f"run {run} interrupted; all that was finished is stored, go on with: {resume} {run}") from None
    except WorkbenchError as error:
        _record(store, run, "stopped" if isinstance(error, RunStoppedError) else "failed", str(error))
        hint = "" if "--resume" in str(error) else f" (run {run} keeps what it has; go on with: {resume} {run})"
        raise type(error)(f"{error}{hint}") from error
    except BaseException as error:
        _record(store, run, "failed", f"{type(error).__name__}: {error}")
        raise
    store.record_status(run, "finished")


def _record(store: Store, run: str, status: Status, message: str) -> None:
    """Best effort: where the store itself is the trouble, the first error matters, not this one."""
    with suppress(WorkbenchError):
        store.record_status(run, status, message)
