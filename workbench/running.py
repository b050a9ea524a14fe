"""A stored run's life: however it ends, the store says so and the error says how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recsys_core.errors import AlreadyStoredError, RunStoppedError, WorkbenchError
from workbench.store import RunSummary, Status, Store, StoreReader, usual_store


@contextmanager
def ended(store: Store, run: str) -> Iterator[None]:
    """Works on a run, alone, and records how it ended, whatever ended it. Raises HeldError where another process works on it."""
    with store.working_on(run):
        with _recorded(store, run):
            yield
        store.record_status(run, "finished")


@contextmanager
def _recorded(store: Store, run: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _record(store, run, "stopped", "interrupted")
        raise
    except AlreadyStoredError as error:
        # How the run ends is for the other process to say.
        raise AlreadyStoredError(
            f"another process works on run {run}, too, or has just finished it, so this one ends ({error}); "
            f"nothing is lost, see how it stands with: workbench runs {run}"
        ) from error
    except WorkbenchError as error:
        _record(store, run, "stopped" if isinstance(error, RunStoppedError) else "failed", str(error))
        raise
    except BaseException as error:
        _record(store, run, "failed", f"{type(error).__name__}: {error}")
        raise


@contextmanager
def marked(store: Store, run: str, resume: str) -> Iterator[None]:
    """`ended` for a run that can go on. resume: the command that does, without the run's id."""
    again = f"{resume} {run}{_elsewhere(store)}"
    try:
        with ended(store, run):
            yield
    except KeyboardInterrupt:
        raise RunStoppedError(f"run {run} interrupted; all that was finished is stored, go on with: {again}") from None
    except AlreadyStoredError:
        raise
    except WorkbenchError as error:
        hint = "" if "--resume" in str(error) else f" (run {run} keeps what it has; go on with: {again})"
        raise type(error)(f"{error}{hint}") from error


def how_to_go_on(store: StoreReader, run: RunSummary) -> str:
    """What takes a run up that did not finish, in words; empty for one that did, or is at work."""
    if run.status not in ("interrupted", "stopped", "failed"):
        return ""
    if run.kind in ("simulate", "optimize"):
        return f"workbench {run.kind} --resume {run.id}{_elsewhere(store)}"
    return "give its command again"


def _elsewhere(store: StoreReader) -> str:
    """The option that names the store, where a command would take another one without it."""
    usual = usual_store()
    return "" if "://" in usual or str(Path(usual).absolute()) == store.where else f" --store {store.where}"


def _record(store: Store, run: str, status: Status, message: str) -> None:
    """Best effort: where the store itself is the trouble, the first error matters, not this one."""
    with suppress(WorkbenchError):
        store.record_status(run, status, message)
