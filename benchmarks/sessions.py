"""What of a user's record tells how long the next session is: log-likelihood of returning sessions of users that were not fitted on.

Five folds over users, on the training part of a log alone; a gain is in nats a session, with a 95% bootstrap interval over users.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from agents.session import fit_hazard, records_before, sessions
from benchmarks.common import arguments, report
from recsys_core.data import leave_one_out, load_dataset
from recsys_core.data.jagged import Ints

FOLDS = 5


def log_likelihood(weights: NDArray[np.float64], lengths: Ints, covariates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each session [S], under weights as `fit_hazard` gives them."""
    habit = covariates @ weights[2:]
    found = np.empty(len(lengths))
    for n, length in enumerate(lengths):
        hazard = 1 / (1 + np.exp(-(weights[0] + weights[1] * np.log(np.arange(1, length + 1)) + habit[n])))
        found[n] = np.log1p(-hazard[:-1]).sum() + np.log(hazard[-1])
    return found


def gain(difference: NDArray[np.float64], owner: Ints) -> tuple[float, float, float]:
    """Mean over sessions [S] with its interval; users are drawn, with all of their sessions."""
    users, place = np.unique(owner, return_inverse=True)
    total, count = np.bincount(place, difference), np.bincount(place)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(users), (2000, len(users)))
    low, high = np.quantile(total[drawn].sum(1) / count[drawn].sum(1), (0.025, 0.975))
    return float(difference.mean()), float(low), float(high)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", nargs="+", default=["ml-100k", "ml-latest-small"])
    parser.add_argument("--gap", type=int, default=3600, help="seconds of pause between two sessions")
    options = parser.parse_args()
    rows = []
    for name in options.data:
        log = leave_one_out(load_dataset(name)).train
        owner, lengths = sessions(log, options.gap)
        records = records_before(owner, lengths)
        returning = np.isfinite(records).all(1)
        print(f"{name}: {lengths[~returning].mean():.1f} items in a first session, {lengths[returning].mean():.1f} in a later one")
        known = np.where(returning[:, None], records, 0.0)
        tier = np.zeros(len(lengths))
        tier[returning] = np.argsort(np.argsort(known[returning, 0])) * 3 // returning.sum() - 1.0
        # What is fitted on, and on which covariates.
        models: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.float64]]] = {
            "all sessions": (np.ones(len(lengths), bool), known[:, :0]),
            "returning sessions": (returning, known[:, :0]),
            "and thirds of activity": (returning, tier[:, None]),
            "and items before": (returning, known[:, :1]),
            "and items a session": (returning, known[:, 1:]),
            "and both": (returning, known),
        }
        fold = np.random.default_rng(0).integers(0, FOLDS, len(log.users))[owner]
        found: dict[str, NDArray[np.float64]] = {}
        for label, (use, covariates) in models.items():
            shifted = covariates - covariates[returning].mean(0)
            judged, fitted = np.empty(len(lengths)), []
            for n in range(FOLDS):
                here, there = use & (fold != n), returning & (fold == n)
                fitted.append(fit_hazard(lengths[here], shifted[here]))
                judged[there] = log_likelihood(fitted[-1], lengths[there], shifted[there])
            found[label] = judged[returning]
            value, low, high = gain(found[label] - found["all sessions"], owner[returning])
            beyond = gain(found[label] - found.get("returning sessions", found[label]), owner[returning])
            weights = " ".join(f"{w:.2f}" for w in np.mean(fitted, 0))
            rows.append(
                {
                    "log": name, "sessions": int(returning.sum()), "fitted on": label, "nats a session": float(found[label].mean()),
                    "gain": value, "low": low, "high": high, "beyond returning": beyond[0], "its low": beyond[1], "its high": beyond[2],
                    "weights": weights,
                }
            )  # fmt: skip
    report("exit hazard on users not fitted on", rows, options.csv)


if __name__ == "__main__":
    main()
