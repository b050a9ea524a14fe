"""Data sets and model weights by name: ordered sources, checksums, one cache folder."""

from recsys_core.assets.cache import cache_folder
from recsys_core.assets.catalog import Asset
from recsys_core.assets.registry import assets, derived, fetch, folder, is_present, verify
from recsys_core.assets.sources import LocalFile, Source, Url, Wheel, extract

__all__ = [
    "Asset",
    "LocalFile",
    "Source",
    "Url",
    "Wheel",
    "assets",
    "cache_folder",
    "derived",
    "extract",
    "fetch",
    "folder",
    "is_present",
    "verify",
]
