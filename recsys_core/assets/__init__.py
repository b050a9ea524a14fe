"""Data sets and model weights by name: ordered sources, checksums, one cache folder."""

from recsys_core.assets.asset import Asset
from recsys_core.assets.cache import cache_folder
from recsys_core.assets.registry import assets, derived, fetch, first_seen, folder, is_present, verify, whereabouts
from recsys_core.assets.sources import Archive, Bundle, LocalFile, Shared, Source, Url, Wheel, extract, shared_data

__all__ = [
    "Archive",
    "Asset",
    "Bundle",
    "LocalFile",
    "Shared",
    "Source",
    "Url",
    "Wheel",
    "assets",
    "cache_folder",
    "derived",
    "extract",
    "fetch",
    "first_seen",
    "folder",
    "is_present",
    "shared_data",
    "verify",
    "whereabouts",
]
