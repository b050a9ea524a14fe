"""Trials of prompts: what a prompt search measured, in the order in which it did."""

from __future__ import annotations

from alembic import op

from workbench.store.migrations.building import integer, key, real, refers, refuse_changes, unique, word

revision = "0003"
down_revision = "0002"

TABLE = "prompt_trial"


def upgrade() -> None:
    op.create_table(
        TABLE, integer("id"), word("run_id", 80), integer("number"), word("prompt_id", 16), word("part"), word("metric"), integer("n"),
        real("mean"), real("low"), real("high"), real("at"),
        key(TABLE, "id"), unique(TABLE, "run_id", "number"), refers(TABLE, ["run_id"], ["run.id"]),
        refers(TABLE, ["prompt_id"], ["prompt_version.id"]),
    )  # fmt: skip
    refuse_changes(TABLE)


def downgrade() -> None:
    raise NotImplementedError("a search's record is not taken back; keep the table, older versions refuse the store")
