"""What an asset is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from recsys_core.assets.sources import Source


@dataclass(frozen=True)
class Asset:
    """A named folder of files.

    sources: tried in order; files: {path in the folder: SHA-256}, the same whichever source they came from. A digest of None belongs to
    a file of an archive that nobody here could read yet: the archive's own digest, or the one first seen, has to answer for it.
    """

    name: str
    description: str
    licence: str
    sources: tuple[Source, ...]
    files: Mapping[str, str | None]

    @property
    def identity(self) -> str:
        """SHA-256 over the expected files; a cached folder of another identity is replaced."""
        return hashlib.sha256(json.dumps(dict(self.files), sort_keys=True).encode()).hexdigest()
