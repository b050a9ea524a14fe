"""TIGER: the next item's semantic id, generated code by code (Rajput et al. 2023, arXiv 2305.05065)."""

from recsys_core.models.tiger.config import TIGERConfig
from recsys_core.models.tiger.model import TIGER

__all__ = ["TIGER", "TIGERConfig"]
