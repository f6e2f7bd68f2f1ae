"""Laying out jobs: every prompt row once, in order, within the program's limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.runtime.job import Request, Sampling, Step, check_requests, layout, pack
from systolith.runtime.session import compile_job
from systolith.spec import CapacityError, ModelError, load


@given(
    st.lists(st.integers(1, 700), min_size=1, max_size=6),
    st.integers(1, 300),
    st.one_of(st.none(), st.integers(1, 300)),
    st.booleans(),
)
def test_every_row_is_packed_once(lengths: list[int], rows: int, chunk: int | None, every_row: bool) -> None:
    requests = [Request(tuple(range(length))) for length in lengths]
    most = 2 * len(lengths) + 2
    steps = pack(requests, rows, most, prefill_chunk=chunk, every_row=every_row)
    seen = [pair for step in steps for pair in step.rows]
    for slot, length in enumerate(lengths):
        assert [p for s, p in seen if s == slot] == list(range(length))
    outputs = [(step.rows[row], slot) for step in steps for row, slot in step.outputs]
    if every_row:
        assert [pair for pair, _ in outputs] == seen
    else:
        assert sorted(outputs) == sorted(((slot, length - 1), slot) for slot, length in enumerate(lengths))
    for step in steps:
        assert 0 < len(step.rows) <= rows
        assert len(step.segments()) <= most
        for slot in range(len(lengths)):
            assert sum(s == slot for s, _ in step.rows) <= min(chunk or rows, rows)


def test_a_segment_ends_where_a_chunk_of_attention_does() -> None:
    step = Step(rows=[(0, p) for p in range(250, 260)] + [(1, 5), (1, 6), (0, 260)])
    assert step.segments() == [(0, 0, 6, 250), (0, 6, 4, 256), (1, 10, 2, 5), (0, 12, 1, 260)]


@pytest.mark.parametrize(
    ("requests", "sentence"),
    [
        ([Request(())], "the prompt is empty; give at least one token"),
        ([Request((1,)), Request(())], "prompt 1 is empty; give at least one token"),
        ([Request((1, 99))], "the prompt: token 99 must be 0..49; give ids of this model's vocabulary"),
        (
            [Request((1, 2), 8)],
            "the prompt has 2 tokens and 8 are to be made, more than the context of 8 in all; shorten the prompt or "
            "ask for fewer tokens",
        ),
        ([Request((1,), stops=tuple(range(9)))], "9 stop tokens were given, at most 8 are allowed; give fewer"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be(requests: list[Request], sentence: str) -> None:
    with pytest.raises(ModelError) as error:
        check_requests(requests, 50, 8)
    assert str(error.value) == sentence


def test_a_request_that_just_fits() -> None:
    check_requests([Request((1, 2), 7)], 50, 8)


def test_a_program_takes_only_the_job_it_was_made_for(tiny: Path) -> None:
    request = Request((1, 2, 3), 4)
    program = compile_job(Checkpoint.open(tiny), load("nano"), Profile.default(), [request]).program
    with pytest.raises(CapacityError) as error:
        layout(program, [request, request])
    assert str(error.value) == "the program has 1 request slots and 2 prompts were given; compile it again"
    with pytest.raises(CapacityError) as error:
        layout(program, [Request((1,) * 200)], prefill_chunk=1)
    assert str(error.value) == "the prompts take 200 steps and the program holds 7; compile it for more"


def test_sampling_says_all_that_is_wrong() -> None:
    with pytest.raises(ModelError) as error:
        Sampling(float("inf"), -1, 2.0, 1 << 64)
    assert str(error.value) == (
        "temperature=inf must be 0 or a positive number; top_k=-1 must be 0 (all tokens) or a positive number below "
        "2^31; top_p=2.0 must be 0..1; seed=18446744073709551616 must be 0..2^64-1; correct the option"
    )
