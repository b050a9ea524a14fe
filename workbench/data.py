"""A log and its split, from settings."""

from __future__ import annotations

from recsys_core.data import Dataset, Split, global_time, leave_one_out, load_dataset
from workbench.config import DataSettings


def load_split(settings: DataSettings) -> tuple[Dataset, Split]:
    """Loads the dataset, filters it and divides it; raises what the readers, the filters and the splits raise."""
    dataset = load_dataset(
        settings.name,
        columns=settings.columns,
        items=settings.items,
        users=settings.users,
        features=settings.features,
        min_rating=settings.min_rating,
        k_core=settings.k_core,
        tie_rule=settings.tie_rule,
    )
    return dataset, leave_one_out(dataset) if settings.split == "leave-one-out" else global_time(dataset)
