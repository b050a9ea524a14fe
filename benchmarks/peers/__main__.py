"""Runs every library in its own interpreter, in turn, for several rounds, and compares them; see the package's docstring for set-up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.common import arguments, report
from benchmarks.peers.job import Job
from recsys_core.data import Dataset, load_dataset

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--recbole", help="a Python with RecBole; left out, it is not measured")
    parser.add_argument("--rectools", help="a Python with RecTools; left out, it is not measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=50)
    parser.add_argument("--loss", choices=("full", "one"), default="full", help="cross-entropy over all items, or one negative a target")
    parser.add_argument("--budget", type=int, default=200_000, help="targets that each trains on in a round, about")
    parser.add_argument("--recbole-budget", type=int, default=100_000, help="the same for RecBole, whose epochs take minutes")
    options = parser.parse_args()
    peers = {name: python for name in ("recbole", "rectools") if (python := getattr(options, name))}
    python = {"ours": sys.executable, "ours, latest": sys.executable, **peers}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in python}
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "ml-100k"
        log.mkdir()
        write_log(load_dataset("ml-100k"), log / "ml-100k.inter")
        job = Job(str(log), scratch, options.loss, options.max_length)
        for number in range(options.rounds):
            for name, interpreter in python.items():
                budget = options.recbole_budget if name == "recbole" else options.budget
                asked = replace(job, seed=number, budget=budget, windows="latest" if name == "ours, latest" else "all")
                found[name].append(run(interpreter, name.split(",")[0], asked))
                print(f"round {number + 1}, {name}: {spoken(found[name][-1])}", file=sys.stderr, flush=True)
    rows = [row(name, answers, found, options) for name, answers in found.items()]
    report(f"SASRec beside peers, ml-100k leave-one-out, {job.threads} threads", rows, options.csv)


def write_log(dataset: Dataset, file: Path) -> None:
    """A RecBole atomic file whose timestamps are places in our order, so that every library holds out the same items."""
    users, items = dataset.user[dataset.order], dataset.item[dataset.order]
    lines = (f"{dataset.users.ids[u]}\t{dataset.items.ids[i]}\t{place}\n" for place, (u, i) in enumerate(zip(users, items, strict=True)))
    file.write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "".join(lines))


def run(interpreter: str, library: str, job: Job) -> dict[str, Any]:
    """What the library's program answers, in a process of its own."""
    # A thread that waits sleeps and does not spin, so CPU seconds are work, on a busy machine too.
    threads = {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [str(Path(interpreter).absolute()), "-m", f"benchmarks.peers.{library}", job.text()]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **threads}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{library} failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def spoken(answer: dict[str, Any]) -> str:
    epochs, evaluations = answer["epochs"]["wall"], answer["evaluations"]["wall"]
    return (
        f"{len(epochs)} epochs, {median(epochs):.2f} s each, evaluation {median(evaluations):.3f} s, NDCG@10 {answer['own']['NDCG@10']:.4f}"
    )


def row(name: str, answers: list[dict[str, Any]], found: dict[str, list[dict[str, Any]]], options: Any) -> dict[str, Any]:
    """One library's line; `x` columns are ours divided by its figure, so below 1 we are faster."""
    first = answers[0]
    times = {f"{what} {clock}": pooled(answers, what, clock) for what in ("epochs", "evaluations") for clock in ("wall", "cpu")}
    epoch, evaluation = median(times["epochs wall"]), median(times["evaluations wall"])
    # RecTools trains on the latest windows alone, so its epoch stands beside ours of just these.
    same = "ours, latest" if name in ("rectools", "ours, latest") else "ours"
    mine = {clock: median(pooled(found[same], "epochs", clock)) for clock in ("wall", "cpu")}
    ranked = {clock: median(pooled(found["ours"], "evaluations", clock)) for clock in ("wall", "cpu")}
    per_target = mine["wall"] / found[same][0]["targets"]
    return {
        "library": name,
        "loss": options.loss,
        "max length": options.max_length,
        "parameters": first["parameters"],
        "targets an epoch": first["targets"],
        "steps an epoch": first["steps"],
        "epoch s": epoch,
        "epoch s, least": min(times["epochs wall"]),
        "epoch CPU s": median(times["epochs cpu"]),
        "ms a 1000 targets": 1e6 * epoch / first["targets"],
        "evaluation s": evaluation,
        "evaluation s, least": min(times["evaluations wall"]),
        "evaluation CPU s": median(times["evaluations cpu"]),
        "epoch x": mine["wall"] / epoch,
        "epoch CPU x": mine["cpu"] / median(times["epochs cpu"]),
        "target x": per_target / (epoch / first["targets"]),
        "evaluation x": ranked["wall"] / evaluation,
        "evaluation CPU x": ranked["cpu"] / median(times["evaluations cpu"]),
        "targets trained": len(first["epochs"]["wall"]) * first["targets"],
        "its NDCG@10": float(np.mean([a["own"]["NDCG@10"] for a in answers])),
        "NDCG@10, seen removed": float(np.mean([ndcg(a["ranks"], a["users"]) for a in answers])),
    }


def pooled(answers: list[dict[str, Any]], what: str, clock: str) -> list[float]:
    return [seconds for answer in answers for seconds in answer[what][clock]]


def ndcg(ranks: dict[str, int], users: int) -> float:
    """NDCG@10 of one target a user, by the same rule for all; users without a rank missed."""
    return sum(1 / float(np.log2(1 + r)) for r in ranks.values() if r <= 10) / users


if __name__ == "__main__":
    main()
