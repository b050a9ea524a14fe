"""Random interaction logs for property tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from recsys_core.data import Dataset, Vocabulary

TIE_RULES = st.sampled_from(["file-order", "shuffled:0", "shuffled:7"])


@st.composite
def logs(draw: st.DrawFn, max_rows: int = 40) -> Dataset:
    """Few users, items and points in time, so that ties, repeats and users without rows are common."""
    users, items = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    row = st.tuples(st.integers(0, users - 1), st.integers(0, items - 1), st.integers(0, 8), st.integers(1, 5))
    table = np.array(draw(st.lists(row, min_size=1, max_size=max_rows)), np.int64)
    return Dataset(
        "random", Vocabulary(f"u{u}" for u in range(users)), Vocabulary(f"i{i}" for i in range(items)),
        table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy(), table[:, 3].astype(np.float32), tie_rule=draw(TIE_RULES),
    )  # fmt: skip
