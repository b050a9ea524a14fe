"""From a template and a model to a ranker."""

from __future__ import annotations

from agents.chat import ChatClient
from workbench.prompts.asking import Asking
from workbench.prompts.choices import Pairwise, Setwise
from workbench.prompts.listwise import Listwise
from workbench.prompts.pointwise import Pointwise
from workbench.prompts.ranked import Ranker
from workbench.prompts.repeated import Fusion, Repeated
from workbench.prompts.scoring import Likelihood
from workbench.prompts.starting import LIKELIHOOD, PLAIN
from workbench.prompts.templates import Template


def default_template(client: ChatClient) -> Template:
    """Where a model gives likelihoods, titles are scored; else it is asked for an order."""
    return LIKELIHOOD if client.can_score else PLAIN


def ranker_for(
    client: ChatClient,
    template: Template | None = None,
    *,
    repetitions: int = 1,
    fusion: Fusion = "borda",
    set_size: int = 4,
    asking: Asking | None = None,
    seed: int = 0,
) -> Ranker:
    """A ranker of the template's kind, which shuffles the candidates in each repetition.

    A choice template is asked by pairs for a set_size of 2, else setwise. Likelihoods depend on no order and are asked once. Raises
    DataError where the model cannot do what the template needs.
    """
    template = template or default_template(client)
    match template.kind:
        case "likelihood":
            return Likelihood(client, template)
        case "pointwise":
            pointwise = Pointwise(client, template, asking)
            return pointwise if pointwise.scored else Repeated(pointwise, repetitions, seed, fusion)
        case "choice" if set_size == 2:
            return Repeated(Pairwise(client, template, asking, seed=seed), repetitions, seed, fusion)
        case "choice":
            return Repeated(Setwise(client, template, asking, size=set_size, seed=seed), repetitions, seed, fusion)
        case "listwise":
            return Repeated(Listwise(client, template, asking), repetitions, seed, fusion)
