"""Every slice's part in a window: parts sum to it, and they are what the records of its instructions say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from systolith.compiler import Options
from systolith.compiler.compile import compile_graph
from systolith.isa import Format, Queue, Space, Sync, Vec
from systolith.models.profile import Profile
from systolith.runtime.estimate import open_config
from systolith.runtime.scenario import decode_at, run_scenario
from systolith.spec import QUEUES, load
from systolith.timing import RECORD, STATES, SliceTimes, TimingMachine

from .helpers import NANO, program, tensor, time

START, END, CAUSE, SLICE, QUEUE, BYTES = (RECORD.index(n) for n in ("start", "end", "cause", "slice", "queue", "bytes"))
STATE_OF_CAUSE = {0: "empty", 1: "semaphore"}


def by_records(rows: list[list[int]], s: int, q: int, begin: int, end: int) -> dict[str, int]:
    """Cycles of a queue in [begin, end) by state, from the records of its instructions in the order of their starts."""
    found, ended = dict.fromkeys(STATES, 0), 0
    for row in sorted((r for r in rows if (r[SLICE], r[QUEUE]) == (s, q)), key=lambda r: r[START]):
        state = STATE_OF_CAUSE.get(row[CAUSE], "unit")
        found[state] += max(0, min(row[START], end) - max(ended, begin))
        found["works"] += max(0, min(row[END], end) - max(row[START], ended, begin))
        ended = max(ended, row[END])
    found["empty"] += max(0, end - max(ended, begin))
    return found


def test_parts_by_hand() -> None:
    # V starts at 6 and takes 18 (test_queues); M waits for its token, 2 cycles, and takes one; W, L, S, C do nothing.
    constants = [tensor(Space.SPAD, (1, 1, 64), Format.FP32), tensor(Space.SPAD, (1, 1, 64), Format.FP32, 16384)]
    r = time(NANO, program(NANO, [Vec(d=2, a=1, post=1), Sync(on=Queue.M, wait=1)], constants))
    (only,) = r.slices
    assert r.cycles == 6 + 18 + 2 + 1
    assert only.queues["V"] == {"works": 18, "semaphore": 0, "empty": 6 + 3, "unit": 0}
    assert only.queues["M"] == {"works": 1, "semaphore": 26, "empty": 0, "unit": 0}
    assert only.queues["W"] == {"works": 0, "semaphore": 0, "empty": 27, "unit": 0}
    assert only.busy == {"memory": 0, "matrix": 0, "vector": 16, "collective": 0}


@pytest.mark.parametrize(("name", "batch", "more"), [
    ("micro", 3, {}), ("mini", 1, {"slices": 3}), ("server", 1, {"slices": 7}),
    ("mini", 2, {"slices": 4, "hop_ns": 200}),  # slices run far ahead of each other
])  # fmt: skip
def test_parts_are_those_of_the_records(name: str, batch: int, more: dict[str, Any]) -> None:
    chip = load(name).vary(**more)
    compiled = compile_graph(open_config("tinycode")[0], chip, Profile.default(), Options(batch=batch, context=512))
    records: dict[int, list[int]] = {}

    def keep(machine: TimingMachine, _: object) -> None:
        records.update(enumerate(machine.records.tolist(), machine.first_record))

    ends = (batch - 1, 2 * batch - 1)
    ran = run_scenario(
        compiled, decode_at(300, batch, steps=3, rows=compiled.plan.rows), skip=False, on_window=keep, watch=ends
    )
    ahead = 2 * chip.bank_cycles + chip.network_latency_cycles
    begin, end = (ran.tokens[i] + ahead for i in ends)
    rows = list(records.values())
    assert len(ran.timing.slices) == chip.slices
    for found in ran.timing.slices:
        assert found.cycles == end - begin == ran.tokens[ends[1]] - ran.tokens[ends[0]]
        for q, queue in enumerate(QUEUES):
            assert sum(found.queues[queue].values()) == found.cycles
            assert found.queues[queue] == by_records(rows, found.slice, q, begin, end), (found.slice, queue)
        for kind, q in (("weights", 0), ("load", 1), ("store", 4), ("network", 5)):
            mine = [r[BYTES] for r in rows if (r[SLICE], r[QUEUE]) == (found.slice, q) and begin <= r[START] < end]
            assert found.bytes[kind] == sum(mine)
        assert found.busy["memory"] <= found.cycles


def test_the_window_changes_no_time() -> None:
    graph = replace(open_config("tinycode")[0], layers=24)
    chip = load("micro").vary(dram_bytes="128 MiB")
    compiled = compile_graph(graph, chip, Profile.default(), Options(batch=1, context=512, steps=8))
    plain, some, every = (
        run_scenario(compiled, decode_at(300, steps=3), **more)
        for more in ({}, {"watch": (1, 2)}, {"watch": (1, 2), "skip": False})
    )
    assert some.skipped > 24
    assert some.timing.slices == every.timing.slices
    assert some.timing.slices != plain.timing.slices  # of the whole run
    assert replace(some.timing, slices=()) == replace(plain.timing, slices=())


def share(times: SliceTimes, queue: str) -> float:
    return times.queues[queue]["works"] / times.cycles


def test_an_uneven_deal_shows_the_slices_that_idle() -> None:
    """Two KV heads on seven slices: what has no head reads no keys, and waits while others attend."""
    graph = open_config("tinycode")[0]
    chip = load("mini").vary(slices=7)
    compiled = compile_graph(graph, chip, Profile.default(), Options(batch=1, context=512))
    slices = run_scenario(compiled, decode_at(300, steps=2), watch=(0, 1)).timing.slices
    assert np.ptp([s.bytes["load"] for s in slices]) > 0
    idle = min(slices, key=lambda s: s.bytes["load"])
    most = max(slices, key=lambda s: s.bytes["load"])
    assert idle.bytes["load"] < 0.2 * most.bytes["load"]
    assert share(idle, "L") < share(most, "L")
    assert share(idle, "V") < share(most, "V")
