"""A bound on tokens, cost, calls and wall time that no run can pass, however many questions are in flight.

Before a question is sent, the most it could use is reserved; afterwards what it did use is settled. A question that would not fit even
if everything in flight turned out free is refused; one that fits only if others use less than they reserved waits for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from recsys_core.errors import DataError, RunStoppedError


class BudgetExceeded(RunStoppedError):  # noqa: N818 - reads as what happened
    """The next question could pass a bound; nothing was sent. Names what, the bound, what is used and what is reserved."""


@dataclass(frozen=True)
class Amount:
    """What a question uses: tokens in and out, US dollars, calls sent."""

    tokens: int = 0
    cost: float = 0.0
    calls: int = 1


@dataclass(eq=False)
class Budget:
    """Bounds of one run; None leaves a quantity free.

    tokens: prompt and completion together; cost: US dollars; calls: calls sent, retries too; wall: seconds from the first question.
    used: so far; a resumed run begins with what it had used.
    Belongs to one event loop; several clients may share it.
    """

    tokens: int | None = None
    cost: float | None = None
    calls: int | None = None
    wall: float | None = None
    clock: Callable[[], float] = time.monotonic
    used: Amount = Amount(calls=0)
    reserved: Amount = field(default=Amount(calls=0), init=False)
    _started: float | None = field(default=None, init=False)
    _waiting: set[asyncio.Future[None]] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        for name in ("tokens", "cost", "calls", "wall"):
            bound = getattr(self, name)
            if bound is not None and not bound >= 0:
                raise DataError(f"budget {name} is {bound}; give a number >= 0, or leave it out for no bound")

    @property
    def seconds_left(self) -> float:
        """Wall seconds until the bound; infinite without one. The clock starts at the first call of this or `reserve`."""
        if self._started is None:
            self._started = self.clock()
        return float("inf") if self.wall is None else self.wall - (self.clock() - self._started)

    async def reserve(self, most: Amount) -> None:
        """Sets aside the most a question could use; waits where open questions may still free enough. Raises BudgetExceeded."""
        while True:
            if self.seconds_left <= 0:
                self.refuse_wall()
            tight = [name for name in ("tokens", "cost", "calls") if self._over(name, most)]
            for name in tight:
                if self._over(name, most, reserved=False):
                    self._refuse(name, most)
            if not tight:
                self.reserved = _plus(self.reserved, most)
                return
            await self._change()

    def settle(self, reserved: Amount, used: Amount) -> None:
        """Returns a reservation and books what was used."""
        self.reserved = _plus(self.reserved, reserved, -1)
        self.used = _plus(self.used, used)
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def refuse_wall(self) -> NoReturn:
        """Raises the error of a run that is out of time."""
        raise BudgetExceeded(f"wall-time budget of {self.wall:g} s is spent; raise it and run again, stored answers are reused")

    def _over(self, name: str, most: Amount, reserved: bool = True) -> bool:
        bound = getattr(self, name)
        taken = getattr(self.used, name) + (getattr(self.reserved, name) if reserved else 0)
        return bound is not None and taken + getattr(most, name) > bound

    def _refuse(self, name: str, most: Amount) -> NoReturn:
        bound, used, held, need = (getattr(x, name) for x in (self, self.used, self.reserved, most))
        raise BudgetExceeded(
            f"{name} budget of {bound:g} would be passed: {used:g} used, {held:g} reserved, the next question may take {need:g}; "
            f"raise it and run again, stored answers are reused"
        )

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        left = self.seconds_left
        try:
            await asyncio.wait_for(waiter, None if left == float("inf") else max(left, 0.0))
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(waiter)


def _plus(a: Amount, b: Amount, sign: int = 1) -> Amount:
    return Amount(a.tokens + sign * b.tokens, a.cost + sign * b.cost, a.calls + sign * b.calls)
