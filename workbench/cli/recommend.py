"""`workbench recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys_core import load
from recsys_core.data import load_dataset
from recsys_core.errors import DataError
from workbench.cli import ui

if TYPE_CHECKING:
    from recsys_core.serving import Answer, Rule

WhereOption = Annotated[
    list[str], typer.Option("--where", help="tag=Comedy,Drama · tag!=War · year=1990..1995 · title~star; repeatable, all must hold.")
]


def recommend(
    folder: Annotated[Path, typer.Argument(help="A trained model, or a saved service.")],
    data: ui.DataOption = "ml-100k",
    users: Annotated[list[str], typer.Option("--user", help="A known user's id; repeatable.")] = [],  # noqa: B006
    histories: Annotated[list[str], typer.Option("--history", help="Item ids, oldest first, comma-separated; repeatable.")] = [],  # noqa: B006
    popular: Annotated[bool, typer.Option("--popular", help="What is taken most, for someone nothing is known of.")] = False,
    k: Annotated[int, typer.Option("--k", min=1, help="Items a list.")] = 10,
    where: WhereOption = [],  # noqa: B006
    exclude: Annotated[str, typer.Option("--exclude", help="Item ids never to show, comma-separated.")] = "",
    only: Annotated[str, typer.Option("--only", help="Item ids to choose from, comma-separated.")] = "",
    at_most: Annotated[int, typer.Option("--at-most", min=0, help="Items of a list that may share a tag; 0 for no bound.")] = 0,
    repeat: Annotated[bool, typer.Option("--repeat", help="Items of the history may come again.")] = False,
    store: ui.StoreOption = ui.DEFAULT_STORE,
    json: ui.JsonOption = False,
) -> None:
    """Recommend items for known users or for histories.

    Example: workbench recommend models/hstu --history 50,181 --where tag=Comedy --k 5
    """
    # Torch comes with these: not at every start of the command line.
    from recsys_core.serving import AtMost, Only, Service, parse_rule
    from recsys_core.serving.catalogue import TAG

    if not (users or histories or popular):
        raise DataError("nobody to recommend for; give --user, --history, or --popular")
    service = Service.load(folder) if (folder / "catalogue.json").is_file() else Service.of(load(folder), load_dataset(data))
    rules: list[Rule] = [parse_rule(text) for text in where]
    rules += [~Only(ui.names(exclude))] if exclude else []
    rules += [Only(ui.names(only))] if only else []
    caps = [AtMost(at_most, TAG)] if at_most else []
    rows = [ui.names(text) for text in histories]
    with ui.answers_kept(type(service.model), store):
        answers = dict(zip((f"user {u}" for u in users), service.recommend(users, k, rules, caps, repeat), strict=True))
        names = [f"history {','.join(row)}" if row else "an empty history" for row in rows]
        answers |= zip(names, service.recommend_for(rows, k, rules, caps, repeat), strict=True)
    if popular:
        answers["popular"] = service.popular(k, rules, caps)
    if json:
        return ui.print_json([{"for": who, **_facts(answer)} for who, answer in answers.items()])
    for who, answer in answers.items():
        short = f"; {answer.missing} fewer than asked" if answer.missing else ""
        note = f"{service.model.name}; {answer.candidates} of {len(service.catalogue)} items to choose from{short}"
        cells = [[str(n), item.id, item.title, f"{item.score:.3f}"] for n, item in enumerate(answer.items, 1)]
        ui.table(f"For {who}", ["", "id", "title", "score"], cells, note)
    return None


def _facts(answer: Answer) -> dict[str, object]:
    items = [{"id": item.id, "title": item.title, "score": item.score} for item in answer.items]
    return {"items": items, "asked": answer.asked, "candidates": answer.candidates, "missing": answer.missing}
