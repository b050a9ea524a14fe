"""The event log and its append-only triggers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from workbench.store.migrations.building import big, integer, key, real, refers, refuse_changes, text, unique, word

revision = "0001"
down_revision = None

TABLES = (
    "dataset", "dataset_user", "dataset_item", "run", "run_event", "agent", "page", "exposure", "action", "llm_call", "llm_response",
    "prompt_version", "evaluation", "comparison",
)  # fmt: skip


def upgrade() -> None:
    create_catalogue()
    create_runs()
    create_pages()
    create_llm()
    create_results()
    for table in TABLES:
        refuse_changes(table)


def create_catalogue() -> None:
    op.create_table("dataset", word("hash", 64), text("name"), big("interactions"), big("last_timestamp"), key("dataset", "hash"))
    for table, dense, more in (("dataset_user", "user_id", []), ("dataset_item", "item_id", [text("title"), text("tags")])):
        op.create_table(
            table, word("dataset_hash", 64), integer(dense), text("external"), *more,
            key(table, "dataset_hash", dense), refers(table, ["dataset_hash"], ["dataset.hash"]),
        )  # fmt: skip


def create_runs() -> None:
    op.create_table(
        "run", word("id", 80), word("kind"), text("name"), text("config"), sa.Column("dataset_hash", sa.String(64)),
        sa.Column("split_hash", sa.String(64)), text("code_version"), big("seed"), real("created"),
        key("run", "id"), refers("run", ["dataset_hash"], ["dataset.hash"]),
    )  # fmt: skip
    op.create_table(
        "run_event", integer("id"), word("run_id", 80), real("at"), word("status"), text("message"),
        key("run_event", "id"), refers("run_event", ["run_id"], ["run.id"]),
    )  # fmt: skip
    op.create_index("ix_run_event_run_id", "run_event", ["run_id"])


def create_pages() -> None:
    op.create_table(
        "agent", word("run_id", 80), integer("user_id"), text("policy"), text("persona"),
        key("agent", "run_id", "user_id"), refers("agent", ["run_id"], ["run.id"]),
    )  # fmt: skip
    op.create_table(
        "page", integer("id"), word("run_id", 80), integer("user_id"), integer("number"), text("arm"), text("policy"), word("feeling"),
        word("exit"), text("fallback"), text("calls"), real("at"),
        key("page", "id"), unique("page", "run_id", "user_id", "number"),
        refers("page", ["run_id", "user_id"], ["agent.run_id", "agent.user_id"]),
    )  # fmt: skip
    op.create_table(
        "exposure", integer("page_id"), integer("position"), integer("item_id"), real("score"), real("propensity"),
        key("exposure", "page_id", "position"), refers("exposure", ["page_id"], ["page.id"]), sqlite_with_rowid=False,
    )  # fmt: skip
    op.create_table(
        "action", integer("page_id"), integer("turn"), integer("position"), integer("item_id"), real("rating"), word("feeling"),
        key("action", "page_id", "turn"), unique("action", "page_id", "position"),
        refers("action", ["page_id", "position"], ["exposure.page_id", "exposure.position"]), sqlite_with_rowid=False,
    )  # fmt: skip


def create_llm() -> None:
    op.create_table(
        "llm_call", integer("id"), word("run_id", 80), word("key", 64), text("model"), word("kind"),
        sa.Column("cached", sa.Boolean(), nullable=False), integer("prompt_tokens"), integer("completion_tokens"), integer("retries"),
        real("seconds"), real("cost"), text("error"),
        key("llm_call", "id"), refers("llm_call", ["run_id"], ["run.id"]),
    )  # fmt: skip
    op.create_index("ix_llm_call_run_id", "llm_call", ["run_id"])
    op.create_table(
        "llm_response", word("key", 64), text("model"), text("request"), text("text"), integer("prompt_tokens"),
        integer("completion_tokens"), real("created"), key("llm_response", "key"),
    )  # fmt: skip
    op.create_table(
        "prompt_version", word("id", 16), text("name"), text("text"), sa.Column("parent", sa.String(16)), text("author"), real("created"),
        key("prompt_version", "id"), refers("prompt_version", ["parent"], ["prompt_version.id"]),
    )  # fmt: skip


def create_results() -> None:
    op.create_table(
        "evaluation", integer("id"), word("run_id", 80), text("model"), text("arm"), big("seed"), word("part"), word("metric"),
        real("mean"), real("low"), real("high"), integer("n"), sa.Column("per_user", sa.LargeBinary(), nullable=False),
        word("users_hash", 64),
        key("evaluation", "id"), unique("evaluation", "run_id", "model", "arm", "seed", "part", "metric"),
        refers("evaluation", ["run_id"], ["run.id"]),
    )  # fmt: skip
    op.create_table(
        "comparison", integer("id"), word("run_id", 80), text("model"), text("arm_a"), text("arm_b"), word("part"), word("metric"),
        real("difference"), real("low"), real("high"), real("p"),
        key("comparison", "id"), unique("comparison", "run_id", "model", "arm_a", "arm_b", "part", "metric"),
        refers("comparison", ["run_id"], ["run.id"]),
    )  # fmt: skip


def downgrade() -> None:
    raise NotImplementedError("the first schema has nothing before it; remove the file or the database instead")
