"""Fetching assets by name: cached, verified, usable offline once present."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from recsys_core.assets.asset import Asset
from recsys_core.assets.cache import archives, cache_folder, check, ensure, is_whole
from recsys_core.assets.catalog import ASSETS
from recsys_core.assets.sources import Source
from recsys_core.errors import DataError, UnavailableError, unknown_name
from recsys_core.files import sha256
from recsys_core.progress import Progress, silent

# Whatever a source, its archive or unpacking it can do wrong. Anything else, such as an interrupt raised by `progress`, passes through.
_SOURCE_ERRORS = (OSError, HTTPException, DataError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, ValueError, IndexError)


def assets() -> dict[str, Asset]:
    """Every known asset by name."""
    return dict(ASSETS)


def folder(asset: str | Asset) -> Path:
    """Where an asset is kept, present or not."""
    return cache_folder() / "assets" / _resolve(asset).name


def is_present(asset: str | Asset) -> bool:
    """Whether an asset can be used without any network; sizes are checked, contents are not."""
    return is_whole(folder(asset), _resolve(asset).identity)


def whereabouts(asset: str | Asset) -> str:
    """Where an asset would come from now: `cached`, `at hand` (a local file, not unpacked yet), `download`, or `missing`."""
    known = _resolve(asset)
    if is_present(known):
        return "cached"
    if any(source.at_hand for source in (*_nearby(known), *known.sources)):
        return "at hand"
    return "download" if any(source.remote for source in known.sources) else "missing"


def first_seen(asset: str | Asset) -> dict[str, str]:
    """SHA-256s of a present asset's archives that have no published one, by file name: what they were when they were first read here."""
    known = _resolve(asset)
    unpinned = {name for source in known.sources for name in source.unpinned}
    return {name: digest for name, digest in archives(folder(known)).items() if name in unpinned}


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

    def convert(partial: Path) -> dict[str, str]:
        build(fetch(known, report), partial)
        return {}

    return ensure(out, f"{known.identity}/{version}", convert, report)


def _resolve(asset: str | Asset) -> Asset:
    if isinstance(asset, Asset):
        return asset
    if asset not in ASSETS:
        raise unknown_name("asset", asset, ASSETS)
    return ASSETS[asset]


def _nearby(asset: Asset) -> list[Source]:
    local = os.environ.get("WORKBENCH_ASSETS")
    return [source.inside(Path(local).expanduser()) for source in asset.sources] if local else []


def _obtain(asset: Asset, out: Path, progress: Progress) -> dict[str, str]:
    """Fills `out` from the first place that works; returns the SHA-256s of its archives."""
    scratch, failures = out / ".download", []
    for source in dict.fromkeys((*_nearby(asset), *asset.sources)):
        try:
            scratch.mkdir()
            archive, digests = source.obtain(scratch, progress)
            progress(1.0, f"unpacking {source.file}")
            source.build(archive, out)
            _expect(asset, out)
            shutil.rmtree(scratch)
            return digests
        except _SOURCE_ERRORS as error:
            failures.append(f"{source}: {' '.join(str(error).split()) or type(error).__name__}")
        for left in out.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    names = " or ".join(dict.fromkeys(s.file for s in asset.sources))
    connect = "connect to the network, or " if any(source.remote for source in asset.sources) else ""
    raise UnavailableError(
        f"asset {asset.name!r} cannot be had: {'; '.join(failures)}; {connect}put {names} into a folder and set WORKBENCH_ASSETS to it"
    )


def _expect(asset: Asset, out: Path) -> None:
    for name, digest in asset.files.items():
        if (found := sha256(out / name)) != digest and digest is not None:
            raise DataError(f"{name} inside has SHA-256 {found[:12]}.., expected {digest[:12]}..")
