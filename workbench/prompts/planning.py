"""Before anything is spent: what a plan of measuring takes, what of a budget is kept for its end, and which difference could be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, NamedTuple

from agents.chat import Amount, Budget, Price, Response
from recsys_core.errors import DataError
from workbench.prompts.asking import Asking
from workbench.prompts.metrics import Measured
from workbench.prompts.ranked import Ranker
from workbench.prompts.scoring import NO, YES
from workbench.prompts.tasks import Row
from workbench.prompts.templates import Prompt, Template

_BYTES_PER_TOKEN = 4
"""Of English text, by the tokenizers of most models; a likely figure."""


def minimum_detectable_effect(n: int, sd: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The least true mean of n paired differences that a two-sided test at level alpha finds with chance `power`.

    (z(1 - alpha / 2) + z(power)) sd / sqrt(n), by the normal approximation (Bloom 1995). sd: of one difference, see `expected_sd` and
    `paired_sd`. With f finalists and Holm's adjustment, alpha / f is on the safe side. Raises DataError for values out of their bounds.
    """
    if n < 2 or not 0 <= sd < math.inf or not 0 < alpha < 1 or not alpha / 2 < power < 1:
        raise DataError(
            f"n is {n}, sd {sd:g}, alpha {alpha:g} and power {power:g}; "
            "give at least 2 rows, a finite sd >= 0, 0 < alpha < 1 and a power above alpha / 2 and below 1"
        )
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * sd / math.sqrt(n)


def expected_sd(baselines: Sequence[Measured], metric: str) -> float:
    """What to take for `paired_sd` before any call: sqrt(2) times the largest standard deviation of a baseline's row-wise values.

    That is the figure of two prompts whose values spread as much and have nothing to do with each other. Prompts of one model mostly fail
    on the same rows, so what is found later is smaller. Raises DataError for no baselines and fewer than 2 rows.
    """
    if not baselines or len(baselines[0].rows) < 2:
        raise DataError("a spread needs at least one baseline on at least 2 rows; measure the baselines on the dev rows first")
    return math.sqrt(2) * max(float(m[metric].std(ddof=1)) for m in baselines)


def paired_sd(a: Measured, b: Measured, metric: str) -> float:
    """Standard deviation of the row-wise differences of two rankers. Raises DataError for other rows, and for fewer than 2."""
    if a.rows != b.rows or len(a.rows) < 2:
        raise DataError(f"{a.name} has {len(a.rows)} rows and {b.name} {len(b.rows)}; a spread needs the same rows, at least 2")
    return float((a[metric] - b[metric]).std(ddof=1))


@dataclass(frozen=True)
class Estimate:
    """What a plan takes. Answers from a cache take nothing.

    most: more only where calls fail and are sent again; likely: no answer is asked for again, 4 bytes a token, and answers a third as long
    as they may be; priced: whether the price is known, without it costs are 0.
    """

    most: Amount
    likely: Amount
    priced: bool

    def __add__(self, other: Estimate) -> Estimate:
        """One plan after the other."""
        return Estimate(_sum([self.most, other.most]), _sum([self.likely, other.likely]), self.priced and other.priced)

    def __mul__(self, times: int) -> Estimate:
        """The same plan several times, as for several templates of one size."""
        return Estimate(_times(self.most, times), _times(self.likely, times), self.priced)

    def __str__(self) -> str:
        likely, most = (
            f"{a.calls:,} calls, {a.tokens:,} tokens" + (f", ${a.cost:,.2f}" if self.priced else "") for a in (self.likely, self.most)
        )
        return f"likely {likely}; at most {most}"


def estimate(
    ranker: Ranker,
    rows: Sequence[Row],
    *,
    asking: Asking | None = None,
    set_size: int = 4,
    scored: bool = False,
    price: Price | None = None,
    unseen: int = 0,
) -> Estimate:
    """What it takes to rank rows once by the ranker's template.

    asking, set_size: as the ranker was made with; scored: whether the model gives likelihoods, by which a pointwise ranker then goes;
    price: None where unknown; unseen: further rows that must not be looked at, such as sealed ones. Each is taken for the largest of
    `rows`, and likely for their mean, so for these `most` is no proof. Tokens are bounded as the client's budget bounds them: one a byte
    of the prompt, and max_tokens. Raises DataError for no rows.
    """
    if not rows or unseen < 0:
        raise DataError(
            f"{len(rows)} rows and {unseen} unseen ones to estimate; give at least 1 row, which unseen ones are taken to be like"
        )
    asking = asking or Asking()
    scored = ranker.template.kind == "likelihood" or (scored and ranker.template.kind == "pointwise")
    most, likely = [], []
    for row in rows:
        calls, question = ranker.calls(row), _question(ranker.template, row, asking, set_size, scored)
        most.append(_amount(calls, question.text + question.control, question.answer, price))
        once = calls if scored else calls // (1 + asking.retries)
        likely.append(_amount(once, -(-question.text // _BYTES_PER_TOKEN), -(-question.answer // 3), price))
    largest = Amount(max(a.tokens for a in most), max(a.cost for a in most), max(a.calls for a in most))
    total, n = _sum(likely), len(rows)
    whole = Amount(-(-total.tokens * (n + unseen) // n), total.cost * (n + unseen) / n, -(-total.calls * (n + unseen) // n))
    return Estimate(_sum([*most, _times(largest, unseen)]), whole, price is not None)


def hold_back(budget: Budget, final: Estimate, seconds: float = 0.0) -> Budget:
    """The budget of a search that leaves enough of the whole for a final scoring: its bounds less the most that this may take.

    seconds: wall time to leave. Raises DataError where the whole is smaller than that, and for a bound on a cost that is unknown.
    """
    if budget.cost is not None and not final.priced:
        raise DataError(f"the cost budget is {budget.cost:g} and the price of the model is unknown; set a price, or bound tokens instead")
    kept = {"tokens": final.most.tokens, "cost": final.most.cost, "calls": final.most.calls, "wall": seconds}
    left: dict[str, Any] = {}
    for name, need in kept.items():
        bound = getattr(budget, name)
        if bound is not None and bound < need:
            raise DataError(
                f"the {name} budget is {_figure(bound)} and final scoring alone may take {_figure(need)}; "
                f"raise it above {_figure(need)}, the rest is for the search, or score fewer rows"
            )
        left[name] = None if bound is None else bound - need
    return replace(budget, **left)


def what_is_left(budget: Budget, search: Budget) -> Budget:
    """The budget of the final scoring: the whole, of which all is used that a search under `hold_back` has used, seconds too."""
    wall = None if budget.wall is None or search.wall is None else max(budget.wall - (search.wall - search.seconds_left), 0.0)
    return replace(budget, wall=wall, used=search.used)


def outlook(budget: Budget, final: Estimate, search: Estimate | None = None) -> str:
    """One line on how far a budget goes. search: what the whole search would take, None where it goes on until its budget ends."""
    lines = [f"final scoring: {final}", *([f"search: {search}"] if search else [])]
    for name in ("calls", "tokens", "cost"):
        bound = getattr(budget, name)
        if bound is None:
            continue
        kept, used = getattr(final.most, name), getattr(budget.used, name)
        rest = max(bound - kept - used, 0)
        line = f"{name}: {_figure(bound)} budgeted, " + (f"{_figure(used)} used, " if used else "")
        line += f"{_figure(kept)} kept for final scoring, {_figure(rest)} for the search"
        if search and getattr(search.most, name) > rest:
            line += ", which will probably end early" if getattr(search.likely, name) > rest else ", which may end early"
        lines.append(line)
    return "; ".join(lines)


class _Question(NamedTuple):
    """The largest question a ranker can ask about a row, in bytes of text, in further tokens of control, and in tokens of the answer."""

    text: int
    control: int
    answer: int


def _question(template: Template, row: Row, asking: Asking, set_size: int, scored: bool) -> _Question:
    """What `ChatClient` reserves for it is text + control + answer; rankers set max_tokens as here."""
    reasoned = bool(template.reasoning)
    match template.kind:
        case "likelihood":
            prompt, empty = template.render(row.history, ()), template.render((), ())
            texts = sum(_bytes(template.continuation(item)) for item in row.candidates)
            return _Question(_bytes(prompt.document) + _bytes(empty.document) + 2 * texts, 2, 0)
        case "pointwise" if scored:
            return _Question(_bytes(_largest(template, row, 1).document) + _bytes(YES) + _bytes(NO), 2, 0)
        case "pointwise":
            return _chat(_largest(template, row, 1), asking.tokens(8, reasoned))
        case "choice":
            return _chat(_largest(template, row, set_size), asking.tokens(16, reasoned))
        case "listwise":
            return _chat(template.render(row.history, row.candidates), asking.tokens(32 + 16 * len(row.candidates), reasoned))


def _chat(prompt: Prompt, answer: int) -> _Question:
    """A system turn, if there is one, and a user turn."""
    roles = ("system", "user") if prompt.system else ("user",)
    return _Question(_bytes(prompt.system) + _bytes(prompt.text), sum(_bytes(role) + 8 for role in roles) + 64, answer)


def _largest(template: Template, row: Row, size: int) -> Prompt:
    """The prompt about the `size` candidates that take most bytes."""
    by_size = sorted(row.candidates, key=lambda item: -_bytes(template.render((), (item,)).text))
    return template.render(row.history, by_size[:size])


def _figure(value: float) -> str:
    return f"{round(value, 4):,}"


def _bytes(text: str) -> int:
    return len(text.encode())


def _amount(calls: int, prompt: int, answer: int, price: Price | None) -> Amount:
    """That many calls of one size, in tokens."""
    return _times(Amount(prompt + answer, price.of(Response("", prompt, answer)) if price else 0.0), calls)


def _times(a: Amount, times: int) -> Amount:
    return Amount(a.tokens * times, a.cost * times, a.calls * times)


def _sum(amounts: Sequence[Amount]) -> Amount:
    return Amount(sum(a.tokens for a in amounts), sum(a.cost for a in amounts), sum(a.calls for a in amounts))
