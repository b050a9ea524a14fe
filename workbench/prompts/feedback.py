"""What a proposer is told of how a template did: its worst rows with ranks, what was tried so far, and what was refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from workbench.prompts.proposing import quoted
from workbench.prompts.ranked import Ranked, Reply
from workbench.prompts.tasks import Item, Ranking, Row, lot
from workbench.prompts.templates import SECTIONS, Template, label
from workbench.prompts.trials import Trial, Trials
from workbench.prompts.versions import diff

_ANSWER, _WHY, _CHANGE = 600, 300, 160
"""Characters of an answer, of a reason and of a change that are shown."""
_HISTORY, _CANDIDATES = 15, 30
"""Items of a row that are shown."""


def feedback(trial: Trial, n: int = 3, seed: int = 0) -> str:
    """The n worst rows of a trial, worst first, equal ones in an order drawn from the seed; rows without a mistake are left out.

    It tells what was chosen, so the trial should be one on train rows. Titles and answers are data, a line each, cut. Of an item it shows
    what the template shows, for nothing else can help a prompt.
    """
    pairs = sorted(zip(trial.values, trial.rows, trial.ranked, strict=True), key=lambda one: (one[0], lot(seed, one[1].id)))
    wrong = [(row, ranked) for _, row, ranked in pairs if not _right(row, ranked.ranking)]
    if not wrong:
        return f"All {len(pairs)} examples were ranked without a mistake."
    told = [f"{len(wrong)} of {len(pairs)} examples were ranked with a mistake. The worst {len(wrong[:n])}, worst first:"]
    told += ["\n".join([f"Example {number}", *_example(trial.template, *one)]) for number, one in enumerate(wrong[:n], 1)]
    return "\n\n".join(told)


def history_text(trials: Trials, rows: Sequence[Row] | None = None, most: int = 6) -> str:
    """Scores of what was tried, the start first, and the proposals refused with their reasons; the latest `most` of each.

    rows: whose scores are told, by default the search rows. A loop that also accepts by these should tell of train rows instead: who has
    seen scores can write what suits these very rows. A score is a mean with its standard error. Beside it stands what was changed, and
    the mean difference to the template it was made from, or else to the start, on the rows that both have.
    """
    told = []
    if scores := list(_scores(trials, trials.search if rows is None else rows)):
        told = [f"Scores so far ({trials.metric}, higher is better, +- is one standard error):", scores[0], *scores[1:][-most:]]
    if trials.rejected:
        told.append("Not taken, and why:")
        told += [f"- {quoted(r.what, _CHANGE)}: {quoted(r.why, _WHY)}" for r in trials.rejected[-most:]]
    return "\n".join(told)


def standing(ranking: Ranking, name: str) -> tuple[int, int]:
    """The first and the last place, from 1, that a candidate can have; they are equal unless it is tied."""
    before = 0
    for group in ranking:
        if name in group:
            break
        before += len(group)
    return before + 1, before + len(group)


def _right(row: Row, ranking: Ranking) -> bool:
    """Whether every candidate stands above those of lower grades, and ties hold equal grades only."""
    grades = [{row.grades.get(name, 0.0) for name in group} for group in ranking if group]
    best = [max(group) for group in grades]
    return all(len(group) == 1 for group in grades) and best == sorted(best, reverse=True)


def _example(template: Template, row: Row, ranked: Ranked) -> Iterator[str]:
    """One question about the row, what came of it, and where the chosen candidates ended in the whole."""
    reply = _telling(row, ranked)
    if template.history_length:
        latest = row.history[-min(template.history_length, _HISTORY) :]
        yield f"Taken before, oldest first ({len(latest)} of {len(row.history)} shown):"
        yield from (f"- {_item(template, 'history', item)}" for item in latest)
    items = {item.id: item for item in row.candidates}
    labels = {name: label(place) for place, name in enumerate(reply.shown)}
    chosen = [name for name in reply.shown if name in row.positives]
    room = max(_CANDIDATES - len(chosen), 0)
    others = [name for name in reply.shown if name not in row.positives][:room]
    yield f"Candidates as asked ({len(chosen) + len(others)} of {len(reply.shown)} shown):"
    for name in reply.shown:
        if name in chosen or name in others:
            yield f"{labels[name]}. {_item(template, 'candidates', items[name])}"
    yield from _outcome(reply, labels)
    best = sorted(row.positives, key=lambda name: (-row.grades[name], standing(ranked.ranking, name), name))
    for goal, name in enumerate(best, 1):
        first, last = standing(ranked.ranking, name)
        ended = f"ranked {_nth(first)}" if first == last else f"tied on places {first} to {last}"
        which = labels.get(name) or quoted(items[name].title, template.text_limit)
        yield f"Chosen: {which}, {ended} of {len(items)}, should be {_nth(goal)}."


def _telling(row: Row, ranked: Ranked) -> Reply:
    """The reply that says most: the first of no use, else the first that put a chosen candidate behind another, else the first."""
    lost = [r for r in ranked.replies if row.positives & set(r.shown) and not row.positives & set(r.ranking[0])]
    useless = [r for r in ranked.replies if r.status == "invalid"]
    names = tuple(item.id for item in row.candidates)
    return next(iter((*useless, *lost, *ranked.replies)), Reply(names, ranked.ranking, "complete"))


def _outcome(reply: Reply, labels: dict[str, str]) -> Iterator[str]:
    if reply.text:
        yield f"Answer: {quoted(reply.text, _ANSWER)}"
    if reply.status == "invalid":
        yield f"Read as: nothing, {quoted(reply.error, _WHY) if reply.error else 'for the answer names no candidate'}."
        return
    yield f"Read as: {' > '.join(' = '.join(labels[name] for name in group) for group in reply.ranking)}"
    counts = ((reply.missing, "left out"), (reply.duplicates, "named again"), (reply.unknown, "not among the candidates"))
    if faults := ", ".join(f"{count} {what}" for count, what in counts if count):
        yield f"Faults: {faults}"


def _scores(trials: Trials, rows: Sequence[Row]) -> Iterator[str]:
    """A line for each template that was measured on any of the rows, the start's first, the others in the order of their first trials."""
    among = {row.id for row in rows}
    templates = {template.version: template for template in (trials.start, *(trial.template for trial in trials.tried))}
    known = {version: {row: v for row, v in trials.known(t).items() if row in among} for version, t in templates.items()}
    for version, template in templates.items():
        if not (mine := known[version]):
            continue
        line = f"- {version}: {_mean(list(mine.values()))} on {len(mine)} rows"
        if version == trials.start.version:
            yield f"{line}, the start"
            continue
        origin = next((parent for parent in template.parents if parent in templates), trials.start.version)
        for other in dict.fromkeys((origin, trials.start.version)):
            if shared := [value - known[other][row] for row, value in mine.items() if row in known[other]]:
                line += f", {_mean(shared, '+')} against {other} on {len(shared)} of them"
                break
        changes = "; ".join(f"{name}: {' '.join(lines)}" for name, lines in diff(templates[origin], template).items() if name in SECTIONS)
        yield f"{line}. Changed of {origin}: {quoted(changes, _CHANGE)}"


def _mean(values: Sequence[float], sign: str = "") -> str:
    array = np.array(values)
    error = f"{array.std(ddof=1) / len(array) ** 0.5:.3f}" if len(array) > 1 else "unknown"
    return f"{array.mean():{sign}.3f} +- {error}"


def _item(template: Template, place: str, item: Item) -> str:
    names = [name for name in ("title", *template.fields) if (place, name) in template.features]
    texts = {**item.fields, "title": item.title}
    return " | ".join(quoted(texts.get(name, ""), template.text_limit) for name in names)


def _nth(place: int) -> str:
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending}"
