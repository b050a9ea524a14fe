"""Semantic IDs: items as short sequences of codes, near items with like codes (Rajput et al. 2023, arXiv 2305.05065, section 3.1)."""

from recsys_core.semantic.ids import SemanticIds
from recsys_core.semantic.tokenizer import TokenizerConfig, tokenize
from recsys_core.semantic.trie import Trie
from recsys_core.semantic.vectors import item_vectors

__all__ = ["SemanticIds", "TokenizerConfig", "Trie", "item_vectors", "tokenize"]
