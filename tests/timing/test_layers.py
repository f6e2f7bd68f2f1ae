"""Layers that are skipped as equal: every result is that of the run which simulates them all, to the cycle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from systolith.compiler import Compiled, Options
from systolith.compiler.compile import compile_graph
from systolith.models.profile import Profile
from systolith.runtime.estimate import open_config
from systolith.runtime.scenario import Scenario, decode_at, prefill_of, run_scenario
from systolith.spec import load
from systolith.timing import TimingResult, layer_loop

RESULTS = ("cycles", "rings", "busy", "bytes", "instructions", "stalls", "waterfall", "windows", "slices")


def deep(chip: str, layers: int, *, batch: int = 1, rows: int | None = None, **profile: str) -> Compiled:
    """Tinycode with more layers."""
    graph = replace(open_config("tinycode")[0], layers=layers)
    options = Options(batch=batch, context=512, steps=8, rows=rows)
    return compile_graph(graph, load(chip).vary(dram_bytes="128 MiB"), Profile.default(**profile), options)


def both(compiled: Compiled, scenario: Scenario) -> tuple[TimingResult, TimingResult, int, int]:
    """A run with skipping and one without; layers simulated and skipped by the first."""
    some, all_ = (run_scenario(compiled, scenario, skip=skip) for skip in (True, False))
    assert all_.skipped == 0
    assert (some.steps, some.tokens) == (all_.steps, all_.tokens)
    return some.timing, all_.timing, some.simulated, some.skipped


@pytest.mark.parametrize(("chip", "batch"), [("nano", 1), ("micro", 2), ("mini", 1), ("slice64", 3)])
def test_a_decode_of_many_layers(chip: str, batch: int) -> None:
    compiled = deep(chip, 40, batch=batch)
    some, every, simulated, skipped = both(compiled, decode_at(300, batch, steps=3))
    assert simulated + skipped == 120
    assert skipped >= 60, "most layers of a deep model repeat"
    for name in RESULTS:
        assert getattr(some, name) == getattr(every, name), name


def test_a_prefill_of_many_layers() -> None:
    compiled = deep("micro", 24, weights="E2M1", activations="E4M3")
    some, every, simulated, skipped = both(compiled, prefill_of(compiled, [150]))
    assert simulated + skipped == 24 * 3
    assert skipped >= 24
    for name in RESULTS:
        assert getattr(some, name) == getattr(every, name), name


def test_layers_of_full_size_on_64_slices() -> None:
    graph = replace(open_config("llama-3.1-8b")[0], layers=20)
    profile = Profile.default("E2M1", "E4M3", "INT8")
    compiled = compile_graph(graph, load("server"), profile, Options(batch=1, context=2048))
    some, every, simulated, skipped = both(compiled, decode_at(1500))
    assert simulated + skipped == 20  # whether any repeats hangs on the phase of a memory that is never idle
    for name in RESULTS:
        assert getattr(some, name) == getattr(every, name), name


def test_layers_that_are_alike_in_pairs() -> None:
    """In Llama-3.1-70B in MXFP4 every other layer has a burst more: states equal after one layer, streams after two."""
    graph = replace(open_config("llama-3.1-70b")[0], layers=12)
    profile = Profile.default("E2M1", "E4M3", "INT8")
    compiled = compile_graph(graph, load("server"), profile, Options(batch=1, context=8448, steps=2))
    some, every, simulated, skipped = both(compiled, decode_at(8192, steps=2))
    assert simulated + skipped == 24
    assert skipped >= 6
    # A run of so many records closes a window early, the one with skipped layers does not: their paths begin elsewhere.
    for name in [name for name in RESULTS if name not in ("waterfall", "windows")]:
        assert getattr(some, name) == getattr(every, name), name


@pytest.mark.parametrize(("batch", "prompt"), [(3, None), (1, 300)])
def test_layers_of_full_size_on_the_chip_of_the_benches(batch: int, prompt: int | None) -> None:
    """The skip that makes the benches fast, against the run that simulates all: equal, so well within 0.1 %."""
    graph = replace(open_config("llama-3.1-8b")[0], layers=12)
    chip = load(Path(__file__).parents[2] / "bench" / "bench128.toml")
    options = Options(batch=batch, context=512, steps=8)
    compiled = compile_graph(graph, chip, Profile.default(), options)
    scenario = decode_at(300, batch, steps=2) if prompt is None else prefill_of(compiled, [prompt])
    some, every, simulated, skipped = both(compiled, scenario)
    assert simulated + skipped == 24
    assert skipped >= 4
    for name in RESULTS:
        assert getattr(some, name) == getattr(every, name), name


def test_a_memory_phase_that_never_repeats_is_never_skipped() -> None:
    """At 15.99 bytes a cycle a saturated channel meets the clock in another phase in each layer."""
    graph = replace(open_config("tinycode")[0], layers=12)
    chip = load("nano").vary(dram_bytes_per_s="0.7999993 GB/s", slots_bytes="64 KiB", dram_bytes="64 MiB")
    compiled = compile_graph(graph, chip, Profile.default(), Options(batch=1, context=512, steps=8))
    some, every, simulated, skipped = both(compiled, decode_at(40, steps=2))
    assert simulated + skipped == 24
    for name in RESULTS:
        assert getattr(some, name) == getattr(every, name), name


def test_a_program_whose_layers_do_not_repeat_is_simulated_whole() -> None:
    compiled = deep("nano", 1)
    some, every, _, skipped = both(compiled, decode_at(40, steps=2))
    assert (some, skipped) == (every, 0)


def test_the_loop_over_layers_is_found() -> None:
    found = layer_loop(deep("nano", 7).program)
    assert found is not None
    assert found[2] == 7
