"""Times without weights are those of a run with weights, to the cycle; and never below the bounds of the config."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from systolith.models.checkpoint import Checkpoint
from systolith.models.family import build_graph, load_config, packaged_configs
from systolith.models.profile import Profile
from systolith.runtime import fields
from systolith.runtime.device import Sim
from systolith.runtime.estimate import Question, decode_step, estimate, first_token, open_config
from systolith.runtime.job import Request
from systolith.runtime.layer_path import StepPath, layer_path
from systolith.runtime.scenario import prefill_of, run_scenario
from systolith.runtime.session import compile_job, run_job
from systolith.spec import ConfigError, ModelError, load


def test_a_step_without_weights_takes_as_long_as_with(tinycode: Checkpoint) -> None:
    request = Request(tuple(range(7, 57)), 4)
    compiled = compile_job(tinycode, load("micro"), Profile.default(), [request])
    times = run_job(compiled, Sim(), [request]).cycles[0]
    question = Question(context=53, input_len=50)
    assert decode_step(compiled, 53, question).cycles == times[3] - times[2]
    assert first_token(compiled, question).cycles == times[0]


def test_a_prefill_on_the_grid_without_weights_takes_as_long_as_with(tinycode: Checkpoint) -> None:
    """What the grid loads lies clear of the tables that a run without data follows."""
    request = Request((1,) * 300, 1)
    compiled = compile_job(tinycode, load("server"), Profile.default(), [request])
    assert compiled.grid is not None
    with_weights = run_job(compiled, Sim(), [request]).cycles[0]
    assert first_token(compiled, Question(context=301, input_len=300)).cycles == with_weights[0]


def test_a_prefill_of_many_steps_is_sampled(tinycode: Checkpoint) -> None:
    """Of 63 steps 10 are timed; what is left out is a line between samples."""
    request = Request((1,) * 500)
    compiled = compile_job(tinycode, load("nano"), Profile.default(), [request], rows=8)
    found = first_token(compiled, Question(context=500))
    assert (found.timed, found.steps) == (10, 63)
    whole = run_scenario(compiled, prefill_of(compiled, [500])).tokens[0]
    assert found.cycles == pytest.approx(whole, rel=0.02)


def test_the_answer_has_its_keys_and_stays_above_the_bounds() -> None:
    graph, source, sha256 = open_config("tinycode")
    question = Question(context=300, batch=2, input_len=40, output_len=9)
    found = estimate(graph, load("mini"), Profile.default(), question, source=source, sha256=sha256).to_dict()
    keys = "chip model tpot_s ttft_s bytes bound_s waterfall fractions simulated weights_enter manifest sensitivity"
    assert set(keys.split()) <= set(found)
    assert (found["chip"], found["model"]) == ("mini", "tinycode")
    assert [step["context"] for step in found["decode_steps"]] == [41, 44, 48]
    assert found["tpot_s"] > max(found["bound_s"].values()) > 0
    assert found["ttft_s"] > max(found["prefill_bound_s"].values()) > 0
    assert sum(found["waterfall"].values()) == pytest.approx(found["decode_steps"][1]["seconds"])
    for fraction in found["fractions"].values():
        assert 0 < fraction["value"] <= 1
        assert fraction["value"] == pytest.approx(fraction["numerator_s"] / fraction["denominator_s"])


def test_mini_with_room_for_8b_reads_at_its_memorys_rate() -> None:
    """The copy of `mini` that bench has is `mini` but for its sizes; a token of 8B takes what reading it takes."""
    chip = load(Path(__file__).parents[2] / "bench" / "mini-4gib.toml")
    assert load("mini").vary(name="mini-4gib", dram_bytes="4 GiB", scratchpad_bytes="2 MiB").sha256 == chip.sha256
    graph, source, sha256 = open_config("llama-3.1-8b")
    question = Question(context=8192, prefill=False, sensitivity=False)
    profile = Profile.default("E2M1", "E4M3", "INT8")
    found = estimate(graph, chip, profile, question, source=source, sha256=sha256).to_dict()
    assert found["binds"] == "memory bandwidth"
    assert 0.97 <= found["fractions"]["decode_of_pin_rate"]["value"] <= 1


def test_what_a_layer_waits_for_adds_up_to_the_step() -> None:
    graph, source, sha256 = open_config("tinycode")
    question = Question(context=300, prefill=False)
    made = estimate(graph, load("mini"), Profile.default(), question, source=source, sha256=sha256)
    found = made.to_dict()["layer_path"]
    assert found["step_us"] == pytest.approx(made.tpot_s * 1e6)
    assert found["layers"] * found["layer_us"] + found["outside_us"] == pytest.approx(found["step_us"])
    assert sum(found["per_layer_us"].values()) == pytest.approx(found["layer_us"])
    assert set(found["per_layer_us"]) == {"issue", "semaphores", "collectives", "memory", "work"}


def test_the_way_to_the_first_bytes_of_experts_is_the_routers() -> None:
    path: StepPath = Counter({
        ("kernels/route.py:52 router", "vector", "runs"): 40,
        ("kernels/route.py:197", "issue", "sequencer"): 7,
        ("kernels/linear.py:101 expert gate", "weights", "memory latency"): 960,
        ("kernels/linear.py:101 expert gate", "weights", "memory bandwidth"): 5000,
        ("kernels/linear.py:101 expert up", "weights", "memory latency"): 20,
        ("kernels/qkv.py:58 v", "collectives", "runs"): 30,
        ("kernels/linear.py:103 head", "compute", "runs"): 500,
        ("kernels/step.py:250", "issue", "sequencer"): 3,
    })  # fmt: skip
    found = layer_path(path, 2, 1_000_000)
    rows = {"router": 500, "issue": 3.5, "semaphores": 0, "collectives": 15, "memory": 2510, "work": 0}
    assert found["per_layer_us"] == rows
    assert found["router_per_layer_us"] == {"weights": 480, "vector": 20, "issue": 3.5}
    assert (found["outside_us"], found["step_us"]) == (503, 6560)


def test_fields_are_changed_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, source, sha256 = open_config("tinycode")
    question = Question(context=100, prefill=False)
    wanted = (("dram_latency_ns", Fraction(1, 2)), ("scratchpad_bytes", Fraction(1, 4)))
    monkeypatch.setattr(fields, "FIELDS", wanted)
    as_it_is, latency, small = fields.try_fields(graph, load("nano"), Profile.default(), question, source=source)
    made = estimate(graph, load("nano"), Profile.default(), question, source=source, sha256=sha256)
    assert as_it_is.seconds == made.tpot_s
    assert as_it_is.of_stated == pytest.approx(made.to_dict()["fractions"]["decode_of_stated_rate"]["value"])
    assert latency.seconds is not None
    assert latency.seconds < made.tpot_s
    assert (latency.was, latency.value) == ("20", "10")
    assert small.seconds is None
    assert "scratchpad_bytes=16384 must be at least" in small.reason


def test_bad_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^context=2 must be 3 or more; batch=0 must be 1 or more; correct the"):
        Question(context=2, batch=0)
    graph = build_graph(load_config(packaged_configs()["qwen3-8b"]))
    with pytest.raises(ModelError, match=r"a context of 999999 is more than max_position_embeddings, 40960; ask for"):
        estimate(graph, load("server"), Profile.default(), Question(context=999998))
    with pytest.raises(ModelError, match=r"^nowhere: not found; give a model directory, a config.json, or one of "):
        open_config("nowhere")
