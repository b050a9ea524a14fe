"""The embedded model as a service inside the process: one worker thread, questions from any thread, answers as futures.

Questions that arrive within a few milliseconds of each other share a batch; later ones join the running batch as slots fall free.
Rounding depends on the batch's shape, so an answer can differ in its last bits with its neighbours: the response cache, not the engine, is
what makes a run repeat exactly.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agents.chat.constrain import Guides
from agents.chat.decode import Decoder, Row
from agents.chat.likelihood import PASS_NODES, Tree, log_likelihoods, tree
from agents.chat.model import load, native_dtype
from agents.chat.text import Text
from agents.chat.types import Message, ScoreRequest
from recsys_core.errors import DataError, UnavailableError
from recsys_core.language.decoder import fingerprint

_GATHER_SECONDS = 0.005
_EMPTY_KEPT = 65536
"""Scores after an empty context that are kept; agents share them."""


@dataclass(frozen=True)
class Completion:
    """A generated answer. complete: False where `max_tokens` cut it."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    complete: bool


@dataclass(frozen=True)
class Scored:
    """Scores in the order of the continuations (PMI where the request has an empty context), and the tokens read for them."""

    scores: tuple[float, ...]
    tokens: int


@dataclass(eq=False)
class _Chat:
    row: Row
    future: Future[Completion]


@dataclass(eq=False)
class _Score:
    request: ScoreRequest
    trees: list[Tree]
    known: list[float | None]
    future: Future[Scored]

    @property
    def nodes(self) -> int:
        return sum(t.nodes for t in self.trees)


class Engine:
    """A causal language model behind a queue.

    folder: `config.json`, `model.safetensors` and `tokenizer.json` of a Hugging Face model whose turns are ChatML (SmolLM2, Qwen);
    slots: largest batch; context: longest prompt plus answer in tokens.
    """

    def __init__(self, folder: Path, dtype: torch.dtype | None = None, slots: int = 16, context: int = 2048) -> None:
        self.fingerprint, self.dtype = fingerprint(folder), dtype or native_dtype()
        self.text = Text(folder / "tokenizer.json")
        self._model = load(folder, self.dtype)
        self.context = min(context, self._model.config.max_position_embeddings)
        self._guides = Guides(self.text, self._model.config.vocab_size)
        self._decoder = Decoder(self._model, self._guides, slots)
        self._inbox: queue.SimpleQueue[_Chat | _Score | None] = queue.SimpleQueue()
        self._chats: deque[_Chat] = deque()
        self._scores: deque[_Score] = deque()
        self._running: dict[Row, _Chat] = {}
        self._empty: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="embedded-model", daemon=True)
        self._worker.start()

    def chat(
        self,
        messages: Sequence[Message],
        *,
        schema: dict[str, Any] | None = None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Future[Completion]:
        """Asks; cancelling the future takes the question out of the batch. Raises DataError for what can never be answered."""
        if max_tokens < 1 or temperature < 0:
            raise DataError(f"max_tokens is {max_tokens} and temperature {temperature}; give at least 1 token and a temperature >= 0")
        prompt = self.text.conversation(messages)
        if len(prompt) + max_tokens > self.context:
            raise DataError(f"prompt of {len(prompt)} tokens + {max_tokens} for the answer exceed the embedded model's {self.context}")
        future: Future[Completion] = Future()
        guide = self._guides.start(schema) if schema is not None else None
        self._put(_Chat(Row(prompt, max_tokens, temperature, seed, guide, frozenset(self.text.stops), future.cancelled), future))
        return future

    def score(self, request: ScoreRequest) -> Future[Scored]:
        """Log-likelihood of each continuation after the prompt in nats, less that after `empty` where the request has one (PMI)."""
        known: list[float | None] = [None] * len(request.continuations)
        if request.empty is not None:
            known = [self._empty.get((request.empty, c)) for c in request.continuations]
        trees = [tree(self.text, request.prompt, request.continuations)]
        unknown = [c for c, value in zip(request.continuations, known, strict=True) if value is None]
        if request.empty is not None and unknown:
            trees.append(tree(self.text, request.empty, unknown))
        longest = max(t.nodes for t in trees)
        if longest > 2 * self.context:
            raise DataError(
                f"prompt and continuations come to {longest} tokens, over {2 * self.context}; score fewer continuations a request"
            )
        future: Future[Scored] = Future()
        self._put(_Score(request, trees, known, future))
        return future

    def close(self) -> None:
        """Stops the worker after its current step; open questions fail with UnavailableError."""
        self._closed = True
        self._inbox.put(None)
        self._worker.join()

    def _put(self, job: _Chat | _Score) -> None:
        if self._closed:
            raise UnavailableError("the embedded model was closed; connect again")
        self._inbox.put(job)

    def _work(self) -> None:
        with torch.inference_mode():
            while self._gather():
                try:
                    self._turn()
                except Exception as error:  # a defect here must reach those who wait, not only this thread
                    self._fail(error)
        self._fail(UnavailableError("the embedded model was closed; connect again"))

    def _gather(self) -> bool:
        """Takes what has arrived; blocks while there is nothing to do. False once closed."""
        idle = not (self._running or self._chats or self._scores)
        wait: float | None = None if idle else 0.0
        while len(self._chats) < len(self._decoder.held):
            try:
                job = self._inbox.get(block=wait != 0.0, timeout=wait)
            except queue.Empty:
                break
            if job is None:
                return False
            if isinstance(job, _Chat):
                self._chats.append(job)
            else:
                self._scores.append(job)
            wait = _GATHER_SECONDS if idle else 0.0
        return not self._closed

    def _turn(self) -> None:
        """One scoring pass, then one step of the running batch with newcomers let in."""
        if self._scores:
            self._score_some()
        new: list[_Chat] = []
        while self._chats and len(new) < self._decoder.free:
            chat = self._chats.popleft()
            if not chat.future.cancelled():
                new.append(chat)
        self._running.update({c.row: c for c in new})
        finished = self._decoder.admit([c.row for c in new]) if new else []
        finished += self._decoder.step()
        for row in finished:
            complete = len(row.out) < row.max_tokens or bool(row.guide and row.guide.finished)
            answer = Completion(self.text.decode(row.out), len(row.prompt), len(row.out), complete)
            _resolve(self._running.pop(row).future, row.error or answer)
        self._running = {row: c for row, c in self._running.items() if row in self._decoder.rows}

    def _score_some(self) -> None:
        jobs: list[_Score] = []
        nodes = 0
        while self._scores and (not jobs or nodes + self._scores[0].nodes <= PASS_NODES):
            job = self._scores.popleft()
            if not job.future.cancelled():
                jobs.append(job)
                nodes += job.nodes
        try:
            results = iter(log_likelihoods(self._model, [t for job in jobs for t in job.trees]))
            for job in jobs:
                _resolve(job.future, self._finish(job, [next(results) for _ in job.trees]))
        except Exception as error:  # these jobs left the queue already, so `_fail` cannot reach them
            for job in jobs:
                _resolve(job.future, error)

    def _finish(self, job: _Score, results: list[list[float]]) -> Scored:
        tokens = sum(t.nodes for t in job.trees)
        if job.request.empty is None:
            return Scored(tuple(results[0]), tokens)
        fresh = iter(results[1] if len(results) > 1 else [])
        scores = []
        for continuation, likelihood, known in zip(job.request.continuations, results[0], job.known, strict=True):
            base = next(fresh) if known is None else known
            self._empty[job.request.empty, continuation] = base
            self._empty.move_to_end((job.request.empty, continuation))
            scores.append(likelihood - base)
        while len(self._empty) > _EMPTY_KEPT:
            self._empty.popitem(last=False)
        return Scored(tuple(scores), tokens)

    def _fail(self, error: Exception) -> None:
        self._decoder.rows.clear()
        arrived = [self._inbox.get() for _ in range(self._inbox.qsize())]
        for job in (*self._running.values(), *self._chats, *self._scores, *arrived):
            if job is not None:
                _resolve(job.future, error)
        self._running.clear()
        self._chats.clear()
        self._scores.clear()


def _resolve(future: Future[Any], result: object) -> None:
    """Gives a result or an error to a future that may have been cancelled meanwhile."""
    try:
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
    except InvalidStateError:
        pass
