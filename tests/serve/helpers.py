"""A server in a process of its own, and plain HTTP to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai

ROOT = Path(__file__).parents[2]
FAKE = "tests.serve.fake:FakeEngine"


@dataclass(frozen=True)
class Answered:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> dict[str, Any]:
        """The error object; its shape is checked."""
        body = self.json
        assert list(body) == ["error"], body
        assert list(body["error"]) == ["message", "type", "param", "code"]
        assert "\n" not in body["error"]["message"]
        assert self.headers["content-type"] == "application/json"
        return body["error"]

    @property
    def events(self) -> list[dict[str, Any]]:
        """Server-sent events; the last one says that it is the last."""
        assert self.headers["content-type"].startswith("text/event-stream")
        lines = self.data.decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""], lines[-3:]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    url: str
    pid: int
    engine_pid: int
    plain: bool

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answered:
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            data = response.read()
            return Answered(response.status, {k.lower(): v for k, v in response.getheaders()}, data)

    def get(self, path: str) -> Answered:
        return self.request("GET", path)

    def post(self, path: str, value: Any) -> Answered:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.request("POST", path, body)

    def complete(self, **fields: Any) -> Answered:
        return self.post("/v1/completions", {"model": "tinycode"} | fields)

    def chat(self, text: str, **fields: Any) -> Answered:
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", {"model": "tinycode", "messages": messages} | fields)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=60)

    def aclient(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=60)

    def metric(self, name: str, label: str = "") -> float:
        """Sum of a metric over its labels, or over those that hold a text."""
        text = self.get("/metrics").data.decode()
        values = re.findall(rf"^{re.escape(name)}\{{[^}}]*{label}[^}}]*\}} (\S+)$", text, re.MULTILINE)
        assert values, name
        return sum(map(float, values))

    def eventually(self, condition: Callable[[], bool], limit_s: float = 20) -> None:
        """Wait until a condition holds."""
        end = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end, "it never came to be"
            time.sleep(0.02)


@contextlib.contextmanager
def running(**settings: Any) -> Iterator[Server]:
    """A server with settings of tests/serve/launch.py; what it says on stderr is shown where a test fails."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serve.launch", json.dumps(settings)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "the server did not start"
            told = json.loads(line)
            yield Server(told["url"], process.pid, told["engine"], told["plain"])
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
