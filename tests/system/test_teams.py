"""Gathers in two stages: slices bring rows together in teams before they send them. No bit knows of it.

Teams of eight and four, rows that are fewer than a step has or no multiple of a team, parts of h, columns that are
dealt out evenly, norms that are not deferred, layers with windows that share their words.
"""

from __future__ import annotations

from typing import Any

import pytest
from reference.make_model import make_llama

from systolith.compiler import Compiled, Options
from systolith.compiler.builder import SEMAPHORE
from systolith.compiler.compile import compile_graph, plan_graph
from systolith.compiler.context import Counter
from systolith.compiler.team import deal_of_x, later_columns
from systolith.isa.collective import Put
from systolith.models.profile import Profile
from systolith.runtime.estimate import open_config
from systolith.runtime.job import Request, Sampling, layout, write_job
from systolith.sim.sanitizer import sanitize
from systolith.spec import load

from .harness import Subject, compiled, generate
from .test_decode_rows import MADE, check, machine, prompts_of

FP4 = {"lanes": 2, "weights": "E2M1", "activations": "E4M3"}
EIGHT: dict[str, Any] = {"hidden": 256, "intermediate": 512}
"""A block of the residual stream and two of h for each of eight slices."""
EVEN: dict[str, Any] = {"hidden": 384, "intermediate": 384}
"""A block and a half of both for each of eight slices."""
PARTS: dict[str, Any] = {"hidden": 256, "intermediate": 1024}
"""h of a slice comes in two parts where weights are narrow."""


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    """Models by name, made when they are first asked for."""
    tables = {
        "eight": EIGHT, "four": {"hidden": 128, "intermediate": 256}, "parts": PARTS,
        "even": {**EVEN, "intermediate": 1024}, "mixtral": {**EVEN, "family": "mixtral"},
        "windows": {**EVEN, "family": "gpt_oss", "layers": 4},
    }  # fmt: skip

    class Made(dict[str, Subject]):
        def __missing__(self, name: str) -> Subject:
            table = {"layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 64, **tables[name]}
            path = make_llama(tmp_path_factory.mktemp("models") / name, vocab=203, context=512, seed=11, **table)
            self[name] = Subject.open(path)
            return self[name]

    return Made()


def lengths(batch: int) -> list[int]:
    return [1 + 7 * n % 23 for n in range(batch)]


@pytest.mark.parametrize(
    ("name", "chip", "batch", "table", "rows", "team"),
    [
        ("eight", "server8", 9, {"lanes": 2}, None, 8),  # nine rows of 256
        ("four", "server4", 5, {"lanes": 2}, 16, 4),
        ("parts", "server8", 13, FP4, 16, 8),
        ("windows", "server8", 9, {"lanes": 2}, None, 8),
        pytest.param("eight", "server8", 40, {"lanes": 2}, 32, 8, marks=pytest.mark.deep),  # slots take turns
        pytest.param("eight", "server8", 9, {"lanes": 2, "deferred_norm": False}, None, 8, marks=pytest.mark.deep),
        pytest.param("even", "server8", 9, FP4, None, 8, marks=pytest.mark.deep),
        pytest.param("mixtral", "server8", 5, {"lanes": 2}, None, 8, marks=pytest.mark.deep),
    ],
)
def test_teams_have_the_references_bits(
    subjects: dict[str, Subject], name: str, chip: str, batch: int, table: dict[str, Any], rows: int | None, team: int
) -> None:
    subject, prompts = subjects[name], prompts_of(lengths(batch), 203)
    profile = subject.profile(table)
    ran = generate(subject, machine(chip), profile, prompts, MADE, Sampling(0.8, 40, 0.95, 3), rows=rows)
    plan = ran.compiled.plan
    assert (plan.team, plan.team_norms) == (team, True)
    assert bool(plan.o.unit) == (subject in (subjects["windows"], subjects["mixtral"], subjects["even"]))
    assert bool(later_columns(plan)) == (table is FP4)
    check(subject, ran, profile, prompts, -1)


@pytest.mark.parametrize(
    ("name", "chip", "batch", "table"),
    [
        ("four", "server4", 5, {"lanes": 2}),
        ("parts", "server8", 8, FP4),
        pytest.param("eight", "server8", 9, {"lanes": 2}, marks=pytest.mark.deep),
        pytest.param("windows", "server8", 9, {"lanes": 2}, marks=pytest.mark.deep),
        pytest.param("eight", "server8", 9, {"lanes": 2, "deferred_norm": False}, marks=pytest.mark.deep),
    ],
)
def test_teams_leave_nothing_open(
    subjects: dict[str, Subject], name: str, chip: str, batch: int, table: dict[str, Any]
) -> None:
    subject, on = subjects[name], machine(chip)
    requests = [Request(p, 2, Sampling(0.7, 10, 0.9, 5)) for p in prompts_of([1 + n % 3 for n in range(batch)], 203)]
    program = compiled(subject, on, subject.profile(table), requests, rows=16)
    assert program.plan.team == on.slices
    plan = layout(program.program, requests)
    found = sanitize(on, program.program, lambda s: write_job(s, program.program, requests, plan))
    assert [f for f in found if not f.warning] == []


def on_server(model: str, batch: int, slices: int = 64, **options: Any) -> Compiled:
    graph, source, _ = open_config(model)
    chosen = Options(batch=batch, context=2048, **options)
    profile = Profile.default("E2M1", "E4M3", "INT8")
    return compile_graph(graph, load("server").vary(slices=slices), profile, chosen, source=source)


def to_members(program: Compiled) -> list[Put]:
    """PUTs that tell a member of a team, and no other."""
    team = SEMAPHORE["team"]
    return [i for i in program.program.code if isinstance(i, Put) and i.arrive and i.sem == team]


def test_teams_are_for_many_rows() -> None:
    one = on_server("llama-3.1-8b", 1)
    assert (one.plan.team, one.plan.team_norms) == (1, False)
    many = on_server("llama-3.1-8b", 64)
    assert (many.plan.team, many.plan.team_norms) == (8, True)
    puts = to_members(many)
    assert len({p.b for p in puts}) == 8
    assert {(p.count, p.expect) for p in puts} == {(1, 8)}
    assert {p.counter for p in puts} == {Counter.TEAM, Counter.TEAM_AGAIN}
    assert to_members(one) == []


@pytest.mark.parametrize(("slices", "batch", "team"), [(64, 3, 1), (64, 4, 4), (60, 64, 4), (62, 64, 2), (63, 64, 1)])
def test_a_team_divides_the_slices(slices: int, batch: int, team: int) -> None:
    graph, source, _ = open_config("llama-3.1-8b")
    chip = load("server").vary(slices=slices)
    found, _ = plan_graph(
        graph, chip, Profile.default("E2M1", "E4M3", "INT8"), Options(batch=batch, context=512), source=source
    )
    assert found.team == team
    deal = deal_of_x(found)
    assert deal is not None
    assert [deal.first(rank) for rank in range(slices)] == [found.residual_share(rank)[0] for rank in range(slices)]


def test_a_bank_that_takes_short_runs_as_fast_needs_no_teams() -> None:
    """What a team saves are pieces: with a network that is slower than they are, one stage takes less time."""
    slow = load("server").vary(ingress_bytes_per_s="16 GB/s")
    graph, source, _ = open_config("llama-3.1-8b")
    profile = Profile.default("E2M1", "E4M3", "INT8")
    assert plan_graph(graph, slow, profile, Options(batch=64, context=512), source=source)[0].team == 1


def test_words_that_do_not_fit_are_fewer_with_smaller_teams(subjects: dict[str, Subject]) -> None:
    subject = subjects["windows"]
    graph, profile, options = subject.checkpoint.graph, subject.profile({"lanes": 2}), Options(batch=9)
    size = compile_graph(graph, machine("server8"), profile, options).program.program_bytes
    found = []
    for less in (0, 16, 16 * 256, 16 * 512):
        tight = machine("server8").vary(program_bytes=f"{size - less} B")
        made = compile_graph(graph, tight, profile, options)
        assert made.program.program_bytes <= tight.program_bytes
        found.append((made.plan.team, made.plan.team_norms))
    assert found[:2] == [(8, True), (4, True)]
    assert found == sorted(found, key=lambda way: (not way[1], -way[0]))
    assert found[-1][1] is False
