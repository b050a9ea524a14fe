"""One question a row: all candidates at once, put in order."""

from __future__ import annotations

from collections.abc import Sequence

from agents.chat import ChatClient
from workbench.prompts.answers import RankingAnswer, parse_ranking
from workbench.prompts.asking import Asking, ask, together
from workbench.prompts.ranked import Ranked, Reply
from workbench.prompts.tasks import Row, tied
from workbench.prompts.templates import Template, of_kind


class Listwise:
    """Candidates that a partial answer leaves out are tied behind those it names; after an invalid one all are tied."""

    def __init__(self, client: ChatClient, template: Template, asking: Asking | None = None) -> None:
        self.client, self.template, self.asking = client, of_kind(template, "listwise"), asking or Asking()

    async def rank(self, rows: Sequence[Row], repeat: int = 0) -> list[Ranked]:
        """See Ranker."""
        return await together(self._rank(row, repeat) for row in rows)

    def calls(self, row: Row) -> int:
        """See Ranker."""
        return 1 + self.asking.retries

    async def _rank(self, row: Row, repeat: int) -> Ranked:
        offered = self.template.as_shown(row.candidates)

        def read(text: str) -> RankingAnswer | None:
            answer = parse_ranking(text, offered)
            return answer if answer.order else None

        most = self.asking.tokens(32 + 16 * len(row.candidates), bool(self.template.reasoning))
        heard = await ask(self.client, self.template.render(row.history, row.candidates), read, self.asking, most, repeat)
        answer = heard.value or parse_ranking("", offered)
        ranking = tied(row, answer.order)
        reply = Reply(
            tuple(item.id for item in row.candidates),
            ranking,
            answer.status,
            heard.text,
            duplicates=answer.duplicates,
            unknown=answer.unknown,
            missing=answer.missing,
            retries=heard.retries,
            keys=heard.keys,
            error=heard.error,
        )
        return Ranked(row.id, ranking, (reply,))
