"""Many small questions a row: which of a few candidates is best? Two at a time (pairwise), or a handful (setwise)."""

from __future__ import annotations

from collections.abc import Sequence

from agents.chat import ChatClient
from agents.seeding import stream
from recsys_core.errors import DataError
from workbench.prompts.answers import Status, parse_choice
from workbench.prompts.asking import Asking, ask, together
from workbench.prompts.ranked import Ranked, Reply
from workbench.prompts.tasks import Item, Row, by_score, tied
from workbench.prompts.templates import Template, of_kind


class Pairwise:
    """Every pair, or a balanced part of them, in both orders; candidates stand by the share of questions they won.

    An unusable answer gives half to each. most: pairs a row, each two questions. Where a row has more, whole rounds of a round robin are
    played, so that all candidates play about equally often, against opponents drawn from seed, row and repetition.
    """

    def __init__(self, client: ChatClient, template: Template, asking: Asking | None = None, most: int = 45, seed: int = 0) -> None:
        if most < 1:
            raise DataError(f"most is {most} pairs; ask for at least 1")
        self.client, self.template, self.asking = client, of_kind(template, "choice"), asking or Asking()
        self.most, self.seed = most, seed

    async def rank(self, rows: Sequence[Row], repeat: int = 0) -> list[Ranked]:
        """See Ranker."""
        return await together(self._rank(row, repeat) for row in rows)

    def calls(self, row: Row) -> int:
        """See Ranker."""
        return 2 * len(round_robin(row.candidates, self.most)) * (1 + self.asking.retries)

    async def _rank(self, row: Row, repeat: int) -> Ranked:
        order = stream(self.seed, "pairs", row.id, repeat).permutation(len(row.candidates))
        pairs = round_robin([row.candidates[n] for n in order], self.most)
        swapped = [question for a, b in pairs for question in ((a, b), (b, a))]
        replies = await together(choose(self.client, self.template, row, question, self.asking, repeat) for question in swapped)
        won = {item.id: 0.0 for item in row.candidates}
        played = dict.fromkeys(won, 0)
        for reply in replies:
            for name in reply.shown:
                won[name] += (name in reply.ranking[0]) / len(reply.ranking[0])
                played[name] += 1
        ranking = by_score(row, {name: won[name] / played[name] if played[name] else 0.5 for name in won})
        return Ranked(row.id, ranking, tuple(replies))


class Setwise:
    """A tournament: of each few candidates the best goes on; the winner is taken out and its path played again, `places` times.

    After Zhuang et al. 2024 (arXiv 2310.09497); with size 2 it sorts by a comparator. n candidates take at most about
    (n - 1) / (size - 1) + places * log(n) / log(size) questions. Contenders are shown in an order drawn for the question; after an
    unusable answer the first drawn goes on. Candidates beyond `places` are tied.
    """

    def __init__(
        self, client: ChatClient, template: Template, asking: Asking | None = None, size: int = 4, places: int = 10, seed: int = 0
    ) -> None:
        if size < 2 or places < 1:
            raise DataError(f"size is {size} and places {places}; show at least 2 candidates and ask for at least 1 place")
        self.client, self.template, self.asking = client, of_kind(template, "choice"), asking or Asking()
        self.size, self.places, self.seed = size, places, seed

    async def rank(self, rows: Sequence[Row], repeat: int = 0) -> list[Ranked]:
        """See Ranker."""
        return await together(self._rank(row, repeat) for row in rows)

    def calls(self, row: Row) -> int:
        """See Ranker."""
        again = min(self.places, len(row.candidates)) - 1
        return (self._games(len(row.candidates)) + again * self._rounds(len(row.candidates))) * (1 + self.asking.retries)

    def _games(self, n: int) -> int:
        """Questions that find the first of n candidates."""
        step = -(-n // self.size)
        return 0 if n < 2 else 1 + sum(self._games(min(step, n - start)) for start in range(0, n, step))

    def _rounds(self, n: int) -> int:
        """Questions on a candidate's path to the top."""
        return 0 if n < 2 else 1 + self._rounds(-(-n // self.size))

    async def _rank(self, row: Row, repeat: int) -> Ranked:
        alive = {item.id: item for item in row.candidates}
        played: dict[tuple[str, ...], Reply] = {}

        async def best(items: Sequence[Item]) -> Item | None:
            """The winner among those of `items` that are still in; only questions not asked before are asked."""
            if len(items) == 1:
                return alive.get(items[0].id)
            step = -(-len(items) // self.size)
            winners = await together(best(items[n : n + step]) for n in range(0, len(items), step))
            contenders = [item for item in winners if item is not None]
            if len(contenders) < 2:
                return contenders[0] if contenders else None
            names = tuple(item.id for item in contenders)
            if names not in played:
                order = stream(self.seed, "set", row.id, repeat, *names).permutation(len(names))
                drawn = [contenders[n] for n in order]
                played[names] = await choose(self.client, self.template, row, drawn, self.asking, repeat)
            first = played[names].ranking[0]
            return alive[first[0]]

        head: list[str] = []
        while len(head) < min(self.places, len(row.candidates)) and (winner := await best(row.candidates)):
            head.append(winner.id)
            del alive[winner.id]
        return Ranked(row.id, tied(row, head), tuple(played.values()))


async def choose(client: ChatClient, template: Template, row: Row, shown: Sequence[Item], asking: Asking, repeat: int) -> Reply:
    """Asks for the best of a few candidates; all are tied after an unusable answer."""
    most = asking.tokens(16, bool(template.reasoning))
    offered = template.as_shown(shown)
    heard = await ask(client, template.render(row.history, shown), lambda text: parse_choice(text, offered), asking, most, repeat)
    names = tuple(item.id for item in shown)
    rest = tuple(name for name in names if name != heard.value)
    status: Status = "invalid" if heard.value is None else "complete"
    return Reply(
        names,
        (names,) if heard.value is None else ((heard.value,), rest),
        status,
        heard.text,
        missing=0 if heard.value else len(names),
        retries=heard.retries,
        keys=heard.keys,
        error=heard.error,
    )


def round_robin(items: Sequence[Item], most: int) -> list[tuple[Item, Item]]:
    """Pairs of items in rounds where each plays once (the circle method): whole rounds up to `most` pairs, at least part of one.

    Of n items all n (n - 1) / 2 pairs where `most` allows.
    """
    circle: list[Item | None] = [*items, *([None] if len(items) % 2 else [])]
    pairs: list[tuple[Item, Item]] = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        games = [(a, b) for a, b in zip(circle[:half], reversed(circle[half:]), strict=True) if a is not None and b is not None]
        if pairs and len(pairs) + len(games) > most:
            break
        pairs += games[:most]
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return pairs
