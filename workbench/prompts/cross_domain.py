"""Which template does best over several domains: the last step of PO4ISR, which takes prompts of one domain to the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recsys_core.errors import DataError
from workbench.prompts.templates import Template, same_features
from workbench.prompts.trials import Trials


@dataclass(frozen=True)
class Standing:
    """A template over all domains.

    score: how far its mean lies above that of all templates, in standard deviations of a row's value, averaged over domains; mean_rank:
    its place among the templates, from 1, averaged over domains, ties shared; means: of the domain's metric, by domain.
    """

    template: Template
    score: float
    mean_rank: float
    means: Mapping[str, float]


async def across_domains(domains: Mapping[str, Trials], templates: Sequence[Template], rows: int | None = None) -> tuple[Standing, ...]:
    """Measures every template on the first `rows` search rows of every domain, None for all, and orders them, best score first.

    All templates meet the same rows of a domain, and each domain counts the same whatever its rows or metric. The standard deviation is
    that of rows, over all templates: templates that hardly differ in a domain hardly count there. Equal scores keep the order given.
    Raises DataError for no domain, no template, less than 1 row and different features or kinds, and what `Trials.measure` raises.
    """
    distinct = list({template.version: template for template in templates}.values())
    if not domains or not distinct or (rows is not None and rows < 1):
        raise DataError(f"{len(domains)} domains, {len(distinct)} templates and {rows} rows are given; give at least one of each")
    for template in distinct:
        same_features(distinct[0], template)
        if template.kind != distinct[0].kind:
            raise DataError(f"template {template.name!r} is {template.kind}, {distinct[0].name!r} is {distinct[0].kind}; compare one kind")
    means = np.empty((len(domains), len(distinct)))
    scores = np.zeros_like(means)
    for d, trials in enumerate(domains.values()):
        values = np.stack([(await trials.measure(template, trials.search[:rows])).values for template in distinct])
        means[d] = values.mean(1)
        if spread := values.std():
            scores[d] = (means[d] - means[d].mean()) / spread
    # Sums of equal values in another order differ in the last bits; unrounded they would not tie.
    own, other = means.round(12)[:, :, None], means.round(12)[:, None, :]
    ranks = ((other > own).sum(2) + ((other == own).sum(2) + 1) / 2).mean(0)
    standings = [
        Standing(template, float(scores[:, t].mean()), float(ranks[t]), dict(zip(domains, means[:, t].tolist(), strict=True)))
        for t, template in enumerate(distinct)
    ]
    return tuple(sorted(standings, key=lambda standing: -round(standing.score, 12)))
