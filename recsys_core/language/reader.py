"""Vectors of texts: a decoder reads a prompt, a text and a closing token that stands for the whole (HLLM, arXiv 2409.12740)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recsys_core.data.jagged import Jagged
from recsys_core.extras import optional


class TextTokens:
    """A tokenizer (the text of a `tokenizer.json`) behind a bound on tokens. Text is data: what spells a control token stays characters."""

    def __init__(self, tokenizer: str, most: int) -> None:
        tokenizers = optional("tokenizers", "llm", "reading item texts")
        self.json, self.most = tokenizer, most
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True

    def __call__(self, texts: Sequence[str]) -> Jagged:
        """At most `most` token ids [T] int64 of each text, from its beginning; a blank in front makes its first word like any other."""
        found = self._tokenizer.encode_batch([f" {text}" for text in texts], add_special_tokens=False)
        return Jagged.from_rows([encoding.ids[: self.most] for encoding in found])

    def prompt(self, text: str) -> list[int]:
        """All token ids of a prompt."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


class TextReader(nn.Module):
    """A decoder that gives each text one vector.

    With `closing` it is the state of a learned token behind the text; without, for a decoder that nobody trains for it, the mean state of
    the text's tokens. piece: how many tokens, padding among them, are read at once; recompute: whether the backward pass computes a
    piece's activations again, so that those of one piece alone are held.
    """

    def __init__(self, decoder: nn.Module, prompt: Sequence[int], closing: bool, piece: int = 16384, recompute: bool = False) -> None:
        super().__init__()
        self.decoder, self.piece, self.recompute = decoder, piece, recompute
        self.register_buffer("prompt", torch.tensor(list(prompt), dtype=torch.int64))
        weight: Tensor = decoder.get_input_embeddings().weight  # type: ignore[operator]
        self.size = weight.shape[1]
        # As long as the vectors of words are.
        self.closing = nn.Parameter(torch.randn(self.size) * weight.detach().std().to(weight.device)) if closing else None

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """Vectors [N, size] of N texts: tokens [T] int64, offsets [N + 1] int64, row n being tokens[offsets[n]:offsets[n + 1]]."""
        return self.rows(tokens, offsets, torch.arange(len(offsets) - 1, device=tokens.device))

    def rows(self, tokens: Tensor, offsets: Tensor, rows: Tensor) -> Tensor:
        """Vectors [R, size] of some rows [R] int64 of such texts."""
        starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
        if not len(rows):
            return self.get_buffer("prompt").new_zeros((0, self.size), dtype=torch.float32)
        # Texts of like length share a piece, so little of it is padding.
        order = lengths.argsort(stable=True)
        found = []
        for first, last, longest in pieces(lengths[order].cpu().numpy(), self.piece, len(self.get_buffer("prompt")) + 1):
            here = order[first:last]
            # At least one place, which no text has to fill: a decoder reads no empty sequence.
            places = starts[here][:, None] + torch.arange(max(longest, 1), device=rows.device)
            words = tokens[places.clamp(max=max(len(tokens) - 1, 0))] if len(tokens) else places.new_zeros(places.shape)
            if self.recompute and torch.is_grad_enabled():
                found.append(checkpoint(self._read, words, lengths[here], use_reentrant=False))
            else:
                found.append(self._read(words, lengths[here]))
        return torch.cat(found)[order.argsort()]

    def _read(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Vectors [N, size] of padded texts [N, L]; attention is causal, so what stands behind a text's end changes nothing."""
        prompt = self.get_buffer("prompt")
        ids = torch.cat([prompt.expand(len(words), -1), words], 1)
        places, ends = torch.arange(ids.shape[1] + 1, device=ids.device), lengths + len(prompt)
        vectors: Tensor = self.decoder.get_input_embeddings()(ids)  # type: ignore[operator]
        if self.closing is None:
            states: Tensor = self.decoder(inputs_embeds=vectors, use_cache=False).last_hidden_state.float()
            inside = (places[:-1] >= len(prompt)) & (places[:-1] < ends[:, None])
            # A text without tokens has a mean of 0.
            return (states * inside[..., None]).sum(1) / lengths.clamp(min=1)[:, None]
        vectors = torch.cat([vectors, self.closing.to(vectors.dtype).expand(len(ids), 1, -1)], 1)
        vectors = torch.where((places == ends[:, None])[..., None], self.closing.to(vectors.dtype), vectors)
        states = self.decoder(inputs_embeds=vectors, use_cache=False).last_hidden_state.float()
        return states[torch.arange(len(ids), device=ids.device), ends]


def pieces(lengths: np.ndarray, budget: int, besides: int) -> list[tuple[int, int, int]]:
    """Cuts N rising lengths into runs (first, last, longest) of at most `budget` tokens with padding, or of one text.

    besides: what each text has in addition.
    """
    found, first = [], 0
    for last in range(1, len(lengths) + 1):
        if last == len(lengths) or (last + 1 - first) * (int(lengths[last]) + besides) > budget:
            found.append((first, last, int(lengths[last - 1])))
            first = last
    return found
