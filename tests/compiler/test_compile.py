"""Any model on any chip: the compiler makes a program that gives the reference's bits, or refuses in one sentence."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from reference.make_model import make_llama
from system.harness import Subject, compiled, run_job, same_bits

from systolith.runtime.job import Request
from systolith.spec import CapacityError, Chip, ConfigError, ModelError, load

SENTENCE = re.compile(r"^[^\n]+: [^\n]+; [^\n.]+[.]?$")
FORMATS: list[dict[str, Any]] = [
    {},
    {"weights": "E4M3", "activations": "E4M3", "k": "E4M3", "v": "E4M3"},
    {"weights": "E2M1", "activations": "INT8"},
    {"weights": "E2M1", "activations": "E4M3", "k": "E2M1", "v": "E2M1", "p": "E4M3"},
    {"weights": "INT8x2", "deferred_norm": False},
]


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of make_llama, none of them round."""
    kv_heads = draw(st.integers(1, 5))
    return {
        "hidden": draw(st.integers(4, 200)), "layers": draw(st.integers(1, 2)), "kv_heads": kv_heads,
        "heads": kv_heads * draw(st.integers(1, 6)), "head_dim": 2 * draw(st.integers(1, 66)),
        "intermediate": draw(st.integers(1, 300)), "vocab": draw(st.integers(2, 400)),
        "context": draw(st.sampled_from([16, 300, 5000])), "tied": draw(st.booleans()),
        "attention_bias": draw(st.booleans()), "outliers": 1, "seed": draw(st.integers(0, 9)),
    }  # fmt: skip


@st.composite
def chips(draw: st.DrawFn) -> Chip:
    """A named chip with other sizes; the record itself refuses what no program could use."""
    chip = load(draw(st.sampled_from(["nano", "micro", "mini"])))
    banks = draw(st.integers(4, 9))
    changes = {
        "slices": draw(st.integers(1, 9)), "banks": banks,
        "scratchpad_bytes": banks * chip.bank_bytes * draw(st.integers(64, 2048)),
        "accumulator_bytes": 4096 * draw(st.integers(1, 8)), "slots_bytes": 1024 * draw(st.integers(2, 24)),
        "dram_bytes": 64 * draw(st.sampled_from([1 << 11, 1 << 14, 1 << 18])),
    }  # fmt: skip
    try:
        return chip.vary(**changes)
    except ConfigError:
        return chip.vary(slices=changes["slices"])


@st.composite
def profiles(draw: st.DrawFn) -> dict[str, Any]:
    spans = draw(
        st.dictionaries(st.sampled_from(["q", "k", "v", "o", "gate", "up", "down", "head"]), st.integers(1, 5))
    )
    lanes: dict[str, Any] = draw(st.sampled_from([{}, {"lanes": 1}, {"lanes": 2}, {"lanes": 8}]))
    return {**draw(st.sampled_from(FORMATS)), "spans": spans, **lanes}


def check(shape: dict[str, Any], chip: Chip, table: dict[str, Any], options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject.open(make_llama(Path(folder) / "m", **shape))
        profile = subject.profile(table)
        vocab = subject.checkpoint.graph.vocab
        requests = [Request(tuple((5 * n + i) % vocab for i in range(n + 3))) for n in range(options.pop("batch"))]
        try:
            program = compiled(subject, chip, profile, requests, every_row=True, **options)
            program.program.check_chip(chip)
        except (CapacityError, ModelError, ConfigError) as error:
            refusal = str(error)
        else:
            refusal = ""
        if refusal:
            assert SENTENCE.match(refusal), refusal
            return
        ran = run_job(program, chip, requests)
        for number, request in enumerate(requests):
            same_bits(ran.logits[number], subject.expected(profile, request.prompt).logits, f"request {number}")


OPTIONS = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 5),
        "page_tokens": st.sampled_from([1, 32, 64, 256]),
        "rows": st.sampled_from([None, 3, 16]),
    }
)
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=QUIET, phases=[Phase.generate])
@given(shapes(), chips(), profiles(), OPTIONS)
def test_it_runs_right_or_is_refused(
    shape: dict[str, Any], chip: Chip, table: dict[str, Any], options: dict[str, Any]
) -> None:
    check(shape, chip, table, dict(options))


@pytest.mark.deep
@settings(max_examples=2000, deadline=None, suppress_health_check=QUIET)
@given(shapes(), chips(), profiles(), OPTIONS)
def test_it_runs_right_or_is_refused_2000_times(
    shape: dict[str, Any], chip: Chip, table: dict[str, Any], options: dict[str, Any]
) -> None:
    check(shape, chip, table, dict(options))
