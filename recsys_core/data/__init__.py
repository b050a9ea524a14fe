"""Interaction logs: datasets, features, splits, filters, readers and descriptions."""

from recsys_core.data.attributes import FeatureColumns
from recsys_core.data.dataset import Dataset
from recsys_core.data.describe import describe, gini
from recsys_core.data.features import Category, Feature, Features, Number, Tags
from recsys_core.data.filters import k_core, positives
from recsys_core.data.histories import Histories
from recsys_core.data.jagged import Floats, Ints, Jagged
from recsys_core.data.preferences import Preferences
from recsys_core.data.readers import Columns
from recsys_core.data.registry import known_datasets, load_dataset, readable_title
from recsys_core.data.split import Holdout, Split, global_time, leave_one_out
from recsys_core.data.vocabulary import Vocabulary

__all__ = [
    "Category",
    "Columns",
    "Dataset",
    "Feature",
    "FeatureColumns",
    "Features",
    "Floats",
    "Histories",
    "Holdout",
    "Ints",
    "Jagged",
    "Number",
    "Preferences",
    "Split",
    "Tags",
    "Vocabulary",
    "describe",
    "gini",
    "global_time",
    "k_core",
    "known_datasets",
    "leave_one_out",
    "load_dataset",
    "positives",
    "readable_title",
]
