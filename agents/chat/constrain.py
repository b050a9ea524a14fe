"""Holding generated text to a JSON schema, token by token, with llguidance."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.chat.text import Text
from recsys_core.errors import DataError, missing_extra

_COMPACT: Any = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
"""No white space between JSON tokens: each one would cost a decode step and lets a small model wander."""
_KEPT = 256


class Guide:
    """The state of one constrained answer."""

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher

    def accept(self, token: int) -> list[int]:
        """Takes the chosen token; returns the tokens the schema then forces, already taken."""
        if not self.matcher.consume_token(token):
            raise DataError(f"constrained decoding broke: {self.matcher.get_error()}")
        return self.forced()

    def forced(self) -> list[int]:
        """Tokens that must come next whatever the model thinks; taken before they are returned."""
        tokens: list[int] = [] if self.finished else self.matcher.compute_ff_tokens()
        if tokens and not self.matcher.consume_tokens(tokens):
            raise DataError(f"constrained decoding broke: {self.matcher.get_error()}")
        return tokens

    @property
    def finished(self) -> bool:
        """Whether nothing more may follow."""
        return bool(self.matcher.is_stopped())


class Guides:
    """Makes guides; compiled schemas are kept, since agents ask with few of them."""

    def __init__(self, text: Text, vocabulary: int) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise missing_extra("llguidance", "llm", "the embedded model") from error
        self._llguidance, self._vocabulary = llguidance, vocabulary
        self._tokenizer = llguidance.LLTokenizer(text.json, n_vocab=vocabulary, eos_token=text.stops)
        self._executor = llguidance.LLExecutor()
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def start(self, schema: dict[str, Any]) -> Guide:
        """A guide at its beginning; raises DataError for a schema that llguidance cannot hold."""
        body = json.dumps(schema)
        if body not in self._compiled:
            matcher = self._llguidance.LLMatcher
            compiled = matcher(self._tokenizer, matcher.grammar_from_json_schema(body, defaults=_COMPACT), log_level=0)
            if compiled.is_error():
                raise DataError(f"JSON schema cannot be enforced: {' '.join(compiled.get_error().split())[:300]}")
            self._compiled[body] = compiled
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(body)
        return Guide(self._compiled[body].deep_copy())

    def restrict(self, logits: Tensor, guides: Sequence[Guide | None]) -> None:
        """Sets logits [B, V] of tokens a row's guide forbids to -inf, in place; rows without a guide stay."""
        held = [(guide.matcher, row) for row, guide in enumerate(guides) if guide]
        if not held:
            return
        bits = np.full((len(guides), (self._vocabulary + 31) // 32), -1, np.int32)
        self._executor.unsafe_compute_mask_ptr(held, bits.ctypes.data, bits.shape[1] * 4, len(guides))
        allowed = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little", count=self._vocabulary)
        logits.masked_fill_(torch.from_numpy(allowed) == 0, -torch.inf)
