"""The official client against tinycode on nano: what it reads is what `generate` makes."""

from __future__ import annotations

import asyncio
import json
import math
from functools import cache
from typing import Any

import pytest

from systolith.cli._options import open_model
from systolith.compiler import Compiled
from systolith.models.profile import Profile
from systolith.models.tokenizer import Tokenizer
from systolith.runtime.device import find_device
from systolith.runtime.job import Request, Sampling
from systolith.runtime.session import compile_job, run_job
from systolith.spec import load
from tests.serve.helpers import Server

PROMPTS = ("def fibonacci(n):", "class Stack:", "# La fenêtre où l'été s'éternise", 's = "🙂👩‍👩‍👧')
COUNT = 12
WARM = {"temperature": 0.8, "top_p": 0.9}


@cache
def program() -> Compiled:
    """What `generate` compiles for each of the prompts: one request slot, a context of 256."""
    checkpoint = open_model("tinycode")
    return compile_job(checkpoint, load("nano"), Profile.default("INT8", "INT8", "INT8"), [Request((0,) * 20, COUNT)])


@cache
def generated(prompt: str, seed: int | None, count: int = COUNT) -> tuple[tuple[int, ...], str]:
    """Tokens and text of `systolith generate`, alone on the chip; seed None takes the best token."""
    checkpoint = open_model("tinycode")
    graph = checkpoint.graph
    tokenizer = Tokenizer.open(checkpoint.path, graph.vocab)
    sampling = Sampling() if seed is None else Sampling(0.8, 0, 0.9, seed)
    request = Request(tuple(tokenizer.encode(prompt)), count, sampling, tuple(graph.eos_ids))
    tokens = run_job(program(), find_device("sim"), [request], timing=False).tokens[0]
    return tuple(tokens), tokenizer.decode(tokens)


def test_models(real: Server) -> None:
    with real.client() as client:
        assert [m.id for m in client.models.list()] == ["tinycode"]
        assert client.models.retrieve("tinycode").owned_by == "systolith"
    assert real.get("/health").json == {"status": "ok"}
    assert real.plain


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_those_of_generate(real: Server, prompt: str) -> None:
    """Completions and chat, whole and streamed, sampled and not."""
    extra = {"return_token_ids": True}
    for seed in (None, 7):
        tokens, text = generated(prompt, seed)
        sampling: dict[str, Any] = {"temperature": 0} if seed is None else WARM | {"seed": seed}
        with real.client() as client:
            whole = client.completions.create(
                model="tinycode", prompt=prompt, max_tokens=COUNT, extra_body=extra, **sampling
            )
            assert whole.choices[0].text == text
            assert tuple(whole.choices[0].model_extra["token_ids"]) == tokens
            assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (
                len(whole.choices[0].model_extra["prompt_token_ids"]), len(tokens),
            )  # fmt: skip
            assert whole.choices[0].finish_reason == ("length" if len(tokens) == COUNT else "stop")
            times = whole.model_extra["systolith"]
            assert times["chip"] == "nano"
            assert 0 < times["tpot_s"] < times["ttft_s"] < 1

            talk = [{"role": "user", "content": prompt}]
            chat = client.chat.completions.create(
                model="tinycode", messages=talk, max_completion_tokens=COUNT, extra_body=extra, **sampling
            )
            assert chat.choices[0].message.content == text
            assert chat.choices[0].message.role == "assistant"

            with client.chat.completions.create(
                model="tinycode", messages=talk, max_tokens=COUNT, stream=True, extra_body=extra,
                stream_options={"include_usage": True}, **sampling,
            ) as stream:  # fmt: skip
                chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == text
    assert [t for c in chunks[1:-1] for t in c.choices[0].model_extra["token_ids"]] == list(tokens)
    assert all(c.usage is None for c in chunks[:-1])
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], len(tokens))
    assert chunks[-2].model_extra["systolith"]["tpot_s"] > 0


@pytest.mark.parametrize("prompt", PROMPTS[2:])
def test_french_and_emoji_arrive_whole(fake: Server, real: Server, prompt: str) -> None:
    """The fake engine says the prompt again, a byte a token; the real server echoes it."""
    talk = [{"role": "user", "content": prompt}]
    size = real.complete(prompt=prompt, max_tokens=1).json["usage"]["prompt_tokens"] - 1  # without the start token
    with (
        fake.client() as client,
        client.chat.completions.create(model="tinycode", messages=talk, max_tokens=size, stream=True) as stream,
    ):
        contents = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(contents) == prompt
    assert all("\N{REPLACEMENT CHARACTER}" not in content for content in contents)
    with (
        real.client() as client,
        client.completions.create(
            model="tinycode", prompt=prompt, max_tokens=1, echo=True, stream=True, temperature=0
        ) as chunks,
    ):
        assert "".join(c.choices[0].text for c in chunks) == prompt + generated(prompt, None, 1)[1]


def test_many_at_once_by_the_async_client(real: Server) -> None:
    """8 requests on 4 slots, streamed; each gives the tokens that it gives alone."""

    async def one(client: Any, prompt: str, seed: int) -> tuple[str, str]:
        stream = await client.completions.create(
            model="tinycode", prompt=prompt, max_tokens=COUNT, seed=seed, stream=True, **WARM
        )
        chunks = [chunk async for chunk in stream]
        return "".join(c.choices[0].text for c in chunks), chunks[-1].choices[0].finish_reason

    async def all_of_them() -> list[tuple[str, str]]:
        async with real.aclient() as client:
            return await asyncio.gather(*(one(client, p, s) for p in PROMPTS for s in (7, 8)))

    found = asyncio.run(all_of_them())
    wanted = [generated(p, s)[1] for p in PROMPTS for s in (7, 8)]
    assert [text for text, _ in found] == wanted


def test_choices_take_seeds_in_a_row(real: Server) -> None:
    with real.client() as client:
        answer = client.completions.create(
            model="tinycode", prompt=list(PROMPTS[:2]), n=2, max_tokens=COUNT, seed=7, echo=True, **WARM
        )
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert [c.text for c in answer.choices] == [p + generated(p, s)[1] for p in PROMPTS[:2] for s in (7, 8)]
    assert [c["seed"] for c in answer.model_extra["systolith"]["choices"]] == [7, 8, 7, 8]


def test_a_stop_string_is_never_half_sent(real: Server) -> None:
    text = generated(PROMPTS[0], None)[1]
    middle = len(text) // 2
    stop = text[middle : middle + 4]  # lies across tokens, and its beginning stands in the text
    at = text.find(stop)
    with real.client() as client:
        with client.completions.create(
            model="tinycode",
            prompt=PROMPTS[0],
            max_tokens=COUNT,
            temperature=0,
            stop=[stop, "never there"],
            stream=True,
        ) as stream:
            chunks = list(stream)
        sent = ""
        for chunk in chunks:
            sent += chunk.choices[0].text
            assert text[:at].startswith(sent)
        assert sent == text[:at]
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert chunks[-1].model_extra["systolith"]["ttft_s"] > 0
        ids, _ = generated(PROMPTS[0], None)
        whole = client.completions.create(
            model="tinycode",
            prompt=PROMPTS[0],
            max_tokens=COUNT,
            temperature=0,
            extra_body={"stop_token_ids": [ids[3]]},
        )
    assert whole.usage.completion_tokens == ids.index(ids[3]) + 1
    assert whole.choices[0].finish_reason == "stop"
    assert text.startswith(whole.choices[0].text)


def test_log_probabilities_in_both_shapes(real: Server) -> None:
    _, text = generated(PROMPTS[0], None)
    with real.client() as client:
        old = client.completions.create(
            model="tinycode", prompt=PROMPTS[0], max_tokens=COUNT, temperature=0, logprobs=3
        )
        new = client.chat.completions.create(
            model="tinycode", messages=[{"role": "user", "content": PROMPTS[0]}], max_tokens=COUNT, temperature=0,
            logprobs=True, top_logprobs=3,
        )  # fmt: skip
    shape = old.choices[0].logprobs
    assert "".join(shape.tokens) == text
    assert [text[o:].startswith(t) for o, t in zip(shape.text_offset, shape.tokens, strict=True)] == [True] * len(
        shape.tokens
    )
    content = new.choices[0].logprobs.content
    assert b"".join(bytes(e.bytes) for e in content).decode() == text
    for token, logprob, top, entry in zip(shape.tokens, shape.token_logprobs, shape.top_logprobs, content, strict=True):
        assert (entry.token, entry.logprob) == (token, logprob)
        assert [t.token for t in entry.top_logprobs] == list(top)
        # The best token was taken, so it stands first; three of them have at most the whole probability.
        assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (token, logprob)
        assert sorted(top.values(), reverse=True) == list(top.values())
        assert 0 < sum(map(math.exp, top.values())) <= 1 + 1e-6


def test_prompts_as_token_ids_and_chat_as_parts(real: Server) -> None:
    ids = real.complete(prompt=PROMPTS[1], max_tokens=1, return_token_ids=True).json["choices"][0]["prompt_token_ids"]
    text = generated(PROMPTS[1], None)[1]
    assert real.complete(prompt=[ids], max_tokens=COUNT, temperature=0).json["choices"][0]["text"] == text
    parts = [{"type": "text", "text": PROMPTS[1][:5]}, {"type": "text", "text": PROMPTS[1][5:]}]
    body = {
        "model": "tinycode",
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": COUNT,
        "temperature": 0,
    }
    assert real.post("/v1/chat/completions", body).json["choices"][0]["message"]["content"] == text


def test_metrics_have_vllm_s_names(real: Server) -> None:
    before = {n: real.metric(f"vllm:{n}_total") for n in ("prompt_tokens", "generation_tokens", "request_success")}
    body = real.complete(prompt=PROMPTS[0], max_tokens=5, temperature=0).json
    usage = body["usage"]
    real.eventually(lambda: real.metric("vllm:request_success_total") == before["request_success"] + 1)
    assert real.metric("vllm:prompt_tokens_total") == before["prompt_tokens"] + usage["prompt_tokens"]
    assert real.metric("vllm:generation_tokens_total") == before["generation_tokens"] + usage["completion_tokens"]
    for name in (
        "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
        "vllm:time_to_first_token_seconds_count", "vllm:inter_token_latency_seconds_count",
        "vllm:e2e_request_latency_seconds_count", "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total",
        "vllm:num_preemptions_total", "systolith:chip_time_to_first_token_seconds_count",
        "systolith:chip_time_per_output_token_seconds_count",
    ):  # fmt: skip
        assert real.metric(name) >= 0, json.dumps(name)
