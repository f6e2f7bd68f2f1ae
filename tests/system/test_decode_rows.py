"""Decode rows of a batch are attended several chunks at once, each slice some request slots: no bit knows of it.

Prompts are of lengths around the edges of chunks; lanes are fewer than chunks, so that rounds follow each other and
lanes begin, go on and end with every number of chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.make_model import make_llama

from systolith.compiler import Options
from systolith.compiler.compile import plan_graph
from systolith.models.profile import Profile
from systolith.runtime.engine import Engine
from systolith.runtime.job import Request, Sampling, layout, write_job
from systolith.sim.sanitizer import sanitize
from systolith.spec import Chip, load

from .harness import Floats, Ran, Subject, chip, compiled, generate, same_bits
from .serving import Alone, check_against_alone, draw_requests, play_all

LENGTHS = (1, 254, 256, 300, 770)
MADE = 3
WINDOW = {"lanes": 4, "attention": {"window": 290, "sink": -1.0}}


@cache
def machine(name: str) -> Chip:
    """A named chip, or some slices of `server`."""
    return load("server").vary(slices=int(name.removeprefix("server"))) if name.startswith("server") else chip(name)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Two KV heads; a feed-forward of two tiles of arrays for `slice64`, which makes them in two parts."""
    path = make_llama(
        tmp_path_factory.mktemp("models") / "pair", hidden=96, layers=3, heads=4, kv_heads=2, head_dim=48,
        intermediate=256, vocab=203, context=2048, seed=11,
    )  # fmt: skip
    return Subject.open(path)


def prompts_of(lengths: Sequence[int], vocab: int) -> list[tuple[int, ...]]:
    words = np.random.default_rng(17).integers(0, vocab, max(lengths) + len(lengths)).tolist()
    return [tuple(words[n : n + length]) for n, length in enumerate(lengths)]


def check(subject: Subject, ran: Ran, profile: Profile, prompts: Sequence[tuple[int, ...]], traced: int) -> None:
    """Logits of what was made, and the attention rows of one request, against the reference."""
    for number, prompt in enumerate(prompts):
        ids = [*prompt, *ran.tokens[number][:-1]]
        want = subject.expected(profile, ids, trace=number == traced)
        same_bits(ran.logits[number], want.logits[len(prompt) - 1 :], f"request {number}")
        if number == traced:
            for layer in range(ran.compiled.plan.model.layers):
                got = attention_of(ran, number, layer)
                same_bits(got, want.trace[f"{layer:02d}-attention"][len(prompt) :], f"attention of layer {layer}")


def attention_of(ran: Ran, slot: int, layer: int) -> Floats:
    """Dumped attention of a slot's decode rows, each head from the slice that has the slot; a step's rows lie behind
    the tokens made before it."""
    plan, memory = ran.compiled.plan, ran.compiled.memory
    batch, width = plan.options.batch, plan.model.heads * plan.dp
    count = max(plan.options.log_rows, plan.rows) * width
    heads = []
    for head in range(plan.model.heads):
        rank = head // plan.group_queries * plan.head_units + slot % plan.slot_groups
        at = memory.dram["dump_attention"] + 4 * layer * count
        table = np.frombuffer(ran.machine.read_dram(rank, at, 4 * count), np.float32).reshape(-1, width)
        columns = slice(head * plan.dp, (head + 1) * plan.dp)
        heads.append(table[[batch * step + slot for step in range(1, MADE)], columns])
    return np.concatenate(heads, 1)


@pytest.mark.parametrize(
    ("name", "table", "groups", "side"),
    [
        ("mini", {"lanes": 2}, 2, 2),
        ("server4", WINDOW, 2, 4),
        pytest.param("slice64", {"lanes": 4, "weights": "E2M1", "activations": "E4M3"}, 1, 4, marks=pytest.mark.deep),
        pytest.param("server8", {"lanes": 8}, 4, 4, marks=pytest.mark.deep),
    ],
)
def test_rows_of_a_batch_have_the_references_bits(
    pair: Subject, name: str, table: dict[str, Any], groups: int, side: int
) -> None:
    profile, prompts = pair.profile(table), prompts_of(LENGTHS, 203)
    # Room for the intermediates of a prompt's rows behind the tokens made before.
    options = {"dump": True, "log_rows": 160} if name == "mini" else {}
    ran = generate(pair, machine(name), profile, prompts, MADE, Sampling(0.8, 40, 0.95, 3), **options)
    plan = ran.compiled.plan
    assert (plan.slot_groups, plan.group, plan.round_chunks) == (groups, 1, side)
    assert plan.row_ahead == (table is not WINDOW)
    check(pair, ran, profile, prompts, 3 if name == "mini" else -1)


def test_gate_and_up_in_two_parts_have_the_references_bits(pair: Subject) -> None:
    profile, prompts = pair.profile({"weights": "E2M1", "activations": "E4M3"}), prompts_of(range(1, 9), 203)
    ran = generate(pair, machine("slice64"), profile, prompts, MADE, Sampling(), rows=128)
    assert ran.compiled.plan.gate.cuts == ran.compiled.plan.up.cuts == (64, 64)
    check(pair, ran, profile, prompts, -1)


def test_slots_are_dealt_out_as_far_as_there_are_requests(pair: Subject) -> None:
    def groups(batch: int, **options: Any) -> tuple[int, int]:
        chosen = Options(batch=batch, context=2048, **options)
        plan, _ = plan_graph(pair.checkpoint.graph, machine("server16"), pair.profile({"lanes": 8}), chosen)
        assert plan.group * plan.lanes_local == 8
        return plan.slot_groups, plan.group

    want = [(1, 8), (1, 8), (1, 8), (4, 2), (4, 2), (8, 1), (8, 1)]
    assert [groups(batch) for batch in (1, 2, 3, 4, 7, 8, 60)] == want
    assert groups(8, serve=True) == (1, 8)  # prefixes are shared by all slots


@pytest.mark.parametrize(("name", "rows"), [("nano", 3), ("mini", 4)])
def test_slots_take_turns_where_a_step_has_fewer_rows(pair: Subject, name: str, rows: int) -> None:
    """Stop tokens end some requests early: their rows stay in their step, and the others go on."""
    profile, prompts = pair.profile({"lanes": 2}), prompts_of((5, 3, 9, 30, 1, 2, 7), 203)
    sampling = Sampling(0.8, 40, 0.95, 3)
    ran = generate(pair, machine(name), profile, prompts, MADE, sampling, rows=rows)
    assert ran.compiled.plan.decode_steps == -(-7 // rows)
    check(pair, ran, profile, prompts, -1)
    stop = ran.tokens[4][1]
    stopped = generate(pair, machine(name), profile, prompts, MADE, sampling, stops=[stop], rows=rows).tokens
    assert stopped == [t[: t.index(stop) + 1] if stop in t else t for t in ran.tokens]


def findings(
    subject: Subject, on: Chip, table: Mapping[str, Any], lengths: Sequence[int], **options: Any
) -> list[object]:  # fmt: skip
    prompts = prompts_of(lengths, 203)
    requests = [Request(p, MADE, Sampling(0.7, 10, 0.9, 5 + n)) for n, p in enumerate(prompts)]
    program = compiled(subject, on, subject.profile(table), requests, **options)
    assert program.plan.round_chunks
    plan = layout(program.program, requests)
    found = sanitize(on, program.program, lambda s: write_job(s, program.program, requests, plan))
    return [f for f in found if not f.warning]


@pytest.mark.parametrize(
    ("name", "table", "lengths"),
    [
        ("mini", {"lanes": 2}, (3, 520, 256, 9)),
        ("server4", WINDOW, (300, 5, 1, 2)),
        pytest.param("server8", {"lanes": 4}, (3, 40, 600, 300, 255, 256, 7, 770, 11), marks=pytest.mark.deep),
        pytest.param("slice64", {"lanes": 2}, (600, 1, 256, 30, 31, 32, 33, 34), marks=pytest.mark.deep),
    ],
)
def test_rows_of_a_batch_leave_nothing_open(
    pair: Subject, name: str, table: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    assert findings(pair, machine(name), table, lengths) == []


def test_turns_leave_nothing_open(pair: Subject) -> None:
    assert findings(pair, machine("mini"), {}, (3, 20, 30, 1, 5), rows=2) == []


def test_rows_come_and_go_beside_prompts(pair: Subject) -> None:
    """One program: decode rows, of any request slots, and chunks of prompts in the same step."""
    arrivals = draw_requests(5, 8, 203, longest=500, prefix=300, most=6)
    serving = Engine(pair.checkpoint, machine("slice64"), pair.profile({"lanes": 2}), slots=4, context=1024,
                     page_tokens=32, max_waiting=100, timing=False)  # fmt: skip
    assert serving.compiled.plan.round_chunks == 2
    outcomes = play_all(serving, arrivals)
    check_against_alone(Alone(pair.checkpoint, chip("micro"), 1024, {"lanes": 2}), arrivals, outcomes)


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(30))
def test_any_batch_has_the_references_bits(pair: Subject, seed: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 1500, draw.integers(2, 10)).tolist()
    table: dict[str, Any] = {"lanes": int(draw.choice([1, 2, 4, 8]))}
    if draw.random() < 0.5:
        table["attention"] = {"window": int(draw.integers(1, 700)), "sink": float(draw.normal())}
    name = str(draw.choice(["mini", "slice64", "server4", "server8", "server3"]))
    profile, prompts = pair.profile(table), prompts_of(lengths, 203)
    page = int(draw.choice([16, 64, 256]))
    ran = generate(pair, machine(name), profile, prompts, MADE, Sampling(0.8, 40, 0.95, 3), page_tokens=page)
    check(pair, ran, profile, prompts, -1)
