"""Any of DSPy's optimizers, by name: MIPROv2 (Opsahl-Ong et al. 2024, arXiv 2406.11695), COPRO, BootstrapFewShot and others."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from inspect import signature
from typing import TYPE_CHECKING, Any, TextIO

from recsys_core.errors import DataError, missing_extra, unknown_name
from workbench.prompts.components.examples import teachers
from workbench.prompts.crossing import Crossing
from workbench.prompts.optimizer import Outcome
from workbench.prompts.optimizers.conclusion import FINALISTS, conclude
from workbench.prompts.proposing import Proposer, ProposerError
from workbench.prompts.templates import Template
from workbench.prompts.trials import Trials

if TYPE_CHECKING:
    from workbench.prompts.dspy_bridge import Bench

_COMPILE: Mapping[str, Mapping[str, Any]] = {"MIPROv2": {"program_aware_proposer": False}}
"""Defaults that differ from DSPy's: our program is a bridge, and its source says nothing of the task."""


class DSPy:
    """Runs one of DSPy's optimizers on the template as a program (see `dspy_bridge`) and brings the result back as a template.

    DSPy learns on train rows that may be shown (`teachers`) and, if it takes a validation set, selects on the search rows; it reaches no
    others. Its prompt model is the proposer. Instructions come back as the task section, demonstrations as worked examples behind it; what
    is shown of items stays as it is. An instruction that breaks the template scores 0.

    optimizer: a class of `dspy`; settings and compile: its own arguments and those of its `compile`. Metric, data, model, threads and seed
    are given by us. threads: rows in flight. The bound on what it spends is its own settings and the budget of the clients.
    Raises UnavailableError without the package (extra `dspy`), UnknownNameError for an unknown optimizer, and DataError for its settings.
    """

    def __init__(
        self,
        proposer: Proposer,
        optimizer: str = "MIPROv2",
        settings: Mapping[str, Any] | None = None,
        compile: Mapping[str, Any] | None = None,
        threads: int = 8,
        seed: int = 0,
    ) -> None:
        if threads < 1:
            raise DataError(f"threads is {threads}; give at least 1")
        for package in ("dspy", "optuna") if optimizer == "MIPROv2" else ("dspy",):
            if find_spec(package) is None:
                raise missing_extra(package, "dspy", f"optimizer {optimizer!r} of dspy")
        self.proposer, self.optimizer, self.threads, self.seed = proposer, optimizer, threads, seed
        self._settings, self._compile = dict(settings or {}), dict(compile or {})
        import dspy

        with _quiet(), dspy.context(lm=dspy.LM("proposer")):  # some want a model to be there; it is not asked
            takes = signature(self._made().compile).parameters
        if unknown := sorted(set(self._compile) - set(takes)):
            raise DataError(f"compile of dspy's {optimizer} does not take {unknown[0]!r}; it takes {', '.join(takes)}")

    @property
    def name(self) -> str:
        """See Optimizer."""
        return f"dspy-{self.optimizer.lower()}"

    async def search(self, trials: Trials) -> Outcome:
        """See Optimizer. Raises DataError where no train row can be shown, and ProposerError where DSPy cannot use what was proposed."""
        from workbench.prompts.dspy_bridge import Bench, ProposerEngine

        if not teachers(trials.train, trials.search, self.seed):
            raise DataError("no train row can be shown; give the task some with a history and a choice, of users who are not searched by")
        crossing = Crossing()
        bench, engine = Bench(crossing, trials, self.name, self.seed), ProposerEngine(crossing, self.proposer)
        best = await crossing.run(lambda: self._run(bench, engine))
        whole = [t for t in bench.templates if set(trials.known(t)) >= {row.id for row in trials.search}]
        note = f"{sum(engine.asked.values())} questions to the proposer, {len(bench.templates)} templates, {len(trials.rejected)} refused"
        return await conclude(trials, [*best, *whole], note)

    def _run(self, bench: Bench, engine: Any) -> list[Template]:
        """In DSPy's thread: the compiled program and the best of those it kept beside it, as templates."""
        import dspy

        from workbench.prompts.dspy_bridge import RankProgram, examples

        start, trials = bench.trials.start, bench.trials
        data = {
            "trainset": examples(teachers(trials.train, trials.search, self.seed), start),
            "valset": examples(trials.search, start),
            "eval_kwargs": {"num_threads": self.threads, "display_progress": False},
        }
        with _quiet(), dspy.context(lm=engine.model(), disable_history=True, max_errors=1):
            made = self._made()
            given = {name: value for name, value in data.items() if name in signature(made.compile).parameters}
            try:
                program = made.compile(RankProgram(bench), **given, **_COMPILE.get(self.optimizer, {}), **self._compile)
            except (TypeError, ValueError) as error:
                raise DataError(f"dspy's {self.optimizer} does not take these rows and settings: {_line(error)}") from error
            except Exception as error:
                raise ProposerError(f"dspy's {self.optimizer} gave up: {_line(error)}; run again to resume") from error
        beside = [kept["program"] for kept in getattr(program, "candidate_programs", [])]
        found: list[Template] = []
        for candidate in (program, *beside[:FINALISTS]):
            try:
                found.append(candidate.template)
            except DataError:
                continue  # refused, which the trials know
        return found

    def _made(self) -> Any:
        """DSPy's optimizer, with what we have to give among the arguments that it takes."""
        import dspy
        from dspy.teleprompt import Teleprompter

        from workbench.prompts.dspy_bridge import metric

        known = {name: kind for name, kind in vars(dspy).items() if isinstance(kind, type) and issubclass(kind, Teleprompter)}
        if self.optimizer not in known:
            raise unknown_name("optimizer of dspy", self.optimizer, known)
        kind = known[self.optimizer]
        ours = {"metric": metric, "num_threads": self.threads, "max_errors": 1, "seed": self.seed}
        takes = signature(kind).parameters
        rest = any(taken.kind is taken.VAR_KEYWORD for taken in takes.values())  # what a parent class takes: the metric, at least
        given = {name: value for name, value in ours.items() if name in takes or (name == "metric" and rest)}
        try:
            return kind(**given | self._settings)
        except (TypeError, ValueError) as error:
            raise DataError(f"settings {self._settings} of dspy's {self.optimizer}: {_line(error)}") from None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class _Muted:
    """A stream without what one thread writes to it."""

    def __init__(self, stream: TextIO, thread: int) -> None:
        self._stream, self._thread = stream, thread

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """DSPy prints and draws bars on stdout, where a report goes, and stderr; this thread's is left out, and DSPy's logging."""
    from dspy.utils.logging_utils import DSPY_LOGGING_STREAM as LOG

    before, logged = (sys.stdout, sys.stderr), LOG.enabled
    muted = tuple(_Muted(stream, threading.get_ident()) for stream in before)
    sys.stdout, sys.stderr = muted
    LOG.enabled = False
    try:
        yield
    finally:
        LOG.enabled = logged
        for name, ours, theirs in zip(("stdout", "stderr"), muted, before, strict=True):
            if getattr(sys, name) is ours:  # else somebody redirected it meanwhile
                setattr(sys, name, theirs)
