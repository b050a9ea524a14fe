"""Spec strings: what they mean, and one line of help where they mean nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agents.chat import endpoint
from recsys_core.errors import DataError, UnavailableError, WorkbenchError

MALFORMED = (
    *("", "openai", "openai:", "gpt-4o", "embedded:"),
    *("vllm:llama", "vllm:@http://h/v1", "vllm:m@localhost:8000", "vllm:m@http://", "vllm:m@http://h:port/v1"),
)


@pytest.mark.parametrize("spec", MALFORMED)
def test_a_malformed_spec_is_one_line_that_shows_what_to_write(spec: str) -> None:
    with pytest.raises(DataError) as error:
        endpoint(spec, {"OPENAI_API_KEY": "k"})
    assert "\n" not in str(error.value)
    assert "vllm:MODEL@BASE_URL" in str(error.value) or "http://localhost:8000/v1" in str(error.value)


def test_without_a_key_the_error_names_the_variable_and_the_ways_out() -> None:
    with pytest.raises(UnavailableError) as error:
        endpoint("openai:gpt-4o-mini", {})
    for word in ("OPENAI_API_KEY", "embedded", "vllm:MODEL@BASE_URL"):
        assert word in str(error.value)
    assert error.value.exit_code == 3


def test_what_a_spec_resolves_to() -> None:
    pytest.importorskip("langchain_openai")
    hosted = endpoint("openai:gpt-4o-mini", {"OPENAI_API_KEY": "secret"})
    assert (hosted.model_id, hosted.sampling) == ("gpt-4o-mini@https://api.openai.com/v1", "openai")
    local = endpoint("vllm:org/model:tag@http://localhost:8000/v1", {"OPENAI_API_KEY": "secret"})
    assert (local.model_id, local.where, local.sampling) == (
        "org/model:tag@http://localhost:8000/v1",
        "http://localhost:8000/v1",
        "compatible",
    )
    assert local.model.openai_api_key.get_secret_value() != "secret", "OpenAI's key is not sent to a vLLM server"  # type: ignore[attr-defined]
    other = endpoint("openai:model@https://example.org/v1", {"OPENAI_API_KEY": "secret"})
    assert other.model.openai_api_key.get_secret_value() == "secret"  # type: ignore[attr-defined]
    assert "secret" not in hosted.model_id + other.model_id


def test_an_object_that_is_no_chat_model_is_refused() -> None:
    pytest.importorskip("langchain_core")
    with pytest.raises(DataError, match="int is no chat model"):
        endpoint(7)  # type: ignore[arg-type]


def test_importing_the_seam_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "langchain_core", "langchain_openai", "openai", "llguidance", "tokenizers")
    code = f"import sys, agents.chat; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain_openai", None)
    with pytest.raises(WorkbenchError, match=r"\.\[llm\]"):
        endpoint("vllm:m@http://localhost:1/v1", {})
