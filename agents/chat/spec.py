"""From one spec string, or any LangChain chat model, to something the client can ask."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agents.chat.types import ChatRequest
from recsys_core.errors import DataError, UnavailableError, missing_extra

if TYPE_CHECKING:
    from langchain_core.language_models.chat_models import BaseChatModel

FORMS = "embedded | embedded:FOLDER | openai:MODEL | openai:MODEL@BASE_URL | vllm:MODEL@BASE_URL"


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A chat model and what the client must know about it.

    model_id: its identity in the response cache; where: its address for error messages; concurrency: how many questions it takes at a time;
    sampling: how a request's settings are passed: `openai` (hosted), `compatible` (same protocol elsewhere), `embedded`, or `plain`
    (temperature and max_tokens only; the answer's shape is then up to the prompt).
    """

    model: BaseChatModel
    model_id: str
    where: str
    concurrency: int
    sampling: str

    def arguments(self, request: ChatRequest) -> dict[str, Any]:
        """Call arguments for one request. A wanted repetition gets a seed of its own, else it would repeat the same words."""
        shared: dict[str, Any] = {"temperature": request.temperature, "max_tokens": request.max_tokens}
        if self.sampling == "plain":
            return shared
        shared["seed"] = (request.seed + 1_000_003 * request.repeat) % 2**31
        form = (
            {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": request.schema}} if request.schema else None
        )
        if self.sampling == "embedded":
            return shared | ({"response_format": form} if form else {})
        # In the body rather than as an argument: the SDK's own parsing raises on an answer cut short, and we want its text.
        body: dict[str, Any] = {"response_format": form} if form else {}
        if self.sampling == "compatible":
            # Not every server knows OpenAI's newer name for it, `max_completion_tokens`.
            body["max_tokens"] = shared.pop("max_tokens")
        return shared | ({"extra_body": body} if body else {})


def endpoint(spec: str | BaseChatModel, environment: Mapping[str, str] | None = None) -> Endpoint:
    """Resolves a spec. Raises DataError for a malformed one and UnavailableError where a key or package is missing; sends nothing."""
    if not isinstance(spec, str):
        return _given(spec)
    kind, colon, rest = spec.partition(":")
    if kind == "embedded" and bool(colon) == bool(rest):
        return _embedded(rest)
    name, at, url = rest.rpartition("@") if "@http" in rest or kind == "vllm" else (rest, "", "")
    if kind not in ("openai", "vllm") or not colon or not name or (kind == "vllm" and not at):
        raise DataError(f"chat model {spec!r} is not understood; use {FORMS}")
    if url and (urlsplit(url).scheme not in ("http", "https") or not _host(url)):
        raise DataError(f"chat model {spec!r} has the address {url!r}; give a full one such as http://localhost:8000/v1")
    return _openai(spec, name, url or None, os.environ if environment is None else environment)


def _host(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
        return parts.hostname
    except ValueError:
        return None


def _embedded(folder: str) -> Endpoint:
    try:
        from agents.chat.embedded import EmbeddedChatModel
    except ImportError as error:
        raise missing_extra(error.name or "langchain-core", "llm", "chat model 'embedded'") from error
    return _given(EmbeddedChatModel(folder=folder))


def _openai(spec: str, name: str, url: str | None, environment: Mapping[str, str]) -> Endpoint:
    key = environment.get("OPENAI_API_KEY", "")
    if not key and url is None:
        raise UnavailableError(
            f"chat model {spec!r} needs the environment variable OPENAI_API_KEY; set it, or use embedded or vllm:MODEL@BASE_URL"
        )
    try:
        from langchain_openai import ChatOpenAI
    except ImportError as error:
        raise missing_extra("langchain-openai", "llm", f"chat model {spec!r}") from error
    from pydantic import SecretStr

    # OpenAI's key goes where `openai:` points, never to a vLLM server; one that needs no key still has to be sent something.
    secret = SecretStr((key if spec.startswith("openai:") else environment.get("VLLM_API_KEY", "")) or "none")
    model = ChatOpenAI(model=name, base_url=url, api_key=secret, max_retries=0)
    where = url or "https://api.openai.com/v1"
    return Endpoint(model, f"{name}@{where}", where, 16, "openai" if url is None else "compatible")


def _given(model: BaseChatModel) -> Endpoint:
    """A chat model built by the caller; the SDK's own retries are turned off, since ours are counted and bounded."""
    try:
        from langchain_core.language_models.chat_models import BaseChatModel
    except ImportError as error:
        raise missing_extra("langchain-core", "llm", "a chat model") from error
    if not isinstance(model, BaseChatModel):
        raise DataError(f"a {type(model).__name__} is no chat model; give a LangChain BaseChatModel or {FORMS}")
    if model._llm_type == "embedded":
        return Endpoint(model, str(getattr(model, "identity")), "this process", 32, "embedded")  # noqa: B009 - known by its type name only
    described = json.dumps(model._identifying_params, sort_keys=True, default=str)
    identity = f"{type(model).__name__}:{hashlib.sha256(described.encode()).hexdigest()[:16]}"
    base = getattr(model, "openai_api_base", None)
    if model._llm_type == "openai-chat":
        client = model.root_async_client.with_options(max_retries=0)  # type: ignore[attr-defined]
        quiet = model.model_copy(update={"root_async_client": client, "async_client": client.chat.completions})
        return Endpoint(quiet, f"{identity}@{base}", base or "https://api.openai.com/v1", 16, "compatible" if base else "openai")
    return Endpoint(model, identity, type(model).__name__, 16, "plain")
