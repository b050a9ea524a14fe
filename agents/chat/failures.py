"""Reading a failed call: worth another try, this question's own fault, or the end of the run?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from recsys_core.errors import UnavailableError, WorkbenchError

Kind = Literal["retry", "question", "endpoint"]
LONGEST_WAIT = 60.0
"""Seconds a server may ask us to wait before the question is given up, and the longest back-off."""


@dataclass(frozen=True)
class Failure:
    """kind: `retry` may pass by itself, `question` fails this question only, `endpoint` fails every question.

    wait: seconds the server asked for; billed: whether the endpoint may have used tokens although no answer came.
    """

    kind: Kind
    cause: str
    wait: float | None = None
    billed: bool = False


def read(error: Exception, first: bool) -> Failure:
    """Classifies an error of a model call.

    first: no call of this client has succeeded yet, so an unreachable address is likely a wrong one.
    """
    cause = _one_line(error)
    if isinstance(error, UnavailableError):
        return Failure("endpoint", cause)
    if isinstance(error, WorkbenchError):
        return Failure("question", cause)
    if isinstance(error, TimeoutError):
        return Failure("retry", "timed out", billed=True)
    try:
        import openai
    except ImportError:
        return Failure("question", cause)
    match error:
        case openai.APITimeoutError():
            return Failure("retry", "timed out", billed=True)
        case openai.APIStatusError(status_code=code):
            return _status(error, code)
        case openai.APIConnectionError():
            refused = any(
                type(e).__name__ in ("ConnectError", "ConnectionRefusedError", "gaierror", "UnsupportedProtocol") for e in _chain(error)
            )
            reason = _one_line(_chain(error)[-1])
            return Failure("endpoint" if refused and first else "retry", reason, billed=not refused)
        case openai.APIResponseValidationError():
            return Failure("retry", cause, billed=True)
        case openai.OpenAIError():
            return Failure("question", cause)
    # The SDK lets what it cannot read escape as plain Python errors: a body that is no JSON, or JSON without choices.
    return (
        Failure("retry", f"unreadable answer ({cause})", billed=True)
        if isinstance(error, (ValueError, TypeError, KeyError, AttributeError, IndexError))
        else Failure("question", cause)
    )


def _status(error: Exception, code: int) -> Failure:
    cause = f"HTTP {code}: {_one_line(getattr(error, 'message', '') or error)}"
    if code in (401, 403, 404) or getattr(error, "code", None) == "insufficient_quota":
        return Failure("endpoint", cause)
    if code in (408, 409, 429) or code >= 500:
        return Failure("retry", cause, wait=_retry_after(error))
    return Failure("question", cause)


def _retry_after(error: Exception) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return max(float(headers.get("retry-after", "")), 0.0)
    except ValueError:
        return None


def pause(key: str, attempt: int, base: float, asked: float | None) -> float:
    """Seconds before the next attempt: as the server asked, else exponential back-off with jitter drawn from the question's own key."""
    if asked is not None:
        return asked
    draw = int.from_bytes(hashlib.sha256(f"{key}/{attempt}".encode()).digest()[:4]) / 2**32
    return float(min(base * 2**attempt, LONGEST_WAIT) * (0.5 + draw / 2))


def _chain(error: BaseException) -> list[BaseException]:
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None and cause not in found:
        found.append(cause)
    return found


def _one_line(error: object) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
