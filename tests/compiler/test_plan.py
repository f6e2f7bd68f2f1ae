"""The plan: how a model is cut, and what is refused because it does not fit."""

from __future__ import annotations

import re
from typing import Any

import pytest

from systolith.compiler import Options, compile_model
from systolith.compiler.compile import plan_graph, plan_model
from systolith.compiler.plan import Plan, share
from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.runtime.estimate import open_config
from systolith.spec import CapacityError, Chip, ConfigError, ModelError, load
from systolith.spec.limits import BLOCK

from .conftest import Make

NANO = load("nano")


def plan(checkpoint: Checkpoint, chip: Chip = NANO, profile: dict[str, Any] | None = None, **options: Any) -> Plan:
    table = Profile.from_dict(profile or {}).resolved(checkpoint.graph)
    return plan_model(checkpoint, chip, table, Options(**options))[0]


def test_slots_that_hold_less_than_a_stall_are_warned_of(make: Make) -> None:
    checkpoint = make()
    assert plan(checkpoint).warnings == ()
    (sentence,) = plan(checkpoint, NANO.vary(dram_latency_ns=2000)).warnings
    assert re.match(
        r"^nano: \d+ weight slots of m hold \d+ cycles of memory traffic, and a decode step stalls for about 1\d{3} "
        r"around attention, so memory will wait; a larger slots_bytes helps$",
        sentence,
    )


def test_share_deals_everything_once() -> None:
    for items in (0, 1, 5, 63, 64, 65):
        for slices in (1, 2, 3, 64):
            runs = [share(items, slices, rank) for rank in range(slices)]
            assert [i for first, count in runs for i in range(first, first + count)] == list(range(items))
            assert max(count for _, count in runs) - min(count for _, count in runs) <= 1


@pytest.mark.parametrize(
    ("model", "name", "slices", "even"),
    [
        ("llama-3.1-8b", "server", 64, {"qkv": 96}), ("llama-3.1-70b", "server", 64, {"qkv": 160}),
        ("gpt-oss-120b", "server", 64, {"qkv": 80, "o": 45, "expert_down": 45, "expert_gate": 45, "expert_up": 45}),
        ("llama-3.1-8b", "server", 63, {"o": 66, "down": 66}), ("qwen3-8b", "server", 64, {"qkv": 96}),
        ("tinycode", "nano", 1, {}),
    ],
)  # fmt: skip
def test_columns_dealt_out_evenly_come_from_a_slice_or_the_one_before(
    model: str, name: str, slices: int, even: dict[str, int]
) -> None:
    """Every unit has one owner, which makes its last column; what it lacks the slice before makes."""
    graph, source, _ = open_config(model)
    profile = Profile.from_dict({"weights": "E2M1", "activations": "E4M3"}).resolved(graph)
    found, _ = plan_graph(graph, load(name).vary(slices=slices), profile, Options(context=512), source=source)
    dealt = [linear for linear in found.linears if linear.unit]
    assert {linear.name: found.made(linear) for linear in dealt} == even
    for linear in dealt:
        made, next_unit = found.made(linear), 0
        assert found.most_tiles(linear) * linear.nt == made
        for rank in range(slices):
            first, count = found.owned(linear, rank)
            assert first == next_unit or count == 0
            next_unit = first + count
            low, high = first * linear.unit, (first + count) * linear.unit
            if count:
                assert (rank - 1) * made <= low <= rank * made < high <= (rank + 1) * made
                assert rank * made - low == rank * made % linear.unit  # what kernels/columns.py puts before its own
        columns = {"qkv": found.q.n + found.k.n + found.v.n, "o": found.model.hidden, "down": found.model.hidden}
        assert next_unit * linear.unit == columns.get(linear.name, next_unit * linear.unit)
    for rank in range(slices):
        first, count = found.residual_share(rank)
        assert first + count <= -(-found.model.hidden // found.residual_part)


@pytest.mark.parametrize("name", ["nano", "micro", "mini", "server", "slice64"])
def test_every_tile_head_and_unit_has_one_slice(make: Make, name: str) -> None:
    checkpoint = make(heads=6, kv_heads=2, head_dim=48, hidden=160, intermediate=300, vocab=333)
    found = plan(checkpoint, load(name))
    for linear in found.linears:
        tiles = [
            tile
            for first, count in (found.tile_share(linear, rank) for rank in range(found.slices))
            for tile in range(first, first + count)
        ]
        assert sorted(tiles) == list(range(linear.tiles)), linear.name
        assert linear.tiles * linear.nt == linear.n
        assert sum(length for _, length in linear.spans) == linear.k
        assert all(length % linear.kt == 0 for _, length in linear.spans)
    units = [
        u
        for first, count in (found.unit_share(rank) for rank in range(found.slices))
        for u in range(first, first + count)
    ]
    assert sorted(units) == list(range(found.units))
    assert found.group * found.lanes_local >= 1
    assert found.units == 2 * found.group


@pytest.mark.parametrize(("name", "rows"), [("nano", 32), ("micro", 64), ("server", 256)])
def test_rows_of_a_step_are_what_the_accumulator_holds(make: Make, name: str, rows: int) -> None:
    """Half of the accumulator holds 32 columns of that many rows."""
    assert min(256, load(name).accumulator_bytes // 2 // 4 // BLOCK) == rows
    assert plan(make(), load(name)).rows == rows


def test_an_option_makes_steps_smaller(make: Make) -> None:
    assert plan(make(), rows=5).rows == 5
    assert plan(make(), rows=10_000).rows == 32


def test_spans_share_the_accumulator(make: Make) -> None:
    spans = dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down", "head"), 2)
    found = plan(make(), profile={"spans": spans})
    assert found.rows * 2 * 32 * 4 <= NANO.accumulator_bytes // 2
    assert found.q.spans == ((0, 32), (32, 32))
    assert found.down.spans == ((0, 64), (64, 32))


def test_slots_hold_four_tiles_or_more(make: Make) -> None:
    for name in ("nano", "micro", "mini", "server"):
        assert plan(make(hidden=512, intermediate=512), load(name)).slots >= 3


def test_the_accumulator_is_too_small(make: Make) -> None:
    with pytest.raises(
        CapacityError,
        match=r"^nano: accumulator_bytes=8192 is too small for m: two halves must each hold 2048 sums \(64 query heads "
        r"of 32\); take a larger chip$",
    ):
        plan(make(heads=64))


def test_the_scratchpad_is_too_small(make: Make) -> None:
    with pytest.raises(
        CapacityError,
        match=r"^nano: scratchpad_bytes=65536 is too small for m, which needs \d+ with 1 row\(s\) a step; take a "
        r"larger chip, a smaller batch or context$",
    ):
        plan(make(context=4608), batch=4, context=4608, page_tokens=1)


def test_the_weight_slots_are_too_small(make: Make) -> None:
    chip = NANO.vary(slots_bytes=3072)
    with pytest.raises(
        CapacityError,
        match=r"^nano: slots_bytes=3072 must hold two weight tiles of 2048 bytes for m; take a larger chip$",
    ):
        plan(make(), chip, {"weights": "INT8x2"})


def test_the_memory_is_too_small(make: Make) -> None:
    chip = NANO.vary(dram_bytes=1 << 16)
    with pytest.raises(
        CapacityError,
        match=r"^nano: dram_bytes=65536 a slice is too small for m, which needs \d+ a slice at batch 2 and context "
        r"300; take a larger chip or a smaller batch or context$",
    ):
        plan(make(), chip, batch=2, context=300)


def test_a_servers_batch_has_more_rows_than_a_step(make: Make) -> None:
    assert plan(make(), batch=33, context=32).decode_steps > 1
    with pytest.raises(
        CapacityError,
        match=r"^nano: a batch of 33 has more rows than a step of m on this chip can hold; take a smaller batch or a "
        r"larger chip$",
    ):
        plan(make(), batch=33, context=32, serve=True)


@pytest.mark.parametrize("context", [513, 4608])
def test_a_context_longer_than_the_models(make: Make, context: int) -> None:
    checkpoint = make()
    with pytest.raises(
        ModelError,
        match=rf"^{re.escape(str(checkpoint.path))}: context={context} must be 1\.\.512 \(max_position_embeddings\); "
        r"ask for fewer tokens$",
    ):
        plan(checkpoint, context=context)


def test_impossible_options_are_told_all_at_once() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^batch=0 must be at least 1; context=0 must be at least 1; steps=1 must be at least 2; log_rows=-1 "
        r"must be at least 0; rows=-3 must be at least 1; page_tokens=48 must be a power of two 1\.\.256; correct "
        r"the option$",
    ):
        Options(batch=0, context=0, page_tokens=48, steps=1, log_rows=-1, rows=-3)


def test_the_program_needs_no_more_than_the_plan_says(make: Make) -> None:
    checkpoint = make()
    program = compile_model(checkpoint, NANO, Profile().resolved(checkpoint.graph), Options()).program
    assert program.requires.slices == 1
    assert program.requires.spad_bytes <= NANO.scratchpad_bytes
    assert program.requires.acc_bytes <= NANO.accumulator_bytes
    assert program.requires.slot_bytes <= NANO.slots_bytes
    assert program.requires.pairs == ("INT8xINT8",)
    program.check_chip(NANO)
    program.check_chip(NANO.vary(scratchpad_bytes=128 << 10))
    with pytest.raises(
        CapacityError,
        match=r"^program 'm' does not fit on chip nano: it needs dram_bytes=\d+ and nano has 65536; take a larger chip "
        r"or compile it for this one\.$",
    ):
        program.check_chip(NANO.vary(dram_bytes=1 << 16))
