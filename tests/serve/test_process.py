"""Around the engine: limits, clients that leave, an engine that dies, the chip's pace."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from systolith.cli._options import open_model
from systolith.models.tokenizer import Tokenizer
from systolith.serve.worker import Pace
from tests.serve.fake import CRASH, HOLD, RAISE
from tests.serve.helpers import FAKE, Server, running


def open_stream(server: Server, **fields: object) -> http.client.HTTPConnection:
    """Begin a stream and read its first event."""
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    body = {"model": "tinycode", "stream": True, "max_tokens": 200} | fields
    connection.request("POST", "/v1/completions", json.dumps(body))
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline().startswith(b"data: ")
    return connection


def settled(server: Server) -> bool:
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return all(server.metric(name) == 0 for name in names)


def test_a_client_that_leaves_frees_its_slot(fake: Server) -> None:
    aborted = fake.metric("vllm:request_success_total")
    streams = [open_stream(fake, prompt=[5, HOLD]) for _ in range(4)]
    fake.eventually(lambda: fake.metric("vllm:num_requests_running") == 4)
    for stream in streams:
        stream.close()
    fake.eventually(lambda: settled(fake))
    # One that does not stream, whose client reads nothing before it leaves.
    connection = http.client.HTTPConnection(*fake.address, timeout=30)
    connection.request("POST", "/v1/completions", json.dumps({"model": "tinycode", "prompt": [5, HOLD]}))
    fake.eventually(lambda: fake.metric("vllm:num_requests_running") == 1)
    connection.close()
    fake.eventually(lambda: settled(fake))
    assert fake.metric("vllm:request_success_total") == aborted + 5


def test_what_finds_no_room_is_429_and_goes_through_later(fake: Server) -> None:
    """4 slots and 8 that wait: the 13th is turned away, as a whole, and those before it are not touched."""
    with ThreadPoolExecutor(12) as pool:
        held = [pool.submit(fake.complete, prompt="abc", max_tokens=240) for _ in range(11)]
        fake.eventually(
            lambda: fake.metric("vllm:num_requests_running") + fake.metric("vllm:num_requests_waiting") == 11
        )
        refused = fake.complete(prompt="abc", n=2)
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        assert refused.error["message"] == "11 requests are open of at most 12; try again later"
        assert refused.headers["retry-after"] == "1"
        assert fake.complete(prompt="abc", max_tokens=1).status == 200
        assert [f.result().json["usage"]["completion_tokens"] for f in held] == [240] * 11
    assert fake.complete(prompt="abc", n=12, max_tokens=2).status == 200


@pytest.mark.parametrize("how", ["exit", "raise", "kill"])
def test_an_engine_that_dies_answers_everything_and_health_turns_bad(how: str) -> None:
    token = {"exit": CRASH, "raise": RAISE, "kill": 5}[how]
    with running(engine=FAKE) as server, ThreadPoolExecutor(4) as pool:
        whole = [pool.submit(server.complete, prompt=[5, HOLD]) for _ in range(2)]
        streamed = pool.submit(server.complete, prompt=[5, HOLD], stream=True)
        server.eventually(lambda: server.metric("vllm:num_requests_running") == 3)
        last = pool.submit(server.complete, prompt=[token, HOLD])
        if how == "kill":
            os.kill(server.engine_pid, signal.SIGKILL)
        for answer in [f.result() for f in (*whole, last)]:
            assert (answer.status, answer.error["code"]) == (503, "engine_stopped")
        events = streamed.result().events
        assert events[-1]["error"]["code"] == "engine_stopped"
        reason = {
            "exit": "its process ended with code 3", "raise": "ValueError: a step that fails",
            "kill": "its process ended with code -9",
        }[how]  # fmt: skip
        for answer in (server.get("/health"), server.complete(prompt="x")):
            assert answer.status == 503
            assert answer.error["message"] == f"the engine has stopped ({reason}); restart the server"


def test_the_engine_ends_with_its_server() -> None:
    with running(engine=FAKE) as server:
        os.kill(server.pid, signal.SIGKILL)

        def gone() -> bool:
            try:
                state = Path(f"/proc/{server.engine_pid}/stat").read_text().rpartition(")")[2].split()[0]
            except FileNotFoundError:
                return True
            return state == "Z"  # dead, and nobody has asked how it ended

        server.eventually(gone)


def test_a_slow_chip_streams_at_its_own_pace(tmp_path: Path) -> None:
    """A hundredth of nano's clock: 52 ms a token, several times what the simulator needs."""
    chip = tmp_path / "slow.toml"
    chip.write_text('base = "nano"\nclock_hz = "5 MHz"\n')
    with running(chip=str(chip), pace=True, slots=1, context=64) as server, server.client() as client:
        start, moments = time.monotonic(), []
        with client.completions.create(
            model="tinycode", prompt="class Stack:", max_tokens=8, temperature=0, stream=True
        ) as stream:
            for chunk in stream:
                moments.append(time.monotonic())
                last = chunk
        times = last.model_extra["systolith"]
        assert times["tpot_s"] > 0.04
        assert moments[0] - start > times["ttft_s"] - Pace.SLACK_S
        assert moments[-1] - moments[0] > 7 * times["tpot_s"] - Pace.SLACK_S


def test_the_pace_is_the_chip_s_and_lost_time_is_lost() -> None:
    pace = Pace(1000)
    assert pace.wait_s(5000, 10.0) == 0.0  # work begins: cycle 5000 is now
    assert pace.wait_s(5100, 10.02) == pytest.approx(0.08)
    assert pace.wait_s(5200, 10.21) == 0.0  # 10 ms late is a sleep that was not exact, and is made up:
    assert pace.wait_s(5300, 10.21) == pytest.approx(0.09)
    assert pace.wait_s(5300, 11.0) == 0.0  # 0.7 s late: the simulator is slower than the chip
    assert pace.wait_s(5400, 11.0) == pytest.approx(0.1)
    pace.idle()
    assert pace.wait_s(9999, 20.0) == 0.0


def test_a_chat_template_writes_its_special_tokens_itself(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{{ mood }}")
    want = "<|endoftext|>[system] été\n[user] 🙂\ncalm"
    with running(engine=FAKE, chat_template=str(file)) as server:
        talk = [{"role": "system", "content": "été"}, {"role": "user", "content": "🙂"}]
        body = {
            "model": "tinycode",
            "messages": talk,
            "chat_template_kwargs": {"mood": "calm"},
            "return_token_ids": True,
        }
        ids = server.post("/v1/chat/completions", body | {"max_tokens": 1}).json["choices"][0]["prompt_token_ids"]
        assert not server.plain
    checkpoint = open_model("tinycode")
    tokenizer = Tokenizer.open(checkpoint.path, checkpoint.graph.vocab)
    assert ids == tokenizer.encode(want, special=False)
    assert ids.count(0) == 1
