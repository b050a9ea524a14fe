"""A small language model in this process, SmolLM2-135M-Instruct unless told otherwise, as a LangChain chat model."""

from __future__ import annotations

import asyncio
import atexit
import functools
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr

from agents.chat.engine import Completion, Engine, Scored
from agents.chat.types import Message, ScoreRequest
from recsys_core.assets import derived
from recsys_core.errors import DataError
from recsys_core.language.gguf import VERSION, convert

ASSET = "smollm2-135m-instruct"
_ROLES = {"human": "user", "ai": "assistant", "system": "system"}


@functools.cache
def shared_engine(folder: str = "") -> Engine:
    """The process's one engine for a model folder, loaded on first use.

    Without a folder it is SmolLM2-135M-Instruct, whose weights are fetched and converted where the cache has none.
    """
    engine = Engine(Path(folder).expanduser() if folder else derived(ASSET, VERSION, convert))
    atexit.register(engine.close)  # a step still under way when the interpreter goes, as after Ctrl-C, would abort the process
    return engine


class EmbeddedChatModel(BaseChatModel):
    """Call arguments as for OpenAI: `max_tokens`, `temperature`, `seed`, `response_format` (a JSON schema). See Engine for the folder."""

    max_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    _engine: Engine = PrivateAttr()

    def __init__(self, engine: Engine | None = None, *, folder: str = "", **settings: Any) -> None:
        super().__init__(**settings)
        self._engine = engine or shared_engine(folder)

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def identity(self) -> str:
        """Name for the response cache; other weights or another precision give other answers."""
        return f"embedded:{self._engine.fingerprint[:16]}:{str(self._engine.dtype).removeprefix('torch.')}"

    @property
    def _llm_type(self) -> str:
        return "embedded"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.identity, "max_tokens": self.max_tokens, "temperature": self.temperature}

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any
    ) -> ChatResult:
        return self._result(self._ask(messages, stop, kwargs).result())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._result(await asyncio.wrap_future(self._ask(messages, stop, kwargs)))

    async def score(self, request: ScoreRequest) -> Scored:
        """Likelihood or PMI of given continuations; see ScoreRequest."""
        return await asyncio.wrap_future(self._engine.score(request))

    def _ask(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> Any:
        if stop:
            raise DataError(f"the embedded model takes no stop words (given {stop!r}); bound the answer by response_format or max_tokens")
        return self._engine.chat(
            [Message(_ROLES.get(m.type, m.type), str(m.text)) for m in messages],
            schema=_schema(kwargs.get("response_format")),
            max_tokens=kwargs.get("max_tokens", self.max_tokens),
            temperature=kwargs.get("temperature", self.temperature),
            seed=kwargs.get("seed", self.seed),
        )

    def _result(self, answer: Completion) -> ChatResult:
        usage = UsageMetadata(
            input_tokens=answer.prompt_tokens,
            output_tokens=answer.completion_tokens,
            total_tokens=answer.prompt_tokens + answer.completion_tokens,
        )
        metadata = {"finish_reason": "stop" if answer.complete else "length", "model_name": self.identity}
        message = AIMessage(content=answer.text, usage_metadata=usage, response_metadata=metadata)
        return ChatResult(generations=[ChatGeneration(message=message)])


def _schema(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    """The JSON schema inside an OpenAI `response_format`."""
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return schema
        case {"type": "json_object"}:
            return {"type": "object"}
        case _:
            raise DataError(f"response_format {str(response_format)[:80]!r} is unknown; use type text, json_object or json_schema")
