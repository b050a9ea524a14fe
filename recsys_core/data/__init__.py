"""Interaction logs: datasets, splits, readers and descriptions."""

from recsys_core.data.dataset import Dataset
from recsys_core.data.describe import describe, gini
from recsys_core.data.histories import Histories
from recsys_core.data.jagged import Floats, Ints, Jagged
from recsys_core.data.readers import Columns
from recsys_core.data.registry import known_datasets, load_dataset, readable_title
from recsys_core.data.split import Holdout, Split, global_time, leave_one_out
from recsys_core.data.vocabulary import Vocabulary

__all__ = [
    "Columns",
    "Dataset",
    "Floats",
    "Histories",
    "Holdout",
    "Ints",
    "Jagged",
    "Split",
    "Vocabulary",
    "describe",
    "gini",
    "global_time",
    "known_datasets",
    "leave_one_out",
    "load_dataset",
    "readable_title",
]
