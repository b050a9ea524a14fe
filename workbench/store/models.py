"""The tables of the store: an append-only log of what ran, who saw what, and what was measured.

Rows are only ever inserted; triggers made by the migrations refuse UPDATE and DELETE on every table but `run_lease`, which is no record.
A run's state is therefore its last `run_event`, never a changed row. Dense ids are kept beside one dictionary a dataset hash, so that
external ids and titles can be shown without the dataset at hand. All times are seconds since 1970 (UTC).
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from sqlalchemy import BigInteger, Dialect, Double, ForeignKey, ForeignKeyConstraint, LargeBinary, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

_UNSAFE = re.compile("[\x00\x1b\ud800-\udfff]")
_ESCAPED = re.compile("\x1b([0-9a-f]{4})")


class AnyText(TypeDecorator[str]):
    """Any Python string, exactly. NUL and lone surrogates, which databases refuse and models produce, are kept as ESC + four hex digits."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else _UNSAFE.sub(lambda m: f"\x1b{ord(m[0]):04x}", value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else _ESCAPED.sub(lambda m: chr(int(m[1], 16)), value)


class Json(TypeDecorator[Any]):
    """A JSON value as ASCII text, the same on every database; unlike native JSON columns it keeps NaN, which an unrated persona has."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


Id = Annotated[int, mapped_column(primary_key=True)]
RunId = Annotated[str, mapped_column(String(80), ForeignKey("run.id"))]
DatasetHash = Annotated[str, mapped_column(String(64), ForeignKey("dataset.hash"), primary_key=True)]
Name = Annotated[str, mapped_column(AnyText)]
Word = Annotated[str, mapped_column(String(32))]
Real = Annotated[float, mapped_column(Double)]


class Base(DeclarativeBase):
    """Base of all tables; constraint names follow one rule so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class DatasetRow(Base):
    """A dataset that some run used, by content hash; written once with its two dictionaries. last_timestamp: of its log, in seconds."""

    __tablename__ = "dataset"
    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[Name]
    interactions: Mapped[int] = mapped_column(BigInteger)
    last_timestamp: Mapped[int] = mapped_column(BigInteger)


class DatasetUser(Base):
    """Dense to external user id."""

    __tablename__ = "dataset_user"
    dataset_hash: Mapped[DatasetHash]
    user_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    external: Mapped[Name]


class DatasetItem(Base):
    """Dense to external item id, title (empty where the source has none) and tags (JSON list)."""

    __tablename__ = "dataset_item"
    dataset_hash: Mapped[DatasetHash]
    item_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    external: Mapped[Name]
    title: Mapped[Name]
    tags: Mapped[Any] = mapped_column(Json)


class Run(Base):
    """One run and all that is needed to repeat it. config: the full resolved configuration."""

    __tablename__ = "run"
    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    kind: Mapped[Word]
    name: Mapped[Name]
    config: Mapped[Any] = mapped_column(Json)
    dataset_hash: Mapped[str | None] = mapped_column(String(64), ForeignKey("dataset.hash"))
    split_hash: Mapped[str | None] = mapped_column(String(64))
    code_version: Mapped[Name]
    seed: Mapped[int] = mapped_column(BigInteger)
    created: Mapped[Real]


class RunEvent(Base):
    """A change of a run's state: started, resumed, finished, stopped or failed."""

    __tablename__ = "run_event"
    id: Mapped[Id]
    run_id: Mapped[RunId] = mapped_column(index=True)
    at: Mapped[Real]
    status: Mapped[Word]
    message: Mapped[Name]


class LeaseRow(Base):
    """Who works on a run (`workbench.store.lease`). renewed: its last sign of life by the database's clock, 0 once it was given up."""

    __tablename__ = "run_lease"
    run_id: Mapped[RunId] = mapped_column(primary_key=True)
    holder: Mapped[Word]
    renewed: Mapped[Real]


class Agent(Base):
    """A simulated user of a run."""

    __tablename__ = "agent"
    run_id: Mapped[RunId] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    policy: Mapped[Name]
    persona: Mapped[Any] = mapped_column(Json)


class Page(Base):
    """One page of one agent and how it was left; calls: keys of the model calls behind the decision."""

    __tablename__ = "page"
    __table_args__ = (
        UniqueConstraint("run_id", "user_id", "number"),
        ForeignKeyConstraint(["run_id", "user_id"], ["agent.run_id", "agent.user_id"]),
    )
    id: Mapped[Id]
    run_id: Mapped[str] = mapped_column(String(80))
    user_id: Mapped[int]
    number: Mapped[int]
    arm: Mapped[Name]
    policy: Mapped[Name]
    feeling: Mapped[Word]
    exit: Mapped[Word]
    fallback: Mapped[Name]
    calls: Mapped[Any] = mapped_column(Json)
    at: Mapped[Real]


class ExposureRow(Base):
    """One item shown, position from 0."""

    __tablename__ = "exposure"
    __table_args__ = ({"sqlite_with_rowid": False},)
    page_id: Mapped[int] = mapped_column(ForeignKey("page.id"), primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    item_id: Mapped[int]
    score: Mapped[Real]
    propensity: Mapped[Real]


class ActionRow(Base):
    """One item taken. turn: its place, from 0, in the order in which the agent took items of the page."""

    __tablename__ = "action"
    __table_args__ = (
        ForeignKeyConstraint(["page_id", "position"], ["exposure.page_id", "exposure.position"]),
        UniqueConstraint("page_id", "position"),
        {"sqlite_with_rowid": False},
    )
    page_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    turn: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    position: Mapped[int]
    item_id: Mapped[int]
    rating: Mapped[Real]
    feeling: Mapped[Word]


class LlmCall(Base):
    """One dispatched or cached question of a run."""

    __tablename__ = "llm_call"
    id: Mapped[Id]
    run_id: Mapped[RunId] = mapped_column(index=True)
    key: Mapped[str] = mapped_column(String(64))
    model: Mapped[Name]
    kind: Mapped[Word]
    cached: Mapped[bool]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    retries: Mapped[int]
    seconds: Mapped[Real]
    cost: Mapped[Real]
    error: Mapped[Name]


class LlmResponse(Base):
    """The response cache: an answer by the content address of its question."""

    __tablename__ = "llm_response"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[Name]
    request: Mapped[Any] = mapped_column(Json)
    text: Mapped[Name]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    created: Mapped[Real]


class PromptRow(Base):
    """A version of a named prompt; its id is a hash of name, text and parent."""

    __tablename__ = "prompt_version"
    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[Name]
    text: Mapped[Name]
    parent: Mapped[str | None] = mapped_column(String(16), ForeignKey("prompt_version.id"))
    author: Mapped[Name]
    created: Mapped[Real]


class OpeningRow(Base):
    """A look at a sealed test split, written before the rows are given out. template: a prompt version, empty where there is none."""

    __tablename__ = "test_opening"
    id: Mapped[Id]
    task: Mapped[Name]
    task_hash: Mapped[str] = mapped_column(String(64))
    test_hash: Mapped[str] = mapped_column(String(64), index=True)
    template: Mapped[Name]
    who: Mapped[Name]
    reason: Mapped[Name]
    at: Mapped[Real]


class TrialRow(Base):
    """One template of a prompt search on some rows of a part (`train`, `search`, `fresh`, `test`): the metric's mean with its interval."""

    __tablename__ = "prompt_trial"
    __table_args__ = (UniqueConstraint("run_id", "number"),)
    id: Mapped[Id]
    run_id: Mapped[RunId]
    number: Mapped[int]
    prompt_id: Mapped[str] = mapped_column(String(16), ForeignKey("prompt_version.id"))
    part: Mapped[Word]
    metric: Mapped[Word]
    n: Mapped[int]
    mean: Mapped[Real]
    low: Mapped[Real]
    high: Mapped[Real]
    at: Mapped[Real]


class EvaluationRow(Base):
    """One metric of one model: mean with interval, and the per-user values (float32, little endian) behind it."""

    __tablename__ = "evaluation"
    __table_args__ = (UniqueConstraint("run_id", "model", "arm", "seed", "part", "metric"),)
    id: Mapped[Id]
    run_id: Mapped[RunId]
    model: Mapped[Name]
    arm: Mapped[Name]
    seed: Mapped[int] = mapped_column(BigInteger)
    part: Mapped[Word]
    metric: Mapped[Word]
    mean: Mapped[Real]
    low: Mapped[Real]
    high: Mapped[Real]
    n: Mapped[int]
    per_user: Mapped[bytes] = mapped_column(LargeBinary)
    users_hash: Mapped[str] = mapped_column(String(64))


class ComparisonRow(Base):
    """A paired comparison of two arms of one model: difference (b - a) with interval and p-value."""

    __tablename__ = "comparison"
    __table_args__ = (UniqueConstraint("run_id", "model", "arm_a", "arm_b", "part", "metric"),)
    id: Mapped[Id]
    run_id: Mapped[RunId]
    model: Mapped[Name]
    arm_a: Mapped[Name]
    arm_b: Mapped[Name]
    part: Mapped[Word]
    metric: Mapped[Word]
    difference: Mapped[Real]
    low: Mapped[Real]
    high: Mapped[Real]
    p: Mapped[Real]
