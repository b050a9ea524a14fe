"""Fetching assets by name: cached, verified, usable offline once present."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from recsys_core.assets.cache import cache_folder, check, ensure, is_whole
from recsys_core.assets.catalog import ASSETS, Asset
from recsys_core.assets.sources import LocalFile, sha256
from recsys_core.errors import DataError, UnavailableError, unknown_name
from recsys_core.progress import Progress, silent

# Whatever a source, its archive or unpacking it can do wrong. Anything else, such as an interrupt raised by `progress`, passes through.
_SOURCE_ERRORS = (OSError, HTTPException, DataError, zipfile.BadZipFile, KeyError, ValueError, IndexError)


def assets() -> dict[str, Asset]:
    """Every known asset by name."""
    return dict(ASSETS)


def folder(asset: str | Asset) -> Path:
    """Where an asset is kept, present or not."""
    return cache_folder() / "assets" / _resolve(asset).name


def is_present(asset: str | Asset) -> bool:
    """Whether an asset can be used without any network; sizes are checked, contents are not."""
    return is_whole(folder(asset), _resolve(asset).identity)


def fetch(asset: str | Asset, progress: Progress | None = None) -> Path:
    """The asset's folder, downloaded on first use.

    A present asset makes no network attempt. Otherwise the folder named by WORKBENCH_ASSETS is searched for an archive, then the
    sources are tried in order. Raises UnknownNameError for an unknown name, and UnavailableError, which lists each attempt and its
    failure, when none works.
    """
    known, report = _resolve(asset), progress or silent
    return ensure(folder(known), known.identity, lambda out: _obtain(known, out, report), report)


def verify(asset: str | Asset) -> Path:
    """The folder of a present asset after reading all of it against its SHA-256s; DataError names what changed."""
    known = _resolve(asset)
    if not is_present(known):
        raise UnavailableError(f"asset {known.name!r} is not in {folder(known)} or is incomplete; fetch it first")
    check(folder(known))
    return folder(known)


def derived(asset: str | Asset, version: str, build: Callable[[Path, Path], None], progress: Progress | None = None) -> Path:
    """A folder made once from an asset (a conversion, an index), cached like the asset itself.

    `build(source, out)` fills the empty folder `out` from the asset's folder. `version` names the result and must change with `build`.
    What is present needs neither the asset nor the network.
    """
    known, report = _resolve(asset), progress or silent
    out = cache_folder() / "derived" / known.name / version
    return ensure(out, f"{known.identity}/{version}", lambda partial: build(fetch(known, report), partial), report)


def _resolve(asset: str | Asset) -> Asset:
    if isinstance(asset, Asset):
        return asset
    if asset not in ASSETS:
        raise unknown_name("asset", asset, ASSETS)
    return ASSETS[asset]


def _obtain(asset: Asset, out: Path, progress: Progress) -> None:
    """Fills `out` from the first place that works."""
    local = os.environ.get("WORKBENCH_ASSETS")
    nearby = [LocalFile(s.file, s.sha256, s.build, Path(local)) for s in asset.sources] if local else []
    scratch, failures = out / ".download", []
    for source in (*nearby, *asset.sources):
        try:
            scratch.mkdir()
            archive = source.verified(source.download(scratch, progress))
            progress(1.0, f"unpacking {archive.name}")
            source.build(archive, out)
            _expect(asset, out)
            shutil.rmtree(scratch)
            return
        except _SOURCE_ERRORS as error:
            failures.append(f"{source}: {' '.join(str(error).split()) or type(error).__name__}")
        for left in out.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    names = " or ".join(dict.fromkeys(s.file for s in asset.sources))
    raise UnavailableError(
        f"asset {asset.name!r} cannot be had: {'; '.join(failures)}; "
        f"connect to the network, or put {names} into a folder and set WORKBENCH_ASSETS to it"
    )


def _expect(asset: Asset, out: Path) -> None:
    for name, digest in asset.files.items():
        if (found := sha256(out / name)) != digest:
            raise DataError(f"{name} inside has SHA-256 {found[:12]}.., expected {digest[:12]}..")
