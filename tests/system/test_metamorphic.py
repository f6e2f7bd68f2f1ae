"""What must hold when a chip or a question changes: more of anything is never slower, and nothing beats the bounds.

On copies of `server`, without weights. The bounds are worked out here from the config's numbers, apart from the code
that the program comes from.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from systolith.models.profile import Profile
from systolith.runtime.estimate import Question, compile_for, decode_step, first_token, open_config
from systolith.spec import load

LAYERS = 4
CONTEXT = 2048
CHANGES: dict[str, dict[str, object]] = {
    "server": {},
    "bandwidth x2": {"dram_bytes_per_s": "481.25 GB/s"},
    "clock x1/2": {"clock_hz": "800 MHz"},
    "latency 0": {"dram_latency_ns": 0},
    "efficiency 1": {"dram_efficiency": 1},
    "ring": {"topology": "ring"},
    "ingress x1/2": {"ingress_bytes_per_s": "128 GB/s"},
}


@cache
def decode(change: str, context: int = CONTEXT, batch: int = 1, layers: int = LAYERS) -> float:
    """Seconds of a decode step of a Llama-3.1-8B with few layers; checked against the bounds."""
    graph = replace(open_config("llama-3.1-8b")[0], layers=layers)
    chip = load("server").vary(**CHANGES[change])
    question = Question(context=context, batch=batch)
    compiled = compile_for(graph, chip, Profile.default("E2M1", "E4M3", "INT8"), question)
    seconds = decode_step(compiled, context, question).cycles / chip.clock_hz
    assert seconds >= least(change, context, batch, layers)
    return seconds


def least(change: str, context: int, batch: int, layers: int) -> float:
    """Bytes over bandwidth and multiply-adds over peak, whichever is more. GB are 10^9 bytes."""
    hidden, inner, heads, kv, head, vocab = 4096, 14336, 32, 8, 128, 128256
    weights = layers * hidden * (2 * heads * head + 2 * kv * head + 3 * inner)
    moved = weights * 17 / 32 + hidden * vocab * 33 / 32
    moved += batch * layers * context * kv * (head * 33 / 32 + head + 1)
    clock = 0.8e9 if change == "clock x1/2" else 1.6e9
    peak = 64 * 16 * 64 * 64 * clock
    macs = batch * (weights / (peak / 2) + hidden * vocab / (peak / 4))
    macs += batch * layers * context * heads * head * 2 / (peak / 4)
    pins = 64 * (481.25e9 if change == "bandwidth x2" else 240.625e9)
    return max(moved / (pins * (1 if change == "efficiency 1" else 14 / 15)), macs)


@pytest.mark.parametrize("better", ["bandwidth x2", "latency 0", "efficiency 1"])
def test_a_better_memory_is_no_slower(better: str) -> None:
    assert decode(better) <= decode("server")


@pytest.mark.parametrize("worse", ["clock x1/2", "ring", "ingress x1/2"])
def test_a_slower_clock_or_network_is_no_faster(worse: str) -> None:
    assert decode(worse) >= decode("server")


def test_more_work_is_no_faster() -> None:
    assert decode("server", context=2 * CONTEXT) >= decode("server")
    assert decode("server") <= decode("server", batch=2) <= 2 * decode("server")
    assert decode("server", layers=2 * LAYERS) >= decode("server")


def test_a_longer_prompt_takes_longer() -> None:
    graph = replace(open_config("llama-3.1-8b")[0], layers=2)
    question = Question(context=128)
    compiled = compile_for(graph, load("server"), Profile.default("E2M1", "E4M3", "INT8"), Question(context=256))
    short, long = (first_token(compiled, replace(question, context=n)).cycles for n in (64, 256))
    assert short < long


@pytest.mark.slow
def test_twice_the_bandwidth_with_twice_the_slots_gains_nearly_two() -> None:
    graph = open_config("llama-3.1-8b")[0]
    question = Question(context=8192)
    profile = Profile.default("E2M1", "E4M3", "INT8")
    times = []
    for change in ({}, {"dram_bytes_per_s": "481.25 GB/s", "slots_bytes": "1 MiB"}):
        chip = load("server").vary(**change)
        times.append(decode_step(compile_for(graph, chip, profile, question), 8192, question).cycles)
    assert 1.6 <= times[0] / times[1] <= 2.0
