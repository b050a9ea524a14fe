"""Writes what the agents of a run took as training data for other tools: Parquet, or RecBole atomic files."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recsys_core.errors import DataError, RunStoppedError
from recsys_core.files import atomic_file
from workbench.store import AgentRecord, ItemRecord, StoreReader

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["parquet", "recbole"]

# Everything that some reader of a tab-separated file takes for a separator, a line end or a quote.
_UNSAFE = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029"]')


@dataclass(frozen=True)
class Exported:
    """files: what was written, the provenance last; rows: interactions."""

    run: str
    files: tuple[Path, ...]
    rows: int


def export_run(store: StoreReader, run: str, folder: Path, kind: Format = "parquet", personas: bool = False) -> Exported:
    """Writes the interactions of a run to `folder/RUN/RUN.parquet`, or to `RUN.inter` and `RUN.item` there, with `RUN.json` beside them.

    RUN.json holds the provenance: run, hashes, code version, counts, SHA-256 of the log. Each file appears whole or not at all.
    timestamp: seconds; the agents act after the dataset's last interaction, one second a step. personas: a column for each field (Parquet).
    In RecBole files, line breaks, tabs and double quotes of titles become spaces and single quotes; RecBole's data_path is `folder`.

    Raises DataError for a run without interactions and for external ids that a RecBole file cannot hold, RunStoppedError for a full disk.
    """
    if kind not in ("parquet", "recbole"):
        raise DataError(f"export format {kind!r} is not 'parquet' or 'recbole'")
    if personas and kind == "recbole":
        raise DataError("RecBole interaction files have no persona columns; export personas to parquet")
    summary = store.run(run)
    items, agents = store.items(summary.id), store.agents(summary.id)
    table = interactions_table(store, summary.id, items, agents, personas)
    if not table.num_rows:
        raise DataError(f"run {summary.id} has no interactions to export; choose a simulation with: workbench runs")
    counts = {"interactions": table.num_rows} | {f"{what}s": len(table[f"{what}_id"].unique()) for what in ("user", "item")}
    provenance = asdict(summary) | {"log_hash": store.log_hash(summary.id), "format": kind, "counts": counts}
    target = folder / summary.id / summary.id
    with failures_explained(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        files = _write_parquet(target, table, provenance) if kind == "parquet" else _write_recbole(target, table, items)
        sidecar = target.with_name(f"{target.name}.json")
        with atomic_file(sidecar) as out:
            out.write(json.dumps(provenance | {"files": [f.name for f in files]}, indent=2).encode())
    return Exported(summary.id, (*files, sidecar), table.num_rows)


def interactions_table(
    store: StoreReader, run: str, items: dict[int, ItemRecord], agents: list[AgentRecord], personas: bool = False
) -> pa.Table:
    """The interactions of a run as an Arrow table by user and step, with external ids and titles where its dataset has them."""
    import pyarrow as pa

    taken, start = store.interactions(run), store.last_timestamp(run) + 1
    external = {a.persona.user: a.external or str(a.persona.user) for a in agents}
    shown = [items.get(i) or ItemRecord(str(i), "", ()) for i in taken.item.tolist()]
    columns: dict[str, Any] = {
        "user_id": storable(external[u] for u in taken.user.tolist()),
        "item_id": storable(i.external for i in shown),
        "title": storable(i.title for i in shown),
        "rating": taken.rating,
        "timestamp": taken.step + start,
        "step": taken.step,
        "page": taken.page,
        "position": taken.position,
        "propensity": taken.propensity,
        "feeling": storable(taken.feeling),
        "policy": storable(taken.policy),
        "arm": storable(taken.arm),
    }
    if personas:
        of_user = {a.persona.user: asdict(a.persona) for a in agents}
        for field in ("activity", "conformity", "diversity", "mean_rating", "rating_std", "liked_tags", "disliked_tags"):
            columns[f"persona_{field}"] = pa.array([of_user[u][field] for u in taken.user.tolist()])
    return pa.table(columns)


def _write_parquet(target: Path, table: pa.Table, provenance: dict[str, Any]) -> list[Path]:
    import pyarrow.parquet as pq

    path = target.with_name(f"{target.name}.parquet")
    with atomic_file(path) as out:
        pq.write_table(table.replace_schema_metadata({"workbench": json.dumps(provenance)}), out)
    return [path]


def _write_recbole(target: Path, table: pa.Table, items: dict[int, ItemRecord]) -> list[Path]:
    columns = {
        "user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float", "page": "float", "position": "float",
        "propensity": "float", "policy": "token", "arm": "token",
    }  # fmt: skip
    values = [_tokens(name, table[name].to_pylist()) if kind == "token" else table[name].to_pylist() for name, kind in columns.items()]
    files = [_write_atomic_rows(target, "inter", columns, zip(*values, strict=True))]
    if items:
        ids = _tokens("item_id", [i.external for i in items.values()])
        titles = [_field(i.title) for i in items.values()]
        tags = [" ".join("_".join(_field(tag).split()) for tag in i.tags) for i in items.values()]
        header = {"item_id": "token", "title": "token_seq", "tags": "token_seq"}
        files.append(_write_atomic_rows(target, "item", header, zip(ids, titles, tags, strict=True)))
    return files


def _write_atomic_rows(target: Path, suffix: str, columns: dict[str, str], rows: Iterable[tuple]) -> Path:
    path = target.with_name(f"{target.name}.{suffix}")
    with atomic_file(path) as out:
        out.write(("\t".join(f"{name}:{kind}" for name, kind in columns.items()) + "\n").encode())
        for row in rows:
            out.write(("\t".join(map(str, row)) + "\n").encode())
    return path


def _tokens(column: str, values: list[str]) -> list[str]:
    """Identifiers, unchanged; one that a reader could take apart is refused, since replacing its characters could make two ids one."""
    for value in values:
        if not value.strip() or _UNSAFE.search(value):
            raise DataError(
                f"{column} {value!r} is empty or has a tab, line break or quote, which RecBole files cannot hold; export to parquet"
            )
    return values


def _field(text: str) -> str:
    """A title or tag as one field: readable by readers that honour quotes and by those that do not."""
    return _UNSAFE.sub(lambda m: "'" if m[0] == '"' else " ", text).encode(errors="replace").decode()


def storable(values: Iterable[str]) -> list[str]:
    """Texts that UTF-8 can hold; a lone surrogate becomes a question mark."""
    return [value.encode(errors="replace").decode() for value in values]


@contextmanager
def failures_explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"cannot write the export to {folder} ({error.strerror}); name a folder that can be written") from error
        place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        left = f"{shutil.disk_usage(place).free} bytes free"
        raise RunStoppedError(
            f"no room for the export in {folder} ({left}); earlier files there are whole; make room, then export again"
        ) from error
