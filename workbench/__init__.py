"""What a user drives: experiments, the store, the closed loop, exports and the command line."""

from recsys_core.errors import WorkbenchError

__all__ = ["WorkbenchError"]
