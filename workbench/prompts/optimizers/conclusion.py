"""How a search ends that has chosen among templates by their means on the search rows."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.prompts.optimizer import Outcome
from workbench.prompts.racing import race
from workbench.prompts.templates import Template
from workbench.prompts.trials import Trials

FINALISTS = 3


async def conclude(trials: Trials, found: Sequence[Template], note: str) -> Outcome:
    """Finalists are the best by mean over the search rows, if above the start's; the favourite is claimed if a race shows it better.

    found: every template that was chosen among. All of them race, not the best alone, for the best of many looks good by chance: the
    race's level then holds over all of them. No call is made for what is measured already.
    """
    found = list({template.version: template for template in found if template.version != trials.start.version}.values())
    means = {template.version: (await trials.measure(template, trials.search)).values.mean() for template in (trials.start, *found)}
    ahead = sorted((t for t in found if means[t.version] > means[trials.start.version]), key=lambda t: -means[t.version])
    winner = (await race(trials, trials.start, found, futility=0)).winner
    claimed = winner.version != trials.start.version
    # The race ends once only one is left, on fewer rows than the means are of: its winner need not have the best mean of all.
    finalists = ([winner] if claimed else []) + [t for t in ahead if t.version != winner.version]
    gain = f", the best {means[finalists[0].version] - means[trials.start.version]:+.3f}" if finalists else ""
    return Outcome(tuple(finalists[:FINALISTS]), claimed, f"{note}; {len(ahead)} of {len(found)} ahead of the start{gain}")
