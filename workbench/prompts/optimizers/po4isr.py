"""PO4ISR (Sun et al., SIGIR 2024, arXiv 2312.07552): prompts revised by reasons for their failures, paraphrased, chosen by a bandit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agents.seeding import stream
from recsys_core.errors import DataError
from workbench.prompts.bandit import Ucb
from workbench.prompts.feedback import feedback, history_text
from workbench.prompts.optimizer import Outcome
from workbench.prompts.optimizers.po4isr_paper import Published, drawn
from workbench.prompts.optimizers.po4isr_questions import better, other_words, problem, why
from workbench.prompts.proposing import Proposer, propose, rules
from workbench.prompts.racing import race
from workbench.prompts.tasks import Row
from workbench.prompts.templates import Template
from workbench.prompts.trials import Trials


@dataclass(frozen=True)
class PO4ISR:
    """Revises a prompt by the reasons that a model gives for its failures.

    Mode `paper` is the released code, with these facts of it:
    - A parent is tried on 16 train rows. A failure is a target at place 10 or later, of however many, or one that was not named.
    - Each failure goes to the proposer alone, as history and candidates: neither the answer nor which candidate was the target is told.
      One revision is made from two reasons, and two paraphrases from the revision without the failure.
    - Of a parent's candidates 8 go on, drawn by chance, and never the parent.
    - They are chosen among on train rows, those that failures are taken from. Each of 16 pulls draws 32 of its own, so candidates meet
      different rows; and what the bandit calls a mean is none (see PublishedUcb).
    - The five best are the parents of the second and last round, but the survivors of one parent replace those of the one before.
    - The last five are compared by their sums over the search rows. The start is not among them: whatever comes first is the result, and
      claimed to be better.
    Not kept: its reward, 1 / log2(1 + place) and 0 for a target not named, is the task's metric here; rows drawn again are not asked about
    again; an answer that is no template is dropped, there any paraphrase is a prompt; fewer candidates than the beam are no error here.

    Mode `fixed` shows several failures at a time, with answers, places and targets, and the scores and refusals so far. All candidates stay
    in one bandit with true means, of differences to the start on the same search rows in the same order; the start is a parent until
    others are ahead of it. The favourites meet the start in a race on search rows that nobody was chosen on, and one is claimed to be
    better only if it is shown there.

    The paper's last step, one prompt for several domains, is `cross_domain.across_domains`.

    Settings of mode `fixed`, for `paper` has its own. rounds: of proposing and choosing; batch: train rows that a parent is tried on before
    each revision; proposals: revisions of a parent; failures: shown for each; reasons: asked for; paraphrases: of each revision; beam:
    parents of the next round; pulls: of the bandit, a round; rows: search rows a pull; exploration: see Ucb; share: of the search rows,
    for the bandit, the others are for the race; finalists: in that race, at most; alpha: its level.
    Raises DataError for an unknown mode and for settings out of their bounds.
    """

    proposer: Proposer
    mode: Literal["paper", "fixed"] = "fixed"
    rounds: int = 2
    batch: int = 16
    proposals: int = 3
    failures: int = 4
    reasons: int = 2
    paraphrases: int = 1
    beam: int = 2
    pulls: int = 24
    rows: int = 8
    exploration: float = 1.0
    share: float = 0.4
    finalists: int = 3
    alpha: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("paper", "fixed"):
            raise DataError(f"mode of po4isr is {self.mode!r}; use 'fixed', or 'paper' for the loop as it was published")
        for name in ("rounds", "batch", "proposals", "failures", "reasons", "beam", "pulls", "rows", "finalists"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} of po4isr is {getattr(self, name)}; give at least 1")
        for name in ("paraphrases", "exploration"):
            if getattr(self, name) < 0:
                raise DataError(f"{name} of po4isr is {getattr(self, name)}; give at least 0")
        if not 0 < self.share < 1 or not 0 < self.alpha < 1:
            raise DataError(f"share of po4isr is {self.share:g} and alpha {self.alpha:g}; give shares and levels between 0 and 1")

    @property
    def name(self) -> str:
        """See Optimizer."""
        return "po4isr" if self.mode == "fixed" else "po4isr-paper"

    async def search(self, trials: Trials) -> Outcome:
        """See Optimizer. Raises DataError where there are no train rows, and what the proposer raises."""
        if not trials.train:
            raise DataError("there are no train rows to find failures on; give the task some, 16 or more")
        if self.mode == "paper":
            return await Published().search(trials, self.proposer, self.name, stream(self.seed, self.name))
        cut = round(self.share * len(trials.search))
        tried, ahead = await self._chosen(trials, trials.search[:cut])
        found = await race(trials, trials.start, ahead[: self.finalists], rows=trials.search[cut:], alpha=self.alpha)
        claimed = found.winner.version != trials.start.version
        others = [v.template for v in found.standing if v.status != "worse" and v.template.version != found.winner.version]
        told = "; ".join(f"{v.template.version} {v.difference:+.3f} [{v.low:+.3f}, {v.high:+.3f}] {v.status}" for v in found.standing)
        note = f"{tried} candidates, {len(ahead)} ahead of the start on up to {cut} rows; race on others: {told or 'nobody'}"
        return Outcome((*([found.winner] if claimed else []), *others), claimed, note)

    async def _chosen(self, trials: Trials, rows: Sequence[Row]) -> tuple[int, list[Template]]:
        """How many candidates were made, and those whose mean over the rows they met is above the start's, best first."""
        arms: list[Template] = []
        ahead: list[Template] = []
        bandit = Ucb(self.exploration)
        for number in range(self.rounds):
            for parent in [*ahead, trials.start][: self.beam]:
                known = {template.version for template in (trials.start, *arms)}
                made = {template.version: template for template in await self._revised(trials, parent, number)}
                arms += [template for version, template in made.items() if version not in known]
            await self._pull(trials, arms, bandit, rows)
            ahead = [arms[arm] for arm in bandit.best() if bandit.mean(arm) > 0]
        return len(arms), ahead

    async def _revised(self, trials: Trials, parent: Template, number: int) -> list[Template]:
        """Revisions of a parent, each for a batch of rows of its own, and their paraphrases."""
        made: list[Template] = []
        for n in range(self.proposals):
            rows = drawn(stream(self.seed, self.name, number, parent.version, n), trials.train, self.batch)
            told = problem(parent, feedback(await trials.measure(parent, rows), self.failures, self.seed))
            reasons = await self.proposer.ask(why(told, self.reasons), n)
            parts = (better(told, reasons), history_text(trials), rules(parent))
            revised = await propose(self.proposer, "\n\n".join(filter(None, parts)), parent, trials, self.name, repeat=n)
            if revised:
                words = [
                    await propose(self.proposer, other_words(revised), revised, trials, self.name, repeat=m)
                    for m in range(self.paraphrases)
                ]
                made += [revised, *filter(None, words)]
        return made

    async def _pull(self, trials: Trials, arms: Sequence[Template], bandit: Ucb, rows: Sequence[Row]) -> None:
        """A round of the bandit. Every arm meets the rows in the same order, the start beside it."""
        for _ in range(self.pulls):
            unfinished = [arm for arm in range(len(arms)) if bandit.count(arm) < len(rows)]
            if not unfinished:
                return
            arm = bandit.choose(unfinished)
            part = rows[bandit.count(arm) :][: self.rows]
            before, after = await trials.measure(trials.start, part), await trials.measure(arms[arm], part)
            bandit.update(arm, (after.values - before.values).tolist())
