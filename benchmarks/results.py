"""The tables of docs/results.md: recommenders on MovieLens-100K and Amazon Beauty, leave-one-out, full catalogue, seeds as settings say.

    python -m benchmarks.results --out docs/results.md

The settings are in benchmarks/results/*.toml; they were chosen on the validation parts. What the store already holds is not done again, so
several processes, each with some models (`--models`), can share the work, and a last one without that option writes the tables.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from benchmarks.common import arguments
from recsys_core import compare
from workbench.config import Experiment, GridSettings
from workbench.grid import Cell, grid_rows, run_grid
from workbench.store import Store
from workbench.tables import render, score_table

HERE = Path(__file__).parent / "results"
GRIDS = {
    "beauty": ("HSTU", "SASRec"),
    "beauty-text": ("HLLM", "SASRec"),
    "ml-100k": ("HSTU", "HSTU, target's time"),
    "ml-100k-text": ("HLLM, item model frozen", "TIGER, ids of the log"),
}
"""The settings' names, and the two models of each that are compared user by user."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--store", default="results.sqlite", help="where every cell's per-user values are kept")
    parser.add_argument("--grids", default=",".join(GRIDS))
    parser.add_argument("--models", default="", help="labels, separated by |, to train and nothing else; no table is written")
    parser.add_argument("--share", default="0/1", help="n/of: of these, train only every of-th cell from the n-th on")
    parser.add_argument("--out", type=Path, help="a page whose tables, between markers, are replaced")
    options = parser.parse_args()
    # TF32 on a GPU: three decimal digits a factor, float32 sums.
    torch.set_float32_matmul_precision("high")
    with Store.open(options.store) as store:
        for name in options.grids.split(","):
            settings = Experiment.load(HERE / f"{name}.toml").grid
            assert settings is not None
            if options.models:
                chosen = tuple(m for m in settings.models if m.title in options.models.split("|"))
                if chosen:
                    number, _, of = options.share.partition("/")
                    run_grid(settings.model_copy(update={"models": chosen, "base": None}), store, say, name, share=(int(number), int(of)))
                continue
            text = page(name, settings, run_grid(settings, store, say, name))
            print(text)
            if options.out:
                replace(options.out, name, text)


def page(name: str, settings: GridSettings, cells: list[Cell]) -> str:
    """One grid as Markdown, its CSV written beside its settings."""
    rows = grid_rows(cells, settings.metrics, settings.base)
    dataset, split = cells[0].dataset, cells[0].split
    recorded: dict[str, list[str]] = {}
    for row in rows:
        recorded.setdefault("; ".join(row["machines"]) or "a machine not recorded", []).append(row["model"])
    machines = "; ".join(f"{len(models)} rows on {machine}" for machine, models in recorded.items())
    hashes = f"dataset {dataset.content_hash[:12]}, split {split.content_hash[:12]}"
    note = f"{len(split.test)} users, full catalogue, seen items removed; {hashes}."
    plain = [{**{k: v for k, v in row.items() if k not in ("dataset", "split_hash")}, "model": row["model"]} for row in rows]
    table = score_table(plain, settings.metrics, f"{dataset.name}, {settings.part}", f"{note} {machines}.", settings.base)
    (HERE / f"{name}.csv").write_text(render(score_table(rows, settings.metrics, name, ""), "csv"))
    first, second = ([c.evaluation for c in cells if c.model.title == label and c.evaluation] for label in GRIDS[name])
    lines = [render(table, "markdown")]
    for metric in settings.metrics:
        if first and second and metric in first[0].values:
            c = compare(first, second, metric)
            seeds = ", ".join(f"{a - b:+.4f}" for a, b in zip(c.seeds_a, c.seeds_b, strict=True))
            lines.append(
                f"- {' minus '.join(GRIDS[name])}, {metric}: {c.difference:+.4f} [{c.low:+.4f}, {c.high:+.4f}], "
                f"p {c.p_value:.4f} (Wilcoxon {c.wilcoxon_p:.2g}); seed by seed {seeds}"
            )
    return "\n".join(lines) + "\n"


def replace(file: Path, name: str, text: str) -> None:
    """Puts a table between the markers of its name."""
    page_ = file.read_text()
    start, end = f"<!-- {name}: written by benchmarks.results -->", f"<!-- end of {name} -->"
    if start not in page_ or end not in page_:
        raise SystemExit(f"{file} has no markers {start} .. {end}")
    file.write_text(re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: f"{start}\n{text}\n{end}", page_, flags=re.S))


def say(share: float, text: str) -> None:
    """Progress, a line an epoch at most."""
    if "step" not in text:
        print(f"{share:4.0%} {text}", flush=True)


if __name__ == "__main__":
    main()
