"""Who works on a run: a lease that its process renews while it lives, so that a dead process and a second one both show.

All times are the database's, so that processes on several machines read one clock. A process that is killed stops renewing; its lease runs
out and its run is `interrupted`. One that only hung finds, at its next write, that another has taken the run over, and ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import ColumnElement, Connection, Double, cast, extract, func, insert, literal_column, or_, select, update
from sqlalchemy.sql.dml import Update

from recsys_core.errors import HeldError, WorkbenchError
from recsys_core.progress import Progress, silent
from workbench.store.database import Database
from workbench.store.models import LeaseRow

BEAT_SECONDS = 5.0
"""Between two signs of life."""
LEASE_SECONDS = 30.0
"""Without a sign of life after which a run counts as abandoned. A process that hangs for longer loses nothing unless another takes over."""
_LOOK_SECONDS = 0.5


def now(database: Database) -> ColumnElement[float]:
    """The database's clock, in seconds since 1970."""
    if database.file:
        return literal_column("((julianday('now') - 2440587.5) * 86400.0)", Double)
    return cast(extract("epoch", func.clock_timestamp()), Double)


def lapsed(database: Database) -> ColumnElement[bool]:
    """Whether the joined lease has run out; a run without one was never held, or by a version that knew no leases.

    One from the future was given before the clock was put back.
    """
    age = now(database) - func.coalesce(LeaseRow.renewed, 0.0)
    return func.abs(age) > LEASE_SECONDS


def first_lease(connection: Connection, database: Database, run: str, holder: str) -> None:
    """The lease of a run that begins."""
    connection.execute(insert(LeaseRow).values(run_id=run, holder=holder, renewed=now(database)))


def check_held(connection: Connection, run: str, holder: str) -> None:
    """Raises HeldError where a run is no longer the holder's; on PostgreSQL nobody can take it until the transaction ends."""
    mine = select(LeaseRow.run_id).where(LeaseRow.run_id == run, LeaseRow.holder == holder).with_for_update(read=True)
    if connection.execute(mine).first() is None:
        raise HeldError(f"this process was not heard of for {LEASE_SECONDS:.0f} s, and another one has taken run {run} over")


@contextmanager
def held(database: Database, run: str, holder: str, progress: Progress = silent) -> Iterator[None]:
    """Takes the lease of a run and renews it until the end, in a thread.

    Raises HeldError where another process renews it. Where one has it and gives no sign, waits until the lease has run out.
    """
    _take(database, run, holder, progress)
    done = threading.Event()
    thread = threading.Thread(target=_renew, args=(database, run, holder, done), name=f"lease of {run}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        # Best effort: where the store is the trouble, the first error matters, and the lease runs out by itself.
        with suppress(WorkbenchError), database.write() as connection:
            connection.execute(_mine(run, holder).values(renewed=0.0))


def _take(database: Database, run: str, holder: str, progress: Progress) -> None:
    seen: float | None = None
    start = time.monotonic()
    while True:
        with database.write() as connection:
            free = or_(LeaseRow.holder == holder, lapsed(database))
            taken = update(LeaseRow).where(LeaseRow.run_id == run, free).values(holder=holder, renewed=now(database))
            if connection.execute(taken).rowcount:
                return None
            renewed = connection.execute(select(LeaseRow.renewed).where(LeaseRow.run_id == run)).scalar()
            if renewed is None:
                return first_lease(connection, database, run, holder)
        if seen is not None and renewed != seen:
            raise HeldError(
                f"another process works on run {run}: it has just given a sign of life; wait for it, or end it "
                f"(one that was killed is forgotten after {LEASE_SECONDS:.0f} s)"
            )
        seen = renewed
        progress(0.0, f"whether another process works on {run} shows within {LEASE_SECONDS - time.monotonic() + start:.0f} s")
        time.sleep(_LOOK_SECONDS)


def _renew(database: Database, run: str, holder: str, done: threading.Event) -> None:
    while not done.wait(BEAT_SECONDS):
        # A store that cannot be written now may be so again before the lease has run out, and is the main thread's to complain about.
        with suppress(WorkbenchError), database.write() as connection:
            if not connection.execute(_mine(run, holder).values(renewed=now(database))).rowcount:
                return


def _mine(run: str, holder: str) -> Update:
    return update(LeaseRow).where(LeaseRow.run_id == run, LeaseRow.holder == holder)
