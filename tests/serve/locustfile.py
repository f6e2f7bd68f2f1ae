"""Users of the load test: each asks, waits a moment, asks again, and looks whether the answer is the right one.

WANTED names a JSON file of [prompt, seed, text]. Run by test_load.py.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from locust import HttpUser, between, task

WANTED = [tuple(item) for item in json.loads(Path(os.environ["WANTED"]).read_text(encoding="utf-8"))]


class Reader(HttpUser):
    """Half of the requests are streamed."""

    wait_time = between(0.0, 0.1)

    def ask(self, path: str, fields: dict[str, object], *, name: str) -> None:
        prompt, seed, text = random.choice(WANTED)
        body = {"model": "tinycode", "max_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": seed} | fields
        body |= {"prompt": prompt} if path == "/v1/completions" else {"messages": [{"role": "user", "content": prompt}]}
        with self.client.post(path, json=body, name=name, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text[:200]}")
            elif self.said(response.content, path) != text:
                response.failure(f"wrong text for {prompt!r} with seed {seed}")

    @staticmethod
    def said(data: bytes, path: str) -> str:
        """The text of an answer, whole or streamed."""
        if not data.startswith(b"data: "):
            choice = json.loads(data)["choices"][0]
            return choice["text"] if path == "/v1/completions" else choice["message"]["content"]
        events = data.decode().split("\n\n")
        if events[-2:] != ["data: [DONE]", ""]:
            return "a stream without its end"
        choices = [json.loads(e.removeprefix("data: "))["choices"][0] for e in events[:-2]]
        return "".join(c["text"] if path == "/v1/completions" else c["delta"].get("content", "") for c in choices)

    @task
    def complete(self) -> None:
        self.ask("/v1/completions", {}, name="complete")

    @task
    def complete_in_a_stream(self) -> None:
        self.ask("/v1/completions", {"stream": True}, name="complete, streamed")

    @task
    def chat_in_a_stream(self) -> None:
        self.ask("/v1/chat/completions", {"stream": True}, name="chat, streamed")
