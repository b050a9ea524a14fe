"""Throughput of the embedded chat model: chat with distinct prompts, schema-held answers, and scores of given continuations."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Sequence
from typing import Any

import numpy as np

from agents.chat import ChatClient, ChatRequest, Message, ScoreRequest, connect
from agents.prompts import reaction_schema
from benchmarks.common import arguments, report

WORDS = (
    "time",
    "film",
    "place",
    "hand",
    "part",
    "child",
    "eye",
    "woman",
    "life",
    "work",
    "week",
    "case",
    "point",
    "company",
    "number",
    "day",
)


def prompt(rng: np.random.Generator, words: int) -> str:
    """Distinct text of about one token a word."""
    return " ".join(rng.choice(WORDS, words))


async def timed(title: str, calls: Sequence[Awaitable[Any]], client: ChatClient) -> dict[str, Any]:
    before = client.counts.prompt_tokens, client.counts.completion_tokens
    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*calls)
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    return {
        "what": title,
        "calls": len(calls),
        "prompt tokens a call": round((client.counts.prompt_tokens - before[0]) / len(calls)),
        "output tokens a call": round((client.counts.completion_tokens - before[1]) / len(calls)),
        "calls/s": len(calls) / wall,
        "CPU s a call": used / len(calls),
    }


async def main() -> None:
    options = arguments(__doc__).parse_args()
    rng = np.random.default_rng(0)
    client = connect("embedded", timeout=600)
    await client.ask(ChatRequest((Message("user", "Hello"),), max_tokens=4))
    rows = []
    for repeat in range(3):
        chats = [ChatRequest((Message("user", prompt(rng, 125)),), max_tokens=20, seed=repeat) for _ in range(64)]
        rows.append(await timed("chat, 150 + 20 tokens, 64 at once", [client.ask(c) for c in chats], client))
    held = [ChatRequest((Message("user", prompt(rng, 125)),), reaction_schema(3, (1.0, 2.0, 3.0, 4.0, 5.0)), 40) for _ in range(64)]
    rows.append(await timed("page reaction held to its schema", [client.ask(c) for c in held], client))
    titles = tuple(f" {prompt(rng, 5)}" for _ in range(10))
    scores = [ScoreRequest(prompt(rng, 60), titles, "Someone also loved") for _ in range(64)]
    rows.append(await timed("score of 10 titles after 60 words", [client.score(s) for s in scores], client))
    for row in rows:
        row["peak RSS MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    report("embedded chat model", rows, options.csv)


if __name__ == "__main__":
    asyncio.run(main())
