"""Errors a person can act on: each names the value, the bound and the fix in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class WorkbenchError(Exception):
    """Base of every error this project raises on purpose; the command line prints it as one line.

    `exit_code` is what the process ends with: 2 for bad input, 3 for a missing outside part (asset, endpoint,
    key, extra), 4 for a run that was stopped and can be resumed.
    """

    exit_code = 2


class DataError(WorkbenchError):
    """Input data breaks a rule; the message names file, line and value."""


class AlreadyStoredError(DataError):
    """What a run stores once is there; where the writer had looked, another process does the same run."""


class HeldError(AlreadyStoredError):
    """Another process works on the run."""


class UnknownNameError(WorkbenchError):
    """A name is not in a registry; the message lists the nearest and all known names."""


class UnavailableError(WorkbenchError):
    """Something outside the process is missing: an asset, an endpoint, a key, an optional package."""

    exit_code = 3


class RunStoppedError(WorkbenchError):
    """A run ended early with everything so far stored; the message says how to resume it."""

    exit_code = 4


def refuse_text(what: str, given: object) -> None:
    """Raises DataError for one text where several are expected: each of its letters would be taken for one."""
    if isinstance(given, str):
        raise DataError(f"{what} are a list, not the text {given!r}; write [{given!r}]")


def damaged(folder: Path, what: str, error: Exception) -> DataError:
    """The error for a folder whose files are missing, cut short, or not of one saving."""
    reason = " ".join(str(error).split())
    return DataError(f"{folder} holds no whole {what} ({type(error).__name__}: {reason:.160}); save it again")


def missing_extra(package: str, extra: str, purpose: str) -> UnavailableError:
    """The error for an optional dependency that is not installed."""
    return UnavailableError(f"{purpose} needs the package {package!r}; install it with: pip install '.[{extra}]'")


def unknown_name(what: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that no registry holds: the nearest known name first, then all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UnknownNameError(f"unknown {what} {name!r}; {hint}known: {', '.join(names)}")
