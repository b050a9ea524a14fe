"""Between text and token ids for the embedded model. Text is always data: control tokens come from here, never from content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agents.chat.types import Message
from recsys_core.errors import DataError

DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What SmolLM2 was tuned with where a conversation has no system turn."""


class Text:
    """SmolLM2's tokenizer with its ChatML turns."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self.json = path.read_text()
        self._tokenizer = Tokenizer.from_str(self.json)
        # An item title that spells a control token is encoded as plain characters.
        self._tokenizer.encode_special_tokens = True
        self.document, self.turn, self.end = (self._control(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))

    def _control(self, token: str) -> int:
        found: int | None = self._tokenizer.token_to_id(token)
        if found is None:
            raise DataError(f"the tokenizer has no {token}; the embedded model needs one of SmolLM2's family")
        return found

    @property
    def stops(self) -> list[int]:
        """Tokens that end an answer."""
        return [self.end, self.document]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, control tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def conversation(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation that the assistant is to continue."""
        turns = list(messages)
        if not turns or turns[0].role != "system":
            turns.insert(0, Message("system", DEFAULT_SYSTEM))
        newline = self.encode("\n")
        ids: list[int] = []
        for message in turns:
            ids += [self.turn, *self.encode(f"{message.role}\n{message.content}"), self.end, *newline]
        return [*ids, self.turn, *self.encode("assistant\n")]

    def continuation(self, prompt: str, continuation: str) -> tuple[list[int], int]:
        """Ids of `prompt + continuation` behind a document start, and how many of them are the prompt's own.

        A tokenizer may merge the prompt's last characters with the continuation's first; the continuation then starts at the first token
        that differs, so that every text is scored in the tokens the model would read.
        """
        whole, alone = self.encode(prompt + continuation), self.encode(prompt)
        shared = common_prefix(whole, alone)
        return [self.document, *whole], 1 + shared


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)
