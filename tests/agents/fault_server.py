"""An OpenAI-compatible server on the loopback address that fails on purpose, as a script says.

    with FaultServer([status(500), status(429, retry_after=1), say('{"watch":[1]}')]) as server:
        ChatOpenAI(base_url=server.url, ...)

Each request takes the script's next step; the last step repeats. A script can also be a function of the request.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Step = Callable[["_Handler"], None]
Script = Sequence[Step] | Callable[[dict[str, Any]], Step]


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


def say(text: str, prompt_tokens: int = 10, completion_tokens: int = 5, finish: str = "stop") -> Step:
    """A well-formed answer; the text may be anything, garbage and wrong item numbers included."""
    return lambda handler: handler.reply(200, json.dumps(_completion(text, prompt_tokens, completion_tokens, finish)).encode())


def status(code: int, message: str = "failed on purpose", retry_after: float | None = None, error_code: str | None = None) -> Step:
    """An error as OpenAI words it."""
    body = json.dumps({"error": {"message": message, "type": "test", "param": None, "code": error_code}}).encode()
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return lambda handler: handler.reply(code, body, headers)


def raw(body: bytes, content_type: str = "application/json") -> Step:
    """Status 200 with any body: malformed JSON, JSON of another shape, a web page."""
    return lambda handler: handler.reply(200, body, {"Content-Type": content_type})


def hang(seconds: float = 30.0) -> Step:
    """Takes the question and says nothing until the client leaves, the time is over or the server stops."""
    return lambda handler: handler.wait(seconds)


def truncated(text: str = "cut") -> Step:
    """Announces a whole answer, sends half of it and drops the connection."""

    def act(handler: _Handler) -> None:
        body = json.dumps(_completion(text, 10, 5, "stop")).encode()
        handler.start(200, len(body))
        handler.wfile.write(body[: len(body) // 2])

    return act


def drip(text: str, seconds_a_byte: float = 0.05) -> Step:
    """A correct answer, sent one byte at a time: every read succeeds, the whole takes too long."""

    def act(handler: _Handler) -> None:
        body = json.dumps(_completion(text, 10, 5, "stop")).encode()
        handler.start(200, len(body))
        for i in range(len(body)):
            if handler.fault.stopping.wait(seconds_a_byte):
                return
            handler.wfile.write(body[i : i + 1])

    return act


def delayed(step: Step, seconds: float) -> Step:
    """Another step, later."""

    def act(handler: _Handler) -> None:
        handler.wait(seconds)
        step(handler)

    return act


class FaultServer:
    """Runs a script in threads of this process.

    url: the base address for a client; requests: what arrived, in order; open, most_open: requests being served now, and at most.
    """

    def __init__(self, script: Script) -> None:
        self._script, self._lock = script, threading.Lock()
        self.requests: list[Seen] = []
        self.open = self.most_open = 0
        self.stopping = threading.Event()

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"fault": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def wait_idle(self, seconds: float = 3.0) -> bool:
        """Whether all requests end in time, which they do early only when clients hang up."""
        deadline = time.monotonic() + seconds
        while self.open and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.open == 0

    def serve(self, handler: _Handler, seen: Seen) -> None:
        with self._lock:
            index = len(self.requests)
            self.requests.append(seen)
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        try:
            step = self._script(seen.body) if callable(self._script) else self._script[min(index, len(self._script) - 1)]
            step(handler)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client hung up, as a test of time-outs wants it to
        finally:
            with self._lock:
                self.open -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Connections that find the queue full are made again only a second later.
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    fault: FaultServer
    protocol_version = "HTTP/1.1"
    # Without it, the second part of an answer waits for a delayed acknowledgement of the first.
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.close_connection = True
        self.fault.serve(self, Seen(self.path, dict(self.headers), body))

    def reply(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.start(code, len(body), headers)
        self.wfile.write(body)

    def start(self, code: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(length),
            "Connection": "close",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def wait(self, seconds: float) -> None:
        """Sleeps until the time is over, the server stops or the client has hung up."""
        deadline = time.monotonic() + seconds
        self.connection.setblocking(False)
        try:
            while time.monotonic() < deadline and not self.fault.stopping.wait(0.02):
                try:
                    if self.connection.recv(1) == b"":
                        raise ConnectionResetError
                except BlockingIOError:
                    continue
        finally:
            self.connection.setblocking(True)

    def log_message(self, *_: object) -> None: ...


def _completion(text: str, prompt_tokens: int, completion_tokens: int, finish: str) -> dict[str, Any]:
    return {
        "id": "test",
        "object": "chat.completion",
        "created": 0,
        "model": "test",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
