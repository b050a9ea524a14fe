"""Leases: who works on a run. Their rows change, alone in the store: they are no record of anything."""

from __future__ import annotations

from alembic import op

from workbench.store.migrations.building import key, real, refers, word

revision = "0004"
down_revision = "0003"

TABLE = "run_lease"


def upgrade() -> None:
    op.create_table(
        TABLE, word("run_id", 80), word("holder"), real("renewed"), key(TABLE, "run_id"), refers(TABLE, ["run_id"], ["run.id"])
    )  # fmt: skip


def downgrade() -> None:
    raise NotImplementedError("older versions refuse the store; go on with this one")
