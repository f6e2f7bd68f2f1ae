"""Runs of jobs: stops, limits, chunks of prefill, devices, times."""

from __future__ import annotations

from pathlib import Path

import pytest

from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.runtime.device import GROUP, Null, device_names, find_device
from systolith.runtime.job import Request, Sampling
from systolith.runtime.session import Run, compile_job, run_job
from systolith.spec import CapacityError, ConfigError, load

SIM = find_device("sim")


def go(model: Path, requests: list[Request], chip: str = "nano", **options: object) -> Run:
    chunk = options.get("prefill_chunk")
    compiled = compile_job(Checkpoint.open(model), load(chip), Profile.default(), requests, **options)  # type: ignore[arg-type]
    return run_job(compiled, SIM, requests, prefill_chunk=chunk, timing=False)  # type: ignore[arg-type]


def test_a_stop_token_ends_a_request_and_is_its_last(tiny: Path) -> None:
    sampling = Sampling(1.0, seed=11)
    free = go(tiny, [Request((1, 2, 3), 12, sampling)]).tokens[0]
    stop = free[5]
    first = free.index(stop)
    both = go(tiny, [Request((1, 2, 3), 12, sampling, (7_000, stop)), Request((9,), 12, sampling)])
    assert both.tokens[0] == free[: first + 1]
    assert len(both.tokens[1]) == 12


def test_prompts_of_unequal_length_in_chunks_are_the_prompts_alone(tiny: Path) -> None:
    requests = [Request(tuple((7 * i + k) % 256 for i in range(n)), 5) for k, n in enumerate((70, 3, 300, 1))]
    alone = [go(tiny, [r], keep_logits=True) for r in requests]
    together = go(tiny, requests, "micro", prefill_chunk=32, page_tokens=32, keep_logits=True)
    assert together.tokens == [run.tokens[0] for run in alone]
    assert together.logits is not None
    for slot, run in enumerate(alone):
        assert run.logits is not None
        assert together.logits[slot].tobytes() == run.logits[0].tobytes()


def test_times_are_those_of_the_timing_model(tiny: Path) -> None:
    requests = [Request((1, 2, 3), 6)]
    compiled = compile_job(Checkpoint.open(tiny), load("mini"), Profile.default(), requests)
    run = run_job(compiled, SIM, requests)
    assert run.timing is not None
    rings = [event.cycle for event in run.timing.rings if event.slice == 0]
    assert run.cycles[0] == rings
    assert run.ttft_s(0) == rings[0] / 1e9
    assert run.tpot_s(0) == (rings[-1] - rings[0]) / 5 / 1e9
    decode = run.decode_waterfall()
    assert decode is not None
    assert sum(decode.parts.values()) == rings[-1] - rings[0]
    one = run_job(
        compile_job(Checkpoint.open(tiny), load("mini"), Profile.default(), [Request((1,))]), SIM, [Request((1,))]
    )
    assert (one.tpot_s(0), one.decode_waterfall()) == (None, None)


def test_nearby_jobs_have_one_program(tiny: Path) -> None:
    made = {
        compile_job(Checkpoint.open(tiny), load("nano"), Profile.default(), [Request((1,) * n, 10)]).program.sha256
        for n in (1, 5, 60)
    }
    assert len(made) == 1


def test_devices_are_found_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"execute", "null", "sim"} <= set(device_names())
    assert isinstance(find_device("null"), Null)

    class Broken:
        name = "rtl"

        def load(self) -> object:
            raise ImportError("No module named 'amaranth'")

    def points(group: str) -> list[Broken]:
        assert group == GROUP
        return [Broken()]

    monkeypatch.setattr("systolith.runtime.device.entry_points", points)
    with pytest.raises(ConfigError) as error:
        find_device("rtl")
    assert str(error.value) == "device rtl: cannot be loaded (No module named 'amaranth'); install what it needs"


def test_null_refuses_a_chip_that_is_too_small(tiny: Path) -> None:
    program = compile_job(Checkpoint.open(tiny), load("micro"), Profile.default(), [Request((1,))]).program
    with pytest.raises(CapacityError, match=r"it needs slices=2 and nano has 1"):
        find_device("null").open(load("nano"), program)
