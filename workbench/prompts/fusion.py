"""One ranking out of several of the same candidates, such as those of shuffled repetitions. Ties take the mean of the places they span."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from recsys_core.errors import DataError
from workbench.prompts.tasks import Ranking


def borda(rankings: Sequence[Ranking]) -> Ranking:
    """Each ranking gives a candidate the number of candidates behind it (Borda 1781); most points first, equal points tied.

    Raises DataError for no rankings, and for rankings of different candidates.
    """
    return _fuse(rankings, lambda place, count: count - place)


def reciprocal_rank(rankings: Sequence[Ranking], k: int = 60) -> Ranking:
    """Each ranking gives a candidate 1 / (k + its rank) (Cormack, Clarke & Büttcher 2009, doi 10.1145/1571941.1572114).

    Beside Borda, a high rank in one ranking outweighs a low one in another. Raises as `borda` does.
    """
    return _fuse(rankings, lambda place, _: 1 / (k + place))


def _fuse(rankings: Sequence[Ranking], points: Callable[[int, int], float]) -> Ranking:
    """points: of a rank from 1 and the number of candidates."""
    if not rankings:
        raise DataError("there are no rankings to fuse; give at least one")
    won: dict[str, list[float]] = {name: [] for group in rankings[0] for name in group}
    for ranking in rankings:
        names = [name for group in ranking for name in group]
        if len(names) != len(won) or set(names) != set(won):
            raise DataError(f"a ranking of {len(names)} candidates does not fit one of {len(won)}; fuse rankings of the same candidates")
        place = 1
        for group in ranking:
            mean = fmean(points(p, len(names)) for p in range(place, place + len(group)))
            place += len(group)
            for name in group:
                won[name].append(mean)
    # Sorted before they are added up, so that equal points are equal sums whatever the order of the rankings.
    totals = {name: round(sum(sorted(parts)), 12) for name, parts in won.items()}
    groups: dict[float, list[str]] = {}
    for name, total in totals.items():
        groups.setdefault(total, []).append(name)
    return tuple(tuple(groups[total]) for total in sorted(groups, reverse=True))
