"""What tokens cost. No price list is built in: prices change, and a wrong one is worse than none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from agents.chat.types import Response
from recsys_core.errors import DataError

VARIABLE = "WORKBENCH_LLM_PRICE"


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens in and out."""

    prompt: float
    completion: float

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Price | None:
        """Reads WORKBENCH_LLM_PRICE, such as `0.15,0.60`; None where it is not set."""
        text = (os.environ if environment is None else environment).get(VARIABLE, "")
        if not text:
            return None
        try:
            prompt, completion = (float(part) for part in text.split(","))
        except ValueError:
            prompt = completion = -1.0
        if not (prompt >= 0 and completion >= 0):
            raise DataError(f"{VARIABLE} is {text!r}; give two numbers, US dollars per million tokens in and out, such as 0.15,0.60")
        return cls(prompt, completion)

    def of(self, response: Response) -> float:
        """US dollars of one answer."""
        return (response.prompt_tokens * self.prompt + response.completion_tokens * self.completion) / 1e6
