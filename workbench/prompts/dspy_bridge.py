"""A template as a DSPy program (Khattab et al. 2024, arXiv 2310.03714), so that DSPy's optimizers can rewrite and demonstrate it.

DSPy sees one predictor. Its instructions are the template's task, its demonstrations are train rows, and calling it ranks one row by the
template that both make, through `Trials`: what DSPy measures is what is used later, DSPy's own prompt format is not in between.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, Usage

from recsys_core.errors import DataError
from workbench.prompts.components.examples import worked
from workbench.prompts.crossing import Crossing
from workbench.prompts.proposing import Proposer, read_proposal
from workbench.prompts.tasks import Ranking, Row, by_score
from workbench.prompts.templates import Template, label
from workbench.prompts.trials import Trials

_SIGNATURE = "question -> ranking"


def examples(rows: Iterable[Row], template: Template) -> list[dspy.Example]:
    """Rows as DSPy has them. row: the id; question: history and candidates as the template writes them; ranking: the right answer."""
    bare = replace(template, role="", task="", reasoning="", output="")
    made = []
    for row in rows:
        right = by_score(row, {item.id: row.grades.get(item.id, 0.0) for item in row.candidates})
        fields = {"row": row.id, "question": bare.render(row.history, row.candidates).text, "ranking": _text(row, right)}
        made.append(dspy.Example(**fields).with_inputs("row", "question"))
    return made


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
    """What `Trials` measured of the row; where DSPy asks for a yes or no, to demonstrate only what succeeded, whether it is perfect."""
    return float(prediction.value) if trace is None else float(prediction.value >= 1.0)


class Bench:
    """Ranks for DSPy's threads: from instructions and demonstrations to a template, and to the value of a row.

    instructions: what the first template's task is called there. templates: all that were made, in order, the first one left out.
    """

    def __init__(self, crossing: Crossing, trials: Trials, author: str, seed: int = 0) -> None:
        self.crossing, self.trials, self.author, self.seed = crossing, trials, author, seed
        self.instructions = dspy.Signature(_SIGNATURE, trials.start.task or "Rank the candidates for this person.").instructions
        self._shown = {row.id: row for row in trials.train}
        self._rows = {**self._shown, **{row.id: row for row in trials.search}}
        self._made: dict[tuple[str, ...], Template | DataError] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Bench:
        """Itself: DSPy copies programs, and all copies are measured here."""
        return self

    @property
    def templates(self) -> list[Template]:
        return [made for made in self._made.values() if isinstance(made, Template) and made.version != self.trials.start.version]

    def template(self, instructions: str, demos: Sequence[Mapping[str, Any]] = ()) -> Template:
        """The first template with this task and, behind it, the rows of the demonstrations as worked examples with the right answer.

        Raises DataError, which says why, for instructions that break the template; the refusal is written down once.
        """
        key = (instructions, *dict.fromkeys(str(demo["row"]) for demo in demos))
        with self._lock:
            if key not in self._made:
                try:
                    self._made[key] = self._make(*key)
                except DataError as refused:
                    self.trials.reject(instructions, str(refused))
                    self._made[key] = refused
            made = self._made[key]
        if isinstance(made, DataError):
            raise made
        return made

    def rank(self, row: str, instructions: str, demos: Sequence[Mapping[str, Any]]) -> tuple[str, float]:
        """The ranking of a row as text, and the metric of it; nothing and 0 for instructions that were refused."""
        with self.crossing.loud():
            try:
                template = self.template(instructions, demos)
            except DataError:
                return "", 0.0
            asked = self._rows[row]
            trial = self.crossing.wait(self.trials.measure(template, [asked]))
            return _text(asked, trial.ranked[0].ranking), float(trial.values[0])

    def _make(self, instructions: str, *demos: str) -> Template:
        start, task = self.trials.start, self.trials.start.task
        if instructions.strip() not in (self.instructions.strip(), task.strip()):
            task = read_proposal(f'<section name="task">\n{instructions}\n</section>', start, self.author).task
        shown = worked(start, [self._shown[name] for name in demos], self.seed)
        task = "\n\n".join(text for text in (task, shown) if text)
        return start if task == start.task else start.revise(self.author, task=task)


class RankPredict(dspy.Predict):  # type: ignore[misc] # dspy has no types
    """A predictor that ranks on the bench instead of asking DSPy's model."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(dspy.Signature(_SIGNATURE, bench.instructions))
        self.bench = bench

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """See dspy.Predict. Inputs: row and question, as in `examples`; the prediction's `value` is the metric of its row."""
        ranking, value = self.bench.rank(inputs["row"], self.signature.instructions, self.demos)
        prediction = self._forward_postprocess([{"ranking": ranking}], self.signature, **inputs)
        prediction.value = value
        return prediction


class RankProgram(dspy.Module):  # type: ignore[misc]
    """The program that optimizers compile: one predictor."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.rank = RankPredict(bench)

    def forward(self, row: str, question: str) -> dspy.Prediction:
        """Ranks the row with this id."""
        return self.rank(row=row, question=question)

    @property
    def template(self) -> Template:
        """The template that the program is now. Raises DataError for instructions that break it."""
        return self.rank.bench.template(self.rank.signature.instructions, self.rank.demos)


class ProposerEngine:
    """DSPy's questions to its prompt model, put to our proposer, whose cache and budget they share. See dspy.clients.engines.base.Engine.

    A question that was put before is put again under the next repeat index; DSPy keeps no cache and retries nothing.
    """

    def __init__(self, crossing: Crossing, proposer: Proposer) -> None:
        self.crossing, self.proposer = crossing, proposer
        self.asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    def complete(self, request: Request) -> Response:
        """One answer to system and messages as one text; temperature and length are the proposer's own."""
        with self.crossing.loud():
            system = request.system if isinstance(request.system, str) else "".join(part.text for part in request.system or ())
            text = "\n\n".join(part for part in (system, *(message.text for message in request.messages)) if part)
            with self._lock:
                repeat = self.asked[text]
                self.asked[text] += 1
            answer = self.crossing.wait(self.proposer.ask(text, repeat))
            usage = Usage(input_tokens=0, output_tokens=0, total_tokens=0)  # counted by the proposer's ledger
            return Response(id=None, model=request.model, message=Message.assistant(answer), finish_reason="stop", usage=usage)

    def model(self) -> dspy.LM:
        """The engine as a DSPy model."""
        return dspy.LM("proposer", engine=self, cache=False, num_retries=0)


def _text(row: Row, ranking: Ranking) -> str:
    """A ranking in the labels of a prompt that shows the candidates in the row's order."""
    labels = {item.id: label(place) for place, item in enumerate(row.candidates)}
    return " > ".join(" = ".join(labels[name] for name in group) for group in ranking)
