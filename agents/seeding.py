"""Random numbers that depend on what they are for, never on the order in which they are drawn."""

from __future__ import annotations

import hashlib

import numpy as np


def stream(*key: int | str) -> np.random.Generator:
    """An independent generator for a key such as (seed, "watch", user, page); equal keys give equal streams on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
