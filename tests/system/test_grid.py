"""A prefill on the grid of slices: its bits are those of the reference, its programs leave nothing open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reference.make_model import make_llama

from systolith.compiler import Options, grid
from systolith.compiler.compile import plan_graph
from systolith.compiler.grid import plan_grid
from systolith.runtime.estimate import Question, compile_for, first_token
from systolith.runtime.job import GridStep, Request, Sampling, layout, on_grid, write_job
from systolith.runtime.scenario import prefill_of, run_scenario
from systolith.runtime.session import compile_job
from systolith.sim.sanitizer import sanitize

from .harness import Subject, chip, compiled, generate, same_bits

PAGES = 64
SHAPES: dict[str, dict[str, Any]] = {
    "four row groups": {"kv_heads": 2, "heads": 4, "layers": 2, "seed": 3},
    "two row groups": {"kv_heads": 4, "heads": 4, "layers": 1, "seed": 4, "tied": False},
    "norms of heads, columns that divide by nothing": {
        "kv_heads": 2, "heads": 4, "layers": 1, "seed": 5, "family": "qwen3", "qk_norm": True, "hidden": 288,
        "intermediate": 352,
    },
    "two products of o and of down": {
        "kv_heads": 2, "heads": 4, "layers": 1, "seed": 7, "hidden": 1024, "intermediate": 512,
    },
    "biases": {"kv_heads": 4, "heads": 8, "layers": 1, "seed": 6, "family": "qwen2", "attention_bias": True},
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "three heads": {"kv_heads": 2, "heads": 6, "layers": 2, "seed": 7, "hidden": 256, "intermediate": 512},
    "three heads, wide": {"kv_heads": 2, "heads": 6, "layers": 1, "seed": 7, "hidden": 1024, "intermediate": 512},
}
ONE = pytest.mark.parametrize("subject", ["four row groups"], indirect=True)


@pytest.fixture(scope="module", params=SHAPES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A model that eight slices have a grid for."""
    shape = {"hidden": 256, "intermediate": 256, "head_dim": 64, **(SHAPES | OTHERS)[request.param]}
    return Subject.open(make_llama(tmp_path_factory.mktemp("models") / "grid", vocab=500, context=2048, **shape))


def _prompt(length: int) -> tuple[int, ...]:
    return tuple((7 * i * i + 3 * i) % 500 for i in range(length))


@pytest.mark.parametrize(
    "table",
    [
        {},
        pytest.param({"lanes": 2, "weights": "E2M1", "activations": "E4M3"}, marks=pytest.mark.deep),
        pytest.param({"weights": "INT8x2"}, marks=pytest.mark.deep),
    ],
    ids=["default", "two lanes", "two terms"],
)
def test_bits_are_those_of_the_reference(subject: Subject, table: dict[str, Any]) -> None:
    """Two prompts: one ends inside a chunk that the grid fills, one leaves a few tokens to other rows."""
    profile = subject.profile(table)
    prompts = (_prompt(700), _prompt(530)[9:])
    ran = generate(subject, chip("grid8"), profile, prompts, 2, page_tokens=128)
    assert ran.compiled.grid is not None
    assert {step.slot for step in ran.plan.grid} == {0, 1}
    for prompt, logits in zip(prompts, ran.logits, strict=True):
        want = subject.expected(profile, prompt).logits
        same_bits(logits[:1], want[-1:], f"prompt of {len(prompt)}")
    alone = generate(subject, chip("grid8"), profile, prompts[:1], 2, page_tokens=128, grid=False)
    assert alone.compiled.grid is None
    assert alone.tokens[0] == ran.tokens[0]
    same_bits(ran.logits[0], alone.logits[0], "rows after the prompt")


@pytest.mark.deep
def test_operands_lie_where_the_next_one_comes(tmp_path: Path) -> None:
    """Many column groups: parts of the operand of o and of down lie at the end of the next norm's, whose parts come in
    turns."""
    path = make_llama(tmp_path / "m", hidden=1024, intermediate=2048, heads=8, kv_heads=8, head_dim=64, layers=2,
                      vocab=500, context=2048, seed=8)  # fmt: skip
    subject, on = Subject.open(path), chip("grid16")
    profile, prompt = subject.profile({}), _prompt(1300)
    ran = generate(subject, on, profile, [prompt], 2, page_tokens=128)
    grid = ran.compiled.grid
    assert grid is not None
    assert grid.overlaid
    assert grid.dealt == 2
    same_bits(ran.logits[0][:1], subject.expected(profile, prompt).logits[-1:], "the prompt")
    requests = [Request(prompt[:600], 2)]
    program = compiled(subject, on, profile, requests, page_tokens=128).program
    plan = layout(program, requests)
    found = sanitize(on, program, lambda s: write_job(s, program, requests, plan))
    assert [f for f in found if not f.warning] == []


@ONE
def test_slots_of_a_batch_take_turns(subject: Subject) -> None:
    """Each finds its keys and values where its slot's slices look for them; a row group's tokens take two pages."""
    profile = subject.profile({})
    prompts = [_prompt(length)[::-1] for length in (300, 7, 560, 140, 285)]
    ran = generate(subject, chip("grid8"), profile, prompts, 2, page_tokens=32)
    assert ran.compiled.plan.slot_groups > 1
    assert {step.slot for step in ran.plan.grid} == {0, 2, 3, 4}
    for prompt, logits in zip(prompts, ran.logits, strict=True):
        same_bits(logits[:1], subject.expected(profile, prompt).logits[-1:], f"prompt of {len(prompt)}")
    alone = generate(subject, chip("grid8"), profile, prompts, 2, page_tokens=128, grid=False)
    assert alone.tokens == ran.tokens


@ONE
def test_a_job_has_room_for_the_step_behind_the_grid(subject: Subject) -> None:
    """Seven full steps of short prompts, and one that ends on the grid: its logits are a step of their own."""
    requests = [*[Request(_prompt(128), 300)] * 12, Request(_prompt(20), 1), Request(_prompt(140), 1)]
    on, profile = chip("grid8"), subject.profile({})
    program = compile_job(subject.checkpoint, on, profile, requests, page_tokens=128, rows=256).program
    found = layout(program, requests)
    assert len(found.grid) == 1
    assert len(found.steps) == 8


@pytest.mark.parametrize(
    ("subject", "name", "width"),
    [("three heads", "grid8", 128), ("three heads, wide", "grid16", 256)],
    indirect=["subject"],
)
def test_heads_that_fill_no_part_of_an_operand(
    subject: Subject, name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three heads of 64 in parts of 128, with products of o of 128 columns or of 512: zeros fill up what the group of a
    KV head brings."""
    monkeypatch.setattr(grid, "WIDTHS", (width,))
    on, profile, prompts = chip(name), subject.profile({}), [_prompt(500)]
    ran = generate(subject, on, profile, prompts, 2, page_tokens=128)
    assert ran.compiled.grid is not None
    assert ran.compiled.grid.o.deep == 128
    assert ran.compiled.grid.o.k > ran.compiled.plan.o.k
    same_bits(ran.logits[0][:1], subject.expected(profile, prompts[0]).logits[-1:], "logits")
    program = ran.compiled.program
    found = sanitize(on, program, lambda s: write_job(s, program, ran.requests, ran.plan))
    assert [f for f in found if not f.warning] == []


def test_a_prefill_leaves_nothing_open(subject: Subject) -> None:
    on = chip("grid8")
    requests = [Request(_prompt(600), 2, Sampling(0.7, 10, 0.9, 5))]
    program = compiled(subject, on, subject.profile({}), requests, page_tokens=128)
    plan = layout(program.program, requests)
    assert plan.grid
    found = sanitize(on, program.program, lambda s: write_job(s, program.program, requests, plan))
    assert [f for f in found if not f.warning] == []


@ONE
def test_a_batch_whose_gathers_go_by_teams_leaves_nothing_open(subject: Subject) -> None:
    """Both kinds of steps in one program: what they share, a semaphore among it, is handed over in order."""
    on = chip("grid8")
    requests = [Request(_prompt(length)[::-1], 2, Sampling(0.7, 10, 0.9, 5)) for length in (300, 7, 290, 40, 285)]
    program = compiled(subject, on, subject.profile({}), requests, page_tokens=32)
    assert program.grid is not None
    assert program.plan.team > 1
    plan = layout(program.program, requests)
    assert plan.grid
    found = sanitize(on, program.program, lambda s: write_job(s, program.program, requests, plan))
    assert [f for f in found if not f.warning] == []


def test_what_the_grid_takes() -> None:
    """Whole chunks; a chunk with few tokens is left, and so is what makes its logits."""
    grid = {"chunks": 3}
    lengths = (128, 200, 257, 289, 290, 2048, 2049)
    steps, done = on_grid(grid, [Request((0,) * n) for n in lengths])
    assert done == [0, 200, 256, 289, 290, 2048, 2048]
    assert [s for s in steps if s.slot == 5] == [GridStep(5, 0, 3), GridStep(5, 3, 3), GridStep(5, 6, 2, 2047)]
    assert [s.slot for s in steps if s.last is not None] == [1, 3, 4, 5]
    assert on_grid(None, [Request((0,) * 900)]) == ((), [0])


@ONE
@pytest.mark.parametrize("options", [{"every_row": True}, {"dump": True}, {"serve": True}, {"page_tokens": 4}])
def test_no_grid_where_it_does_not_serve(subject: Subject, options: dict[str, Any]) -> None:
    base = {"context": 1024, "page_tokens": 128}
    found = plan_graph(subject.checkpoint.graph, chip("grid8"), subject.profile({}), Options(**{**base, **options}))
    assert isinstance(plan_grid(*found), str)


@ONE
def test_a_long_prompt_is_timed_by_its_ends(subject: Subject) -> None:
    """Steps between the first and the last whole one are interpolated; all of them together take about as long."""
    question = Question(context=2000, page_tokens=128)
    program = compile_for(subject.checkpoint.graph, chip("grid8"), subject.profile({}), question)
    whole = prefill_of(program, [2000])
    assert len(whole.layout.grid) > 3
    found = first_token(program, question)
    exact = run_scenario(program, whole).tokens[0]
    assert found.timed < found.steps
    assert abs(found.cycles - exact) <= exact / 100
