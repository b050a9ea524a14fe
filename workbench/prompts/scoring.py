"""What a model's likelihoods say of candidates: of their titles behind a history, and of Yes and No behind a question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast

from agents.chat import CallFailed, ChatClient, ScoreRequest
from recsys_core.errors import DataError
from workbench.prompts.asking import together
from workbench.prompts.ranked import Ranked, Reply
from workbench.prompts.tasks import Row, by_score, tied
from workbench.prompts.templates import Template, of_kind

if TYPE_CHECKING:
    from agents.chat.embedded import EmbeddedChatModel

Per = Literal["sum", "mean"]
"""Log-likelihood of a whole title, or of one of its tokens on average."""
YES, NO = " Yes", " No"
_BATCH = 32
"""Candidates a question: an engine bounds what it reads in one pass."""


async def title_scores(
    client: ChatClient, template: Template, row: Row, pmi: bool = True, per: Per = "sum"
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Score of each candidate in nats, higher is better, and the keys of the questions asked.

    log P(title | history), and with `pmi` less log P(title | no history): what the history adds, so that a title is not preferred for
    being short or common (Brown et al. 2020, section 2.4; Holtzman et al. 2021, arXiv 2104.08315). per: `mean` divides by the tokens of
    the title. Candidates that read the same are asked about once. Raises as `ChatClient.score` does.
    """
    prompt, empty = template.render(row.history, ()).document, template.render((), ()).document if pmi else None
    texts = {item.id: template.continuation(item) for item in row.candidates}
    # Sorted, so that another order of the candidates is the same question.
    distinct = sorted(set(texts.values()))
    batches = [tuple(distinct[n : n + _BATCH]) for n in range(0, len(distinct), _BATCH)]
    answers = await together(client.score(ScoreRequest(prompt, batch, empty)) for batch in batches)
    scores = {text: score for batch, answer in zip(batches, answers, strict=True) for text, score in zip(batch, answer.scores, strict=True)}
    if per == "mean":
        reader = cast("EmbeddedChatModel", client.endpoint.model).engine.text
        for text in distinct:
            ids, own = reader.continuation(prompt, text)
            scores[text] /= max(len(ids) - own, 1)
    return {name: scores[text] for name, text in texts.items()}, tuple(answer.key for answer in answers)


async def yes_scores(client: ChatClient, template: Template, row: Row) -> tuple[dict[str, float], tuple[str, ...]]:
    """log P(Yes) - log P(No) of each candidate behind a pointwise prompt about it, in nats, and the keys of the questions asked."""
    prompts = [template.render(row.history, (item,)).document for item in row.candidates]
    answers = await together(client.score(ScoreRequest(prompt, (YES, NO))) for prompt in prompts)
    scores = {item.id: answer.scores[0] - answer.scores[1] for item, answer in zip(row.candidates, answers, strict=True)}
    return scores, tuple(answer.key for answer in answers)


class Likelihood:
    """Ranks by how likely each title is behind the history; settings as of `title_scores`. The order of the candidates is not read."""

    def __init__(self, client: ChatClient, template: Template, pmi: bool = True, per: Per = "sum") -> None:
        if not client.can_score:
            raise DataError(
                f"model {client.model_id!r} gives no likelihoods of given texts; use a listwise template, or the embedded model"
            )
        self.client, self.template, self.pmi, self.per = client, of_kind(template, "likelihood"), pmi, per

    async def rank(self, rows: Sequence[Row], repeat: int = 0) -> list[Ranked]:
        """See Ranker. Likelihoods do not vary, so `repeat` changes nothing."""
        return await together(self._rank(row) for row in rows)

    def calls(self, row: Row) -> int:
        """See Ranker."""
        return -(-len(row.candidates) // _BATCH)

    async def _rank(self, row: Row) -> Ranked:
        shown = tuple(item.id for item in row.candidates)
        try:
            scores, keys = await title_scores(self.client, self.template, row, self.pmi, self.per)
        except CallFailed as failed:
            return Ranked(row.id, tied(row), (Reply(shown, tied(row), "invalid", missing=len(shown), error=str(failed)),))
        ranking = by_score(row, scores)
        return Ranked(row.id, ranking, (Reply(shown, ranking, "complete", scores=scores, keys=keys),))
