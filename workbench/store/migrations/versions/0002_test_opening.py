"""Openings of sealed test splits, append-only as all else."""

from __future__ import annotations

from alembic import op

from workbench.store.migrations.building import integer, key, real, refuse_changes, text, word

revision = "0002"
down_revision = "0001"

TABLE = "test_opening"


def upgrade() -> None:
    op.create_table(
        TABLE, integer("id"), text("task"), word("task_hash", 64), word("test_hash", 64), text("template"), text("who"), text("reason"),
        real("at"), key(TABLE, "id"),
    )  # fmt: skip
    op.create_index(f"ix_{TABLE}_test_hash", TABLE, ["test_hash"])
    refuse_changes(TABLE)


def downgrade() -> None:
    raise NotImplementedError("a journal is not taken back; keep the table, older versions refuse the store")
