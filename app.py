"""The dashboard: runs, one run's metrics, one agent's pages. Reads the store through `workbench` and nothing else.

Start it with `workbench dashboard` or `make dashboard`.
"""

from __future__ import annotations

import argparse
import time

import altair as alt
import streamlit as st

from workbench import WorkbenchError
from workbench.prompts.templates import Template
from workbench.prompts.versions import diff, kept, to_toml
from workbench.report import DIFFERENCE_NOTE, EXITS, FIDELITY_NOTE, fidelity_rows, page_rows, subject
from workbench.running import how_to_go_on
from workbench.store import AgentRecord, Comparison, Evaluation, ItemRecord, PageRecord, PromptTrial, RunSummary, StoreReader, usual_store

TAKEN = "●"
FIGURES = ("mean", "value", "low", "high", "difference", "p", "take rate", "mean rating")
NAMES = ("model", "template", "what")
COLUMNS = {name: st.column_config.NumberColumn(format="%.4f") for name in FIGURES} | {
    name: st.column_config.TextColumn(width="medium")
    for name in NAMES  # the name of a prompt can be as long as a line
}


def main() -> None:
    """One page: pick a run, see what it measured and what its agents saw and did."""
    st.set_page_config(page_title="Recommender workbench", page_icon="◧", layout="wide")
    title, where = st.columns([2, 1], vertical_alignment="bottom")  # no sidebar: tables need the width
    title.title("Recommender workbench")
    target = where.text_input("Store", store_argument(), help="SQLite file or postgresql+psycopg:// URL")
    try:
        with StoreReader.open(target) as store:
            show_store(store)
    except WorkbenchError as error:
        st.error(str(error))


def store_argument() -> str:
    """The store named on the command line, else in WORKBENCH_STORE, else the default."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", default=usual_store())
    return str(parser.parse_known_args()[0].store)


def show_store(store: StoreReader) -> None:
    """The list of runs and the chosen one."""
    runs = store.runs()
    if not runs:
        st.info("This store has no runs yet. Make some with: make demo")
        return
    st.subheader(f"{len(runs)} runs")
    show_table([run_row(r) for r in runs])
    # Chosen by id: a choice outlives a click, and the run as it was then would be shown for the run as it is.
    known = {run.id: run for run in runs}
    chosen = st.selectbox("Run", list(known), format_func=lambda i: " · ".join(filter(None, (i, subject(known[i]), known[i].status))))
    show_run(store, known[chosen])


def show_table(rows: list[dict[str, object]]) -> None:
    """Rows as wide as the page, figures to four decimals."""
    st.dataframe(rows, hide_index=True, width="stretch", column_config=COLUMNS)


def run_row(run: RunSummary) -> dict[str, object]:
    """One line of the list of runs."""
    return {
        "run": run.id,
        "what": subject(run),
        "status": run.status,
        "agents": str(run.agents or ""),
        "pages": str(run.pages or ""),
        "experiment": run.name,
        "dataset": run.dataset,
        "started (UTC)": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(run.created)),
        "code": run.code_version,
    }


def show_run(store: StoreReader, run: RunSummary) -> None:
    """What one run was, what it measured, and its agents."""
    st.header(run.id)
    if trouble := " · ".join(filter(None, (run.message, how_to_go_on(store, run)))):
        st.warning(trouble)
    calls = store.call_totals(run.id)
    simulated = [f"{run.agents} agents", f"{run.pages} pages"] if run.agents else []
    asked = [f"{calls.calls} model calls, {calls.cached} answered from the store"] if calls.calls else []
    st.text(" · ".join(filter(None, (run.status, subject(run), run.dataset, f"seed {run.seed}", *simulated, *asked))))
    if pages := pages_of(store, store.where, run.id, run.pages):
        show_table(pages)
    if run.kind == "optimize":
        show_search(store, run)
    if comparisons := store.comparisons(run.id):
        show_comparisons(comparisons)
    if evaluations := store.evaluations(run.id):
        show_metrics(evaluations, fidelity_rows(evaluations))
    agents = agents_of(store, store.where, run.id, run.agents)
    if agents:
        show_agent(store, run, agents)
    with st.expander("Configuration and hashes"):
        st.json({"dataset": run.dataset_hash, "split": run.split_hash, "code": run.code_version, "seed": run.seed, "config": run.config})


# A run only grows, so how much it has says which state of it this is: a click need not count it again.
@st.cache_data(show_spinner=False, max_entries=32)
def pages_of(_store: StoreReader, where: str, run: str, pages: int) -> list[dict[str, object]]:
    """`page_rows` of a run with so many pages."""
    return page_rows(_store, run)


@st.cache_resource(show_spinner=False, max_entries=8)
def agents_of(_store: StoreReader, where: str, run: str, agents: int) -> list[AgentRecord]:
    """The agents of a run with so many."""
    return _store.agents(run)


def show_metrics(evaluations: list[Evaluation], fidelity: list[dict[str, object]]) -> None:
    """One metric as a chart with intervals, and all of them as a table; those of a simulation, its `fidelity`, in their own terms."""
    parts = {e.part for e in evaluations}
    if fidelity:
        st.subheader("How far to trust the agents")
        st.caption(FIDELITY_NOTE)
    else:
        st.subheader("Metrics")
    metric = st.selectbox("Metric", list(dict.fromkeys(e.metric for e in evaluations)))
    rows = [
        {"who": " · ".join(named(e, len(parts) > 1)), "seed": str(e.seed), "value": e.mean, "low": e.low, "high": e.high}
        for e in evaluations
        if e.metric == metric
    ]
    # Wide enough for most names: by default Altair cuts labels at 180 pixels.
    names = list(dict.fromkeys(row["who"] for row in rows))
    axis = alt.Y("who:N", title=None, sort=names, axis=alt.Axis(labelLimit=300))
    # Seeds of one model stand side by side rather than on top of each other.
    offset = alt.YOffset("seed:N")
    base = alt.Chart(alt.Data(values=rows))
    span = alt.X("low:Q", title=f"{metric}, mean and 95% interval", scale=alt.Scale(zero=False))
    tooltip = ["who:N", "seed:N", "value:Q", "low:Q", "high:Q"]
    color = alt.Color("seed:N", title="seed", legend=alt.Legend() if len({row["seed"] for row in rows}) > 1 else None)
    bars = base.mark_rule(strokeWidth=2).encode(y=axis, yOffset=offset, x=span, x2="high:Q", color=color)
    dots = base.mark_point(filled=True, size=60).encode(y=axis, yOffset=offset, x="value:Q", color=color, tooltip=tooltip)
    st.altair_chart(bars + dots, width="stretch")
    columns = ("model", "arm", "seed", "part", "metric", "mean", "low", "high")
    show_table(fidelity or [{name: getattr(e, name) for name in columns} for e in evaluations])


def show_comparisons(comparisons: list[Comparison]) -> None:
    """What an arm changed against another one."""
    st.subheader("Differences")
    st.caption(DIFFERENCE_NOTE)
    show_table(
        [
            {
                "model": c.model, "arm": c.arm_b, "against": c.arm_a, "part": c.part, "metric": c.metric,
                "difference": c.difference, "low": c.low, "high": c.high, "p": c.p,
            }
            for c in comparisons
        ]
    )  # fmt: skip


def named(e: Evaluation, with_part: bool) -> list[str]:
    """What a figure is of. The prompts that a search began and ended with go by that: their names can be as long as a line."""
    who = [e.arm] if e.arm in ("start", "favourite") else [e.model, *([e.arm] if e.arm not in ("none", "baseline") else [])]
    return [*who, *([e.part] if with_part else [])]


def show_search(store: StoreReader, run: RunSummary) -> None:
    """A prompt search: what it tried in order, how start and favourite differ, and each template beside the one it was made from."""
    st.subheader("Prompt search")
    templates = {row.id: template for row, template in kept(store)}
    trials = store.trials(run.id)
    if not trials:
        st.info("Nothing was tried yet.")
        return
    rows = [trial_row(trial, templates[trial.prompt_id]) for trial in trials]
    base = alt.Chart(alt.Data(values=rows))
    color, x = alt.Color("part:N", sort=["train", "search", "fresh", "test"]), alt.X("trial:O", title="trial")
    value = alt.Y("low:Q", title=f"{trials[0].metric}, mean and 95% interval", scale=alt.Scale(zero=False))
    tooltip = ["template:N", "part:N", "rows:Q", "mean:Q", "low:Q", "high:Q"]
    bars = base.mark_rule(strokeWidth=2).encode(x=x, y=value, y2="high:Q", color=color)
    st.altair_chart(bars + base.mark_point(filled=True, size=60).encode(x=x, y="mean:Q", color=color, tooltip=tooltip), width="stretch")
    show_table(rows)
    tried = {templates[trial.prompt_id].version: templates[trial.prompt_id] for trial in trials}
    chosen = st.selectbox("Template", list(tried.values()), format_func=lambda t: f"{t.version} · {t.author} · {t.name}")
    known = {template.version: template for template in templates.values()}
    parent = next((known[version] for version in chosen.parents if version in known), None)
    if parent is not None:
        st.text(f"Changed from {parent.version}")
        changes = [f"{name}\n" + "\n".join(lines) for name, lines in diff(parent, chosen).items()]
        st.code("\n\n".join(changes), language="diff")
    # Text of a template is data: shown as it is, with the places that items fill, never as markup.
    st.code(to_toml(chosen), language="toml", wrap_lines=True)


def trial_row(trial: PromptTrial, template: Template) -> dict[str, object]:
    """One line of the list of trials."""
    return {
        "trial": trial.number, "part": trial.part, "rows": trial.n, "mean": trial.mean, "low": trial.low, "high": trial.high,
        "version": template.version, "template": template.name,
    }  # fmt: skip


def show_agent(store: StoreReader, run: RunSummary, agents: list[AgentRecord]) -> None:
    """One agent's persona and the pages it saw."""
    st.subheader("Agents")
    agent = st.selectbox("Agent", agents, format_func=lambda a: f"user {a.external} · {a.policy}")
    persona = agent.persona
    tiers = f"activity {persona.activity}/3 · conformity {persona.conformity}/3 · diversity {persona.diversity}/3"
    st.text(f"{tiers} · rates {persona.mean_rating:g} ± {persona.rating_std:g}")
    st.text(f"Likes {', '.join(persona.liked_tags) or '-'}; avoids {', '.join(persona.disliked_tags) or '-'}")
    st.text(f"Loved {'; '.join(persona.liked_titles) or '-'}")
    items = store.items(run.id)
    for page in store.pages(run.id, persona.user):
        show_page(page, items)


def show_page(page: PageRecord, items: dict[int, ItemRecord]) -> None:
    """What was shown, what was taken, and how the page was left."""
    ending = f" · session ended: {EXITS[page.exit]}" if page.exit else ""
    fallback = f" · fallback: {page.fallback}" if page.fallback else ""
    st.text(f"Page {page.page + 1} · {page.arm} · felt {page.feeling}{ending}{fallback}")
    taken = {a.position: a for a in page.actions}
    rows = []
    for e in page.exposures:
        item, action = items.get(e.item) or ItemRecord(str(e.item), "", ()), taken.get(e.position)
        rows.append(
            {
                "position": e.position + 1,
                "taken": TAKEN if action else "",
                "rating": f"{action.rating:g}" if action else "",
                "title": item.title or item.external,
                "tags": ", ".join(item.tags),
                "score": round(e.score, 3),
                "propensity": e.propensity,
            }
        )
    show_table(rows)


main()
