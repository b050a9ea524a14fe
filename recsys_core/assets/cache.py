"""Folders that are either whole or absent, shared by concurrent processes.

A folder is built under another name beside its final one, gets a manifest (sizes and SHA-256s) as its last file, is flushed to disk and
renamed. A process that dies in between leaves only the other name, which the next builder clears. One lock file a folder, held by
`flock`, lets one process build while the others wait; the kernel drops the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from recsys_core.errors import DataError, UnavailableError
from recsys_core.files import flush, sha256
from recsys_core.progress import Progress

MANIFEST = "manifest.json"


def cache_folder() -> Path:
    """Where assets are kept: the environment's WORKBENCH_CACHE, or ~/.cache/recsys-workbench."""
    return Path(os.environ.get("WORKBENCH_CACHE") or Path.home() / ".cache" / "recsys-workbench").expanduser()


def is_whole(folder: Path, identity: str) -> bool:
    """Whether a folder was finished for this identity and every file still has its size. Reads no file but the manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
        return bool(manifest["identity"] == identity) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def check(folder: Path) -> None:
    """Reads every file of a finished folder; raises DataError that names those which changed."""
    manifest = json.loads((folder / MANIFEST).read_text())
    changed = [
        name
        for name, entry in manifest["files"].items()
        if not (folder / name).is_file() or sha256(folder / name) != entry["sha256"]
    ]  # fmt: skip
    if changed:
        raise DataError(f"{folder} is damaged: {', '.join(changed)} changed since the download; delete the folder and fetch it again")


def archives(folder: Path) -> dict[str, str]:
    """The SHA-256 of each archive that a finished folder was made from, by file name, as seen then; empty for what has none."""
    found: dict[str, str] = json.loads((folder / MANIFEST).read_text()).get("archives", {})
    return found


def ensure(folder: Path, identity: str, build: Callable[[Path], Mapping[str, str]], progress: Progress) -> Path:
    """The finished folder, built if it is absent or damaged; `build` fills an empty one and returns the SHA-256s of what it read.

    Its errors leave nothing behind.
    """
    if is_whole(folder, identity):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock"), progress):
            if not is_whole(folder, identity):
                _build(folder, identity, build)
    except OSError as error:
        raise UnavailableError(f"cannot build {folder}: {error}; free some space or set WORKBENCH_CACHE to a writable folder") from error
    return folder


def _build(folder: Path, identity: str, build: Callable[[Path], Mapping[str, str]]) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        read = dict(build(partial))
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        entries = {str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}
        (partial / MANIFEST).write_text(json.dumps({"identity": identity, "files": entries, "archives": read}, indent=1))
        for path in (*files, partial / MANIFEST, *(p for p in partial.rglob("*") if p.is_dir()), partial):
            flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress(0.0, "waiting for another process that fetches the same")
                time.sleep(0.1)
        yield
