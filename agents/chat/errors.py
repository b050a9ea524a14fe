"""What can go wrong with one question, as opposed to with the run."""

from __future__ import annotations

from recsys_core.errors import WorkbenchError


class CallFailed(WorkbenchError):  # noqa: N818 - reads as what happened
    """One question got no answer after its bounded retries; the run may go on."""

    exit_code = 3
