"""Serving: recommendations by external ids, rules, new items, an item index and export to ONNX."""

from recsys_core.serving.catalogue import Catalogue, NewItem
from recsys_core.serving.index import ItemIndex
from recsys_core.serving.onnx import export_onnx
from recsys_core.serving.rules import AtMost, Between, Has, Only, Rule, Titled, parse_rule
from recsys_core.serving.service import Answer, Item, Service
from recsys_core.serving.text import TextMap, sentence_encoder

__all__ = [
    "Answer", "AtMost", "Between", "Catalogue", "Has", "Item", "ItemIndex", "NewItem", "Only", "Rule", "Service", "TextMap", "Titled",
    "export_onnx", "parse_rule", "sentence_encoder",
]  # fmt: skip
