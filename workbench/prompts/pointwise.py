"""One question a candidate: would it be chosen? By how much likelier Yes is than No, or by the word a model answers."""

from __future__ import annotations

from collections.abc import Sequence

from agents.chat import CallFailed, ChatClient
from workbench.prompts.answers import Status, parse_yes_no
from workbench.prompts.asking import Asking, Heard, ask, together
from workbench.prompts.ranked import Ranked, Reply
from workbench.prompts.scoring import yes_scores
from workbench.prompts.tasks import Row, by_score, tied
from workbench.prompts.templates import Template, of_kind


class Pointwise:
    """Scores by likelihoods where the model gives them and `words` is not asked for; else Yes 1, No 0 and an unusable answer between."""

    def __init__(self, client: ChatClient, template: Template, asking: Asking | None = None, words: bool = False) -> None:
        self.client, self.template, self.asking = client, of_kind(template, "pointwise"), asking or Asking()
        self.scored = client.can_score and not words

    async def rank(self, rows: Sequence[Row], repeat: int = 0) -> list[Ranked]:
        """See Ranker."""
        return await together(self._by_likelihood(row) if self.scored else self._by_words(row, repeat) for row in rows)

    def calls(self, row: Row) -> int:
        """See Ranker."""
        return len(row.candidates) * (1 if self.scored else 1 + self.asking.retries)

    async def _by_likelihood(self, row: Row) -> Ranked:
        shown = tuple(item.id for item in row.candidates)
        try:
            scores, keys = await yes_scores(self.client, self.template, row)
        except CallFailed as failed:
            return Ranked(row.id, tied(row), (Reply(shown, tied(row), "invalid", missing=len(shown), error=str(failed)),))
        ranking = by_score(row, scores)
        return Ranked(row.id, ranking, (Reply(shown, ranking, "complete", scores=scores, keys=keys),))

    async def _by_words(self, row: Row, repeat: int) -> Ranked:
        most = self.asking.tokens(8, bool(self.template.reasoning))
        heard: list[Heard[bool]] = await together(
            ask(self.client, self.template.render(row.history, (item,)), parse_yes_no, self.asking, most, repeat) for item in row.candidates
        )
        scores = {item.id: 0.5 if h.value is None else float(h.value) for item, h in zip(row.candidates, heard, strict=True)}
        missing = sum(h.value is None for h in heard)
        status: Status = "complete" if not missing else "partial" if missing < len(heard) else "invalid"
        ranking = by_score(row, scores)
        reply = Reply(
            tuple(scores),
            ranking,
            status,
            "\n".join(f"{name}: {' '.join(h.text.split())}" for name, h in zip(scores, heard, strict=True)),
            scores=scores,
            missing=missing,
            retries=sum(h.retries for h in heard),
            keys=tuple(key for h in heard for key in h.keys),
            error=next((h.error for h in heard if h.error), ""),
        )
        return Ranked(row.id, ranking, (reply,))
