"""Brings a database to the schema of this code, once, whoever opens it first."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from recsys_core.errors import DataError
from workbench.store.database import Database

HEAD = "0004"
"""Newest schema revision; revisions are numbered in the order in which they were made."""
MIGRATIONS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 7_165_502_873_640_011
"""Any constant: it tells our lock on a PostgreSQL server from those of others."""


def ensure_schema(database: Database) -> None:
    """Creates or upgrades the tables; one query where they are current already.

    The upgrade is one transaction under the database's own write lock, so a process that comes second waits and finds it done,
    and one that is killed leaves the old schema. Raises DataError for a database of something else or of a newer version, and
    for an older one that can only be read.
    """
    with database.read() as connection:
        if (found := _version(connection, database.where)) == HEAD:
            return
    if database.read_only:
        raise DataError(
            f"store {database.where} has schema {found or 'none'}, this version reads {HEAD} and cannot upgrade what it cannot write; "
            "make file and folder writable, or copy the store to where they are"
        )
    with database.write() as connection:
        if not database.file:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        if _version(connection, database.where) != HEAD:
            _upgrade(connection)


def _version(connection: Connection, where: str) -> str:
    """The schema revision of a store, or an empty string for an empty database."""
    tables = inspect(connection).get_table_names()
    if not tables:
        return ""
    versions = list(connection.execute(text("SELECT version_num FROM alembic_version")).scalars()) if "alembic_version" in tables else []
    if len(versions) != 1 or not versions[0].isdigit() or "run" not in tables:
        raise DataError(f"{where} is a database of something else (tables {', '.join(sorted(tables)[:3])}, ...); name another --store")
    if versions[0] > HEAD:
        raise DataError(f"store {where} has schema {versions[0]}, this version knows up to {HEAD}; upgrade recsys-workbench")
    return str(versions[0])


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
