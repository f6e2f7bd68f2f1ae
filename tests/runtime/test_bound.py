"""The bound of a token, counted by hand from the model's tensors."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.runtime.bound import bound, step_cost
from systolith.runtime.estimate import Question, compile_for, decode_step, open_config
from systolith.runtime.job import Request
from systolith.runtime.session import compile_job
from systolith.spec import load
from tests.reference.make_model import make_llama

# hidden 64, 2 layers, 4 heads and 2 KV heads of 16, feed-forward 128, vocabulary 300.
LAYER = 64 * 64 * 2 + 32 * 64 * 2 + 3 * 128 * 64
BLOCKS = 64 * 2 * 2 + 32 * 2 * 2 + 2 * 128 * 2 + 64 * 4


def test_cost_of_a_step_by_hand(tiny: Path) -> None:
    compiled = compile_job(Checkpoint.open(tiny), load("nano"), Profile.default(), [Request((1,), 2)])
    cost = step_cost(compiled.plan, [10, 20])
    matrices = 2 * (LAYER + BLOCKS) + 300 * (64 + 2)
    token = 2 * 2 * ((16 + 1) + (16 + 1))  # layers, KV heads; K with its scale, V with its scale
    assert cost.bytes == matrices + 2 * (64 + 2) + 30 * token
    assert cost.macs == {"INT8xINT8": 2 * (2 * LAYER + 300 * 64) + 30 * 2 * 2 * 4 * 16}


def test_formats_of_four_bits_and_two_terms_count(tiny: Path) -> None:
    def cost(**formats: str) -> object:
        profile = Profile.from_dict(dict(formats))
        return step_cost(compile_job(Checkpoint.open(tiny), load("nano"), profile, [Request((1,), 2)]).plan, [1])

    plain, half, twice = cost(), cost(weights="E2M1"), cost(weights="INT8x2")
    assert plain.bytes - half.bytes == LAYER  # two layers, half a byte  # type: ignore[attr-defined]
    assert twice.bytes - plain.bytes == 2 * (LAYER + BLOCKS)  # type: ignore[attr-defined]
    assert half.macs["INT8xE2M1"] == 2 * LAYER  # type: ignore[attr-defined]
    assert twice.macs["INT8xINT8"] - plain.macs["INT8xINT8"] == 2 * LAYER  # type: ignore[attr-defined]


def test_a_window_bounds_what_is_read(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "m", vocab=300, context=512)
    plan = compile_job(
        Checkpoint.open(model), load("nano"), Profile.from_dict({"attention": {"window": 8}}), [Request((1,), 2)]
    ).plan
    assert step_cost(plan, [8]) == step_cost(plan, [500])


def test_experts_of_rows_that_choose_by_themselves(tmp_path: Path) -> None:
    """Six experts, two of them for a row: two rows choose 6 (1 - (4/6)^2) = 10/3 in the mean."""
    model = make_llama(tmp_path / "m", family="mixtral", hidden=64, intermediate=96, layers=2, experts=6, top_k=2)
    plan = compile_job(Checkpoint.open(model), load("nano"), Profile.default(), [Request((1,), 2)]).plan
    one, two = step_cost(plan, [10]), step_cost(plan, [10, 10])
    assert one.uniform_bytes == one.bytes
    of_one = 2 * 3 * 96 * (64 + 2)  # layers, matrices
    assert two.uniform_bytes - two.bytes == Fraction(4, 3) * of_one


def test_what_a_batch_reads_is_what_a_uniform_router_makes_it_read() -> None:
    """The scenario's choices against the closed form, by the bytes that all slices together have read."""
    graph = replace(open_config("gpt-oss-20b")[0], layers=6)
    asked = Question(64, 24, sensitivity=False, prefill=False)
    step = decode_step(compile_for(graph, load("server"), Profile.default("E2M1"), asked), 64, asked)
    read = sum(one.bytes["weights"] for one in step.slices)
    want = float(step.cost.uniform_bytes) - step.cost.kv_bytes
    assert step.cost.uniform_bytes > 2 * step.cost.bytes
    assert read == pytest.approx(want, rel=0.05)


def test_the_mean_is_over_tokens(tiny: Path) -> None:
    plan = compile_job(Checkpoint.open(tiny), load("nano"), Profile.default(), [Request((1,), 2)]).plan
    one, two = bound(plan, [[10, 10]]), bound(plan, [[10]])
    mixed = bound(plan, [[10, 10], [10]])
    assert mixed.seconds == pytest.approx((2 * one.seconds + two.seconds) / 3, rel=1e-12)
    assert one.binds == "arithmetic"
    assert two.binds == "memory bandwidth"
    assert bound(plan, []).seconds == 0
