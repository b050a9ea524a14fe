"""Between a library's threads and our loop: results, failures, cancellation, and what is left behind."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from workbench.prompts.crossing import Crossing


async def double(n: int, wait: float = 0.0) -> int:
    await asyncio.sleep(wait)
    return 2 * n


async def fail(error: Exception, wait: float = 0.0) -> int:
    await asyncio.sleep(wait)
    raise error


async def test_questions_of_many_threads_run_in_one_loop_at_a_time() -> None:
    crossing, home = Crossing(), threading.get_ident()

    async def where(n: int) -> tuple[int, int]:
        await asyncio.sleep(0.05)
        return n, threading.get_ident()

    def library() -> list[tuple[int, int]]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda n: crossing.wait(where(n)), range(32)))

    started = time.monotonic()
    assert await crossing.run(library) == [(n, home) for n in range(32)]
    assert time.monotonic() - started < 1.5, "32 waits of .05 s, 8 at a time"


async def test_a_failure_passes_a_library_that_catches_and_stays_the_first() -> None:
    crossing, caught = Crossing(), []

    def library() -> str:
        for error in (KeyError("first"), KeyError("second")):
            try:
                crossing.wait(fail(error))
            except Exception as swallowed:
                caught.append(swallowed)
        return "went on"

    with pytest.raises(KeyError, match="first"):
        await crossing.run(library)
    assert not caught


async def test_even_a_library_that_catches_everything_cannot_hide_it_or_ask_again() -> None:
    crossing, asked = Crossing(), []

    async def ask() -> None:
        asked.append(1)
        raise ValueError("lost")

    def library() -> str:
        for _ in range(5):
            try:
                crossing.wait(ask())
            except BaseException:
                continue
        return "went on"

    with pytest.raises(ValueError, match="lost"):
        await crossing.run(library)
    assert len(asked) == 1


async def test_our_own_code_in_a_library_is_loud() -> None:
    crossing = Crossing()

    def library() -> None:
        try:
            with crossing.loud():
                raise ZeroDivisionError
        except Exception:
            pytest.fail("a library could have caught it")

    with pytest.raises(ZeroDivisionError):
        await crossing.run(library)


async def test_a_failure_keeps_its_cause() -> None:
    crossing, cause = Crossing(), OSError("no route")

    async def down() -> None:
        raise ConnectionError("down") from cause

    with pytest.raises(ConnectionError, match="down") as raised:
        await crossing.run(lambda: crossing.wait(down()))
    assert raised.value.__cause__ is cause


async def test_a_failure_of_the_library_itself_is_its_own() -> None:
    with pytest.raises(ZeroDivisionError):
        await Crossing().run(lambda: 1 // 0)


async def test_what_other_threads_asked_is_waited_for_and_nothing_more_is_begun() -> None:
    crossing, ended, begun = Crossing(), [], []
    go = threading.Event()

    async def slow() -> None:
        await asyncio.sleep(0.2)
        ended.append(1)

    async def late() -> None:
        begun.append(1)

    def straggler() -> None:
        crossing.wait(slow())
        go.wait(5)
        with suppress(BaseException):
            crossing.wait(late())

    thread = threading.Thread(target=straggler)

    def library() -> None:
        thread.start()
        time.sleep(0.05)

    await crossing.run(library)
    assert ended
    go.set()
    await asyncio.to_thread(thread.join)
    assert not begun


async def test_cancelling_ends_the_question_and_the_thread() -> None:
    crossing, left = Crossing(), threading.Event()

    def library() -> None:
        try:
            crossing.wait(double(1, wait=60))
        finally:
            left.set()

    task = asyncio.ensure_future(crossing.run(library))
    await asyncio.sleep(0.1)
    task.cancel()
    started = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left.is_set()
    assert time.monotonic() - started < 5


def test_ctrl_c_does_not_hang() -> None:
    """asyncio.run waits for its threads, which must not wait for a loop that is gone."""

    async def main() -> None:
        crossing = Crossing()
        asyncio.get_running_loop().call_later(0.1, interrupt)
        await crossing.run(lambda: crossing.wait(double(1, wait=60)))

    def interrupt() -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert time.monotonic() - started < 5
