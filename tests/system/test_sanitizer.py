"""No program of the compiler leaves a race, a deadlock or a read of what was never written, on any chip.

One run of the sanitizer speaks for every timing. Programs differ by what is aliased in the scratchpad, which slices
are idle, and how lanes are shared, so chips, batches and profiles are tried in turn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from reference.make_model import make_llama

from systolith.runtime.job import Request, Sampling, layout, write_job
from systolith.sim.sanitizer import Finding, sanitize
from systolith.spec.errors import CapacityError

from .harness import CHIPS, Subject, chip, compiled

PROMPTS = ((3, 1, 4), tuple(range(70)), tuple(range(9, 50)))
NO_DEFER = {"deferred_norm": False, "weights": "E2M1", "activations": "E4M3", "spans": {"q": 2, "o": 2, "down": 3}}


def findings(
    subject: Subject,
    name: str,
    table: Mapping[str, Any],
    prompts: Sequence[Sequence[int]],
    count: int = 3,
    **options: Any,
) -> list[Finding]:
    """What the sanitizer finds in the program of a job while it runs; shared banks cost cycles, no bit."""
    on = chip(name)
    requests = [Request(tuple(p), count, Sampling(0.7, 10, 0.9, 5 + n)) for n, p in enumerate(prompts)]
    program = compiled(subject, on, subject.profile(table), requests, **options)
    plan = layout(program.program, requests)
    found = sanitize(on, program.program, lambda s: write_job(s, program.program, requests, plan))
    return [f for f in found if not f.warning]


@pytest.mark.parametrize("name", ["nano", "micro", "mini", "three"])
def test_a_batch_leaves_nothing_open(odd: Subject, name: str) -> None:
    assert findings(odd, name, {}, PROMPTS) == []


@pytest.mark.parametrize("table", [NO_DEFER, {"attention": {"window": 30, "sink": -1.0}}], ids=["late norm", "window"])
def test_profiles_leave_nothing_open(odd: Subject, table: dict[str, Any]) -> None:
    for name in ("nano", "mini"):
        assert findings(odd, name, table, PROMPTS[2:]) == []


def test_many_lanes_and_chunks_leave_nothing_open(odd: Subject) -> None:
    assert findings(odd, "micro", {"lanes": 2}, [tuple(i % 1003 for i in range(520))], 2) == []


def test_idle_slices_leave_nothing_open(odd: Subject) -> None:
    """On 64 slices most have nothing to send in most gathers, and would run ahead if nothing held them."""
    assert findings(odd, "server", {}, PROMPTS[:1], 2) == []


def test_biases_leave_nothing_open(biased: Subject) -> None:
    for name in ("nano", "three"):
        assert findings(biased, name, {}, PROMPTS) == []


def test_every_row_and_taps_leave_nothing_open(biased: Subject) -> None:
    assert findings(biased, "three", {}, PROMPTS[1:2], 1, every_row=True, dump=True) == []


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(60))
def test_any_model_leaves_nothing_open(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    kv = draw.choice([1, 1, 2, 3, 4, 8])
    context, vocab = draw.choice([300, 1024]), draw.choice([50, 257, 1003])
    path = make_llama(
        tmp_path / "model", hidden=draw.choice([32, 97, 144, 256]), layers=draw.choice([1, 2]),
        heads=kv * draw.choice([1, 2, 3]), kv_heads=kv, head_dim=draw.choice([16, 20, 32, 48, 64]),
        intermediate=draw.choice([33, 100, 352]), vocab=vocab, context=context, tied=draw.random() < 0.5,
        attention_bias=draw.random() < 0.3, seed=seed,
    )  # fmt: skip
    table = draw.choice(
        [{}, {}, NO_DEFER, {"weights": "E2M1"}, {"lanes": 4}, {"attention": {"window": 40, "sink": 0.5}}]
    )
    batch = draw.choice([1, 2, 3])
    prompts = [
        tuple(draw.randrange(vocab) for _ in range(draw.choice([1, 5, 40, 270] if batch == 1 else [1, 5, 40])))
        for _ in range(batch)
    ]
    try:
        found = findings(Subject.open(path), draw.choice(CHIPS), table, prompts, page_tokens=draw.choice([32, 256]))
    except CapacityError as refusal:
        pytest.skip(f"this model is too large for the chip drawn: {refusal}")
    assert found == []
