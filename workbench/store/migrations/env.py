"""Alembic's entry: migrates over the connection, and inside the transaction, that `workbench.store.schema` hands in."""

from alembic import context

from workbench.store.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
