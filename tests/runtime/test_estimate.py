"""Times without weights are those of a run with weights, to the cycle; and never below the bounds of the config."""

from __future__ import annotations

import pytest

from systolith.models.checkpoint import Checkpoint
from systolith.models.family import build_graph, load_config, packaged_configs
from systolith.models.profile import Profile
from systolith.runtime.device import Sim
from systolith.runtime.estimate import Question, decode_step, estimate, first_token, open_config
from systolith.runtime.job import Request
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


def test_bad_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^context=2 must be 3 or more; batch=0 must be 1 or more; correct the"):
        Question(context=2, batch=0)
    graph = build_graph(load_config(packaged_configs()["qwen3-8b"]))
    with pytest.raises(ModelError, match=r"a context of 999999 is more than max_position_embeddings, 40960; ask for"):
        estimate(graph, load("server"), Profile.default(), Question(context=999998))
    with pytest.raises(ModelError, match=r"^nowhere: not found; give a model directory, a config.json, or one of "):
        open_config("nowhere")
