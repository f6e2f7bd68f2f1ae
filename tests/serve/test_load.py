"""Load and damage, on tinycode and nano: nothing is lost, no page leaks, memory stays flat, no body brings a 500."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serve.fake import HOLD
from tests.serve.helpers import FAKE, ROOT, Server, running
from tests.serve.test_openai import PROMPTS, WARM, generated

pytestmark = pytest.mark.deep


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(slots=8, context=256, max_waiting=64) as made:
        yield made


def settled(server: Server) -> bool:
    return server.metric("vllm:num_requests_running") == server.metric("vllm:num_requests_waiting") == 0


def test_eight_users_for_thirty_seconds(server: Server, tmp_path: Path) -> None:
    wanted = tmp_path / "wanted.json"
    wanted.write_text(json.dumps([[p, s, generated(p, s)[1]] for p in PROMPTS for s in (7, 8)]), encoding="utf-8")
    before = server.metric("vllm:request_success_total")
    ended = subprocess.run(
        [
            sys.executable, "-m", "locust", "-f", "tests/serve/locustfile.py", "--headless", "--users", "8",
            "--spawn-rate", "8", "--run-time", "30s", "--stop-timeout", "30s", "--json", "--host",
            server.url.removesuffix("/v1"),
        ],
        cwd=ROOT, env=os.environ | {"WANTED": str(wanted)}, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(ended.stdout)
    asked = sum(row["num_requests"] for row in rows)
    print([(row["name"], row["num_requests"], row["total_response_time"]) for row in rows])
    assert len(rows) == 3
    assert sum(row["num_failures"] for row in rows) == 0
    assert asked > 100
    server.eventually(lambda: settled(server))
    assert server.metric("vllm:request_success_total") == before + asked
    assert server.metric("vllm:request_success_total", "abort") == 0


def cut(server: Server, seed: int) -> int:
    """Begin a stream, read some of it, go away without a word; half of the time with a reset. Gives what was read."""
    rng = random.Random(seed)
    fields = {"prompt": rng.choice(PROMPTS), "max_tokens": 100, "stream": True, "seed": seed} | WARM
    body = json.dumps({"model": "tinycode", "ignore_eos": True} | fields).encode()
    with socket.create_connection(server.address, timeout=30) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        events, want = 0, rng.randrange(1, 12)
        while events < want:
            data = connection.recv(4096)
            assert data
            events += data.count(b"data: ")
        if rng.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return events


def test_200_streams_that_are_cut(server: Server) -> None:
    server.eventually(lambda: settled(server))
    pages = server.metric("vllm:kv_cache_usage_perc")
    with ThreadPoolExecutor(16) as pool:
        assert all(events > 0 for events in pool.map(lambda seed: cut(server, seed), range(200)))
    server.eventually(lambda: settled(server))
    server.eventually(lambda: server.metric("vllm:kv_cache_usage_perc") <= pages)
    assert server.metric("vllm:request_success_total", "abort") == 200
    for prompt in PROMPTS:
        answer = server.complete(prompt=prompt, max_tokens=12, seed=7, **WARM).json
        assert answer["choices"][0]["text"] == generated(prompt, 7)[1]


def resident_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", text, re.MULTILINE)
    assert found
    return int(found[1])


def test_memory_is_flat_over_1000_requests(server: Server) -> None:
    def ask(number: int) -> int:
        fields = {"prompt": f"{PROMPTS[number % 4]} # {number}", "max_tokens": 4, "stream": number % 2 == 0}
        return server.complete(**fields, stop=["never there"], logprobs=2).status

    sizes = []
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, 1200, 200):
            assert set(pool.map(ask, range(start, start + 200))) == {200}
            sizes.append([resident_kib(server.pid), resident_kib(server.engine_pid)])
    print(sizes)
    for mine in zip(*sizes, strict=True):  # the first 200 fill caches
        assert mine[-1] - mine[0] < 4096, sizes


BODIES = (
    ("/v1/completions", {"prompt": "def f(x):", "max_tokens": 3, "temperature": 0.5, "seed": 7, "n": 2, "logprobs": 2}),
    ("/v1/completions", {"prompt": [[5, 6], [7]], "max_tokens": 2, "stream": True, "stop": ["\n", "é🙂"],
                         "echo": True}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "été 🙂"}], "max_completion_tokens": 3,
                              "logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True},
                              "stream": True}),
)  # fmt: skip


def test_500_damaged_bodies(server: Server) -> None:
    rng = random.Random(5)
    statuses: dict[int, int] = {}
    for number in range(500):
        path, fields = BODIES[number % len(BODIES)]
        ascii_only = number % 2 == 0
        data = bytearray(json.dumps({"model": "tinycode"} | fields, ensure_ascii=ascii_only).encode())
        for _ in range(rng.choice((1, 1, 1, 3))):
            any_byte = rng.randrange(256)  # mostly no UTF-8; what JSON is written in gets further
            data[rng.randrange(len(data))] = (
                any_byte if rng.random() < 0.3 else rng.choice(b'0123456789abenE-.{}[]",: ')
            )
        start = time.monotonic()
        answer = server.post(path, bytes(data))
        assert time.monotonic() - start < 10
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
        if answer.status != 200:
            assert answer.status in (400, 404), (answer.status, bytes(data))
            assert answer.error["type"] == "invalid_request_error"
    print(statuses)
    assert statuses[400] > 100
    assert statuses[200] > 20
    assert server.get("/health").status == 200
    assert settled(server)


def test_a_server_that_is_told_to_leave_ends_its_streams() -> None:
    with running(engine=FAKE) as server, ThreadPoolExecutor(2) as pool:
        short = pool.submit(server.complete, prompt="abc", max_tokens=200, stream=True)
        long = pool.submit(server.complete, prompt=[5, HOLD], stream=True)
        server.eventually(lambda: server.metric("vllm:num_requests_running") == 2)
        os.kill(server.pid, signal.SIGTERM)
        assert short.result().events[-1]["choices"][0]["finish_reason"] == "length"
        assert long.result().events[-1]["error"]["code"] == "server_closing"
