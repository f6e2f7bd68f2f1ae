"""The memory map: what lives at the same time never shares a byte, and everything lies inside its region."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from systolith.compiler import Compiled, Options, compile_model
from systolith.compiler.memory import scratchpad
from systolith.compiler.packing import Phase, pack
from systolith.models.profile import Profile
from systolith.spec import load

from .conftest import Make

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "nano": ("nano", {}, {}, {}),
    "nano-batch": ("nano", {}, {}, {"batch": 8, "context": 512}),
    "nano-dump": ("nano", {"hidden": 144, "head_dim": 48}, {}, {"every_row": True, "dump": True, "log_rows": 100}),
    "micro-spans": ("micro", {"attention_bias": True}, {"spans": {"gate": 2, "o": 3}}, {}),
    "mini-fp4": ("mini", {}, {"weights": "E2M1", "activations": "E4M3"}, {"every_row": True}),
    "mini-not-deferred": ("mini", {"tied": False}, {"deferred_norm": False}, {"page_tokens": 32}),
    "server-sink": ("server", {"heads": 4, "kv_heads": 2}, {"attention": {"sink": 1.0}}, {"context": 512}),
}


@pytest.fixture(params=CASES)
def compiled(request: pytest.FixtureRequest, make: Make) -> Compiled:
    chip, shape, profile, options = CASES[request.param]
    checkpoint = make(**shape)
    table = Profile.from_dict(profile).resolved(checkpoint.graph)
    return compile_model(checkpoint, load(chip), table, Options(**options))


def test_live_buffers_share_no_byte(compiled: Compiled) -> None:
    memory, buffers = compiled.memory, scratchpad(compiled.plan)
    assert {name for name, _, _ in buffers} == set(memory.spad)
    for (a, a_bytes, a_phases), (b, b_bytes, b_phases) in combinations(buffers, 2):
        if set(a_phases) & set(b_phases):
            a_at, b_at = memory.spad[a], memory.spad[b]
            assert a_at + a_bytes <= b_at or b_at + b_bytes <= a_at, f"{a} and {b}"
    for name, count, _ in buffers:
        assert memory.spad[name] % 4 == 0
        assert memory.spad[name] + count <= memory.spad_bytes, name
    assert memory.spad_bytes <= compiled.plan.chip.scratchpad_bytes


def test_images_lie_inside_their_regions(compiled: Compiled) -> None:
    """No image reaches into the region behind its own, and no two images of a slice share a byte."""
    memory = compiled.memory
    bases = sorted(memory.dram.values())
    assert len(set(bases)) == len(bases) or len(bases) - len(set(bases)) <= 1, (
        "only an empty region may share an address"
    )
    ends = dict(zip(bases, [*bases[1:], memory.dram_bytes], strict=True))
    for rank in range(compiled.plan.slices):
        last = 0
        images = sorted((i.address, len(i.data)) for i in compiled.program.images if i.slice in (rank, -1))
        for address, count in images:
            base = max(b for b in bases if b <= address)
            assert address + count <= ends[base]
            assert address >= last, f"slice {rank}: two images at {address}"
            last = address + count
    assert compiled.program.requires.dram_bytes == memory.dram_bytes <= compiled.plan.chip.dram_bytes


def test_step_records_have_room_for_what_a_step_may_hold(compiled: Compiled) -> None:
    record, plan = compiled.memory.record, compiled.plan
    places = [record.ids, record.positions, record.segments, record.out_rows, record.out_slots, record.words]
    needs = [plan.rows, plan.rows, 4 * record.max_segments, plan.out_rows, plan.out_rows]
    assert all(b - a >= need for a, b, need in zip(places, places[1:], needs, strict=False))
    assert record.max_segments >= 2 * plan.options.batch


def test_packing_finds_room_between_what_is_not_live() -> None:
    buffers = [
        ("always", 100, tuple(Phase)),
        ("early", 1000, (Phase.QKV,)),
        ("late", 1000, (Phase.FFN, Phase.DOWN)),
        ("both", 64, (Phase.QKV, Phase.FFN)),
    ]
    bases, end = pack(buffers, 1 << 20)
    assert bases["early"] == bases["late"] or abs(bases["early"] - bases["late"]) == 64
    assert end == 128 + 64 + 1024
