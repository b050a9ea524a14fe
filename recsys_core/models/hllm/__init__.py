"""HLLM: one language model reads items' texts, another reads the sequence of what the first made of them."""

from recsys_core.models.hllm.config import HLLMConfig
from recsys_core.models.hllm.model import HLLM

__all__ = ["HLLM", "HLLMConfig"]
